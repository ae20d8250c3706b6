"""VGG with batch normalization, for CIFAR: Simonyan and Zisserman, ICLR 2015, https://arxiv.org/abs/1409.1556.

With one fully connected layer instead of three, as in https://github.com/HobbitLong/RepDistiller (`models/vgg.py`).
"""

import keras
from keras import layers

from keras_wsl.models import blocks


def vgg(*, convolutions, classes, input_shape, dtype=None, name):
    r"""Build a network of five blocks of `convolutions` layers each, with 64, 128, 256, 512 and 512 channels.

    $$y = \mathrm{ReLU}(\mathrm{BN}(W * x + b))$$

    A 2x2 max pool halves the feature maps after the first three blocks, and after the fourth if the images are 64 high.

    Endpoints: `stem` and `block1` to `block4` are the last ReLU of the five blocks, before the pool; `block1_preact` to
    `block4_preact` the batch normalization before it; `pooled`; `logits`.

    Args:
        convolutions: Integer, 1 for VGG-8 and 2 for VGG-13.
        classes: Integer.
        input_shape: `(height, width, channels)`. Inputs are normalized floats.
        dtype: Dtype policy of all layers except `logits`, which is float32. `None` for the global policy.
        name: The model's name.

    Returns:
        A `keras.Model` that maps `(batch, height, width, channels)` to logits, `(batch, classes)`.
    """
    inputs = keras.Input(input_shape, name="image")
    x = inputs
    for block, filters in enumerate((64, 128, 256, 512, 512)):
        end = f"block{block}" if block else "stem"
        if 0 < block < 4 or (block == 4 and input_shape[0] == 64):
            x = layers.MaxPooling2D(2, data_format="channels_last", name=f"{end}_pool", dtype=dtype)(x)
        for index in range(convolutions):
            last = index == convolutions - 1
            unit = f"{end}_unit{index}"
            x = blocks.convolution(x, filters, 3, use_bias=True, name=f"{unit}_conv", dtype=dtype)
            x = blocks.normalization(x, name=f"{end}_preact" if last and block else f"{unit}_bn", dtype=dtype)
            x = blocks.relu(x, name=end if last else f"{unit}_relu", dtype=dtype)
    logits = blocks.head(
        x,
        classes,
        initializer=keras.initializers.RandomNormal(stddev=0.01),
        bias_initializer="zeros",
        dtype=dtype,
    )
    return keras.Model(inputs, logits, name=name)
