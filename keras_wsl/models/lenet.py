"""LeNet-5 with eight times the channels: LeCun et al., 1998, as in Harutyunyan et al., https://arxiv.org/abs/2301.12245.

The second paper does not state whether it pools by maximum or mean, nor its initial weights. This network uses maxima
and Keras's default initializers.
"""

import keras
from keras import layers

from keras_wsl.models import blocks


def lenet(*, width, classes, input_shape, dtype=None, name):
    r"""Build two convolutions and two hidden dense layers, without normalization.

    $$z_i = \mathrm{pool}(\mathrm{ReLU}(W_i * z_{i-1} + b_i)), \qquad h_j = \mathrm{ReLU}(W'_j h_{j-1} + b'_j)$$

    The convolutions are 5x5 without padding, and the pools 2x2.

    Endpoints: `block1` and `block2` are the outputs of the pools; `hidden1` and `hidden2` those of the hidden layers
    after their ReLU; `pooled`, the embedding, equals `hidden2`; `logits`.

    Args:
        width: Integer, the factor of LeNet-5's 6 and 16 channels and 120 and 84 hidden units.
        classes: Integer.
        input_shape: `(height, width, channels)`, with sides of at least 16. Inputs are normalized floats.
        dtype: Dtype policy of all layers except `logits`, which is float32. `None` for the global policy.
        name: The model's name.

    Returns:
        A `keras.Model` that maps `(batch, height, width, channels)` to logits, `(batch, classes)`.

    Raises:
        ValueError: If the height or the width is `None` or less than 16.
    """
    blocks.check_fixed_size(name, input_shape)
    if min(input_shape[:2]) < 16:
        raise ValueError(f"{name} requires images of at least 16 x 16. Received: input_shape={input_shape!r}.")
    inputs = keras.Input(input_shape, name="image")
    x = inputs
    for block, filters in enumerate((6, 16), start=1):
        kwargs = {"data_format": "channels_last", "dtype": dtype}
        x = layers.Conv2D(filters * width, 5, name=f"block{block}_conv", **kwargs)(x)
        x = blocks.relu(x, name=f"block{block}_relu", dtype=dtype)
        x = layers.MaxPooling2D(2, name=f"block{block}", **kwargs)(x)
    x = layers.Flatten(name="flat", data_format="channels_last", dtype=dtype)(x)
    for hidden, units in enumerate((120, 84), start=1):
        x = layers.Dense(units * width, name=f"hidden{hidden}_dense", dtype=dtype)(x)
        x = blocks.relu(x, name=f"hidden{hidden}", dtype=dtype)
    x = layers.Activation("linear", name="pooled", dtype=dtype)(x)
    logits = blocks.logits(x, classes, initializer="glorot_uniform", bias_initializer="zeros")
    return keras.Model(inputs, logits, name=name)
