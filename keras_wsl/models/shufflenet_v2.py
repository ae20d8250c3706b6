"""ShuffleNet V2 for CIFAR: Ma et al., ECCV 2018, https://arxiv.org/abs/1807.11164.

With a 1x1 stem, as in https://github.com/HobbitLong/RepDistiller (`models/ShuffleNetv2.py`).
"""

import keras
from keras import layers

from keras_wsl.models import blocks


def shufflenet_v2(*, classes, input_shape, dtype=None, name):
    r"""Build a network of three stages of 4, 8 and 4 units, with 116, 232 and 464 channels.

    $$y = \mathrm{shuffle}(\mathrm{ReLU}([x_1, W_2 * (D * \mathrm{ReLU}(W_1 * x_2))]))$$

    $x_1$ and $x_2$ are the halves of the channels, $W_1$ and $W_2$ are 1x1 convolutions and $D$ is a depthwise 3x3 one,
    each with batch normalization. $x_1$ is not negative, so its ReLU changes nothing. In the first unit of a stage, $D$
    has strides 2, $x_2$ is all of $x$, and $W_3 * (D' * x)$ replaces $x_1$.

    Endpoints: `stem` is a ReLU; `block1` to `block3` are the shuffled outputs of the stages; `block1_preact` to
    `block3_preact` the same before ReLU and shuffle; `pooled` is the mean after a 1x1 convolution to 1024 channels,
    batch normalization and ReLU; `logits`.

    Args:
        classes: Integer.
        input_shape: `(height, width, channels)`, all known. Inputs are normalized floats.
        dtype: Dtype policy of all layers except `logits`, which is float32. `None` for the global policy.
        name: The model's name.

    Returns:
        A `keras.Model` that maps `(batch, height, width, channels)` to logits, `(batch, classes)`.

    Raises:
        ValueError: If the height or the width is `None`.
    """
    blocks.check_fixed_size(name, input_shape)
    inputs = keras.Input(input_shape, name="image")
    x = _pointwise(inputs, 24, name="stem_conv", bn_name="stem_bn", dtype=dtype)
    x = blocks.relu(x, name="stem", dtype=dtype)
    for stage, (filters, units) in enumerate(((116, 4), (232, 8), (464, 4)), start=1):
        for index in range(units):
            x = _unit(
                x,
                filters // 2,
                down=index == 0,
                name=f"block{stage}_unit{index}",
                end=f"block{stage}" if index == units - 1 else None,
                dtype=dtype,
            )
    x = _pointwise(x, 1024, name="final_conv", bn_name="final_bn", dtype=dtype)
    x = blocks.relu(x, name="final_relu", dtype=dtype)
    bias_initializer = blocks.uniform(x.shape[-1])
    logits = blocks.head(x, classes, bias_initializer=bias_initializer, dtype=dtype)
    return keras.Model(inputs, logits, name=name)


def _unit(x, filters, *, down, name, end, dtype):
    """Apply two branches of `filters` channels each. Without `down` the first is the identity."""
    strides = 2 if down else 1
    if down:
        left = _depthwise(x, strides, name=f"{name}_left_depthwise", dtype=dtype)
        left = _pointwise(left, filters, name=f"{name}_left_conv", bn_name=f"{name}_left_bn", dtype=dtype)
    else:
        left, x = _split_channels(x, name=name, dtype=dtype)
    x = _pointwise(x, filters, name=f"{name}_conv1", bn_name=f"{name}_bn1", dtype=dtype)
    x = blocks.relu(x, name=f"{name}_relu1", dtype=dtype)
    x = _depthwise(x, strides, name=f"{name}_depthwise", dtype=dtype)
    x = _pointwise(x, filters, name=f"{name}_conv2", bn_name=f"{name}_bn2", dtype=dtype)
    x = layers.Concatenate(name=f"{end}_preact" if end else f"{name}_concatenation", dtype=dtype)([left, x])
    x = blocks.relu(x, name=f"{name}_relu2", dtype=dtype)
    return blocks.shuffle(x, 2, name=end or f"{name}_shuffle", dtype=dtype)


def _split_channels(x, *, name, dtype):
    """Yield both halves of the channels. They become a width of 2, because a crop layer crops height and width."""
    height, width, channels = x.shape[1:]
    kwargs = {"data_format": "channels_last", "dtype": dtype}
    x = layers.Reshape((height * width, 2, channels // 2), name=f"{name}_halves", dtype=dtype)(x)
    for side, crop in (("left", (0, 1)), ("right", (1, 0))):
        half = layers.Cropping2D(((0, 0), crop), name=f"{name}_{side}_half", **kwargs)(x)
        yield layers.Reshape((height, width, channels // 2), name=f"{name}_{side}", dtype=dtype)(half)


def _pointwise(x, filters, *, name, bn_name, dtype):
    """Apply a 1x1 convolution without bias and its normalization."""
    initializer = blocks.uniform(x.shape[-1])
    x = blocks.convolution(x, filters, 1, initializer=initializer, name=name, dtype=dtype)
    return blocks.normalization(x, name=bn_name, dtype=dtype)


def _depthwise(x, strides, *, name, dtype):
    """Apply a depthwise convolution and its normalization."""
    x = blocks.depthwise(x, strides=strides, initializer=blocks.uniform(9), name=name, dtype=dtype)
    return blocks.normalization(x, name=f"{name}_bn", dtype=dtype)
