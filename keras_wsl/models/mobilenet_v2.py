"""MobileNetV2 for CIFAR: Sandler et al., CVPR 2018, https://arxiv.org/abs/1801.04381.

With half the channels and ReLU instead of ReLU6, as in https://github.com/HobbitLong/RepDistiller
(`models/mobilenetv2.py`).
"""

import keras
from keras import layers

from keras_wsl.models import blocks

# Expansion, channels, units, strides of the first unit, and endpoint at the end of each stage.
_STAGES = (
    (1, 8, 1, 1, None),
    (6, 12, 2, 1, "block1"),
    (6, 16, 3, 2, "block2"),
    (6, 32, 4, 2, None),
    (6, 48, 3, 1, "block3"),
    (6, 80, 3, 2, None),
    (6, 160, 1, 1, "block4"),
)


def mobilenet_v2(*, classes, input_shape, dtype=None, name):
    r"""Build a network of inverted residuals with linear bottlenecks.

    $$y = \mathrm{BN}(W_2 * \mathrm{ReLU}(\mathrm{BN}(D * \mathrm{ReLU}(\mathrm{BN}(W_1 * x))))) + s$$

    $W_1$ and $W_2$ are 1x1 convolutions, the first to `expansion` times the channels, and $D$ is a depthwise 3x3 one.
    The shortcut $s$ is $x$ if the shape does not change, else there is none. No ReLU follows.

    Endpoints: `stem` is the first ReLU, at half the size of the images; `block1` to `block4`, at 1/2, 1/4, 1/8 and
    1/16, are the outputs of the stages with 12, 16, 48 and 160 channels, without a ReLU; `block1_preact` to
    `block4_preact` have the same values; `pooled` is the mean after a 1x1 convolution to 1280 channels, batch
    normalization and ReLU; `logits`.

    Args:
        classes: Integer.
        input_shape: `(height, width, channels)`. Inputs are normalized floats.
        dtype: Dtype policy of all layers except `logits`, which is float32. `None` for the global policy.
        name: The model's name.

    Returns:
        A `keras.Model` that maps `(batch, height, width, channels)` to logits, `(batch, classes)`.
    """
    inputs = keras.Input(input_shape, name="image")
    x = _convolution(inputs, 16, 3, strides=2, name="stem", dtype=dtype)
    for stage, (expansion, filters, units, first_strides, end) in enumerate(_STAGES):
        for index in range(units):
            output_name = f"{end}_preact" if end and index == units - 1 else None
            strides = first_strides if index == 0 else 1
            unit = f"stage{stage}_unit{index}"
            x = _unit(x, filters, expansion, strides=strides, name=unit, output_name=output_name, dtype=dtype)
        if end:
            # The bottleneck is linear: the values before and after its activation are the same.
            x = layers.Activation("linear", name=end, dtype=dtype)(x)
    x = _convolution(x, 1280, 1, name="final", dtype=dtype)
    logits = blocks.head(
        x,
        classes,
        initializer=keras.initializers.RandomNormal(stddev=0.01),
        bias_initializer="zeros",
        dtype=dtype,
    )
    return keras.Model(inputs, logits, name=name)


def _convolution(x, filters, kernel_size, *, strides=1, name, dtype):
    """Apply a convolution, its normalization, and its ReLU, which has the name."""
    x = blocks.convolution(x, filters, kernel_size, strides=strides, name=f"{name}_conv", dtype=dtype)
    x = blocks.normalization(x, name=f"{name}_bn", dtype=dtype)
    return blocks.relu(x, name=name, dtype=dtype)


def _unit(x, filters, expansion, *, strides, name, output_name, dtype):
    """Apply an inverted residual. Its sum, or without one its last normalization, has the output's name."""
    shortcut = x if strides == 1 and x.shape[-1] == filters else None
    output_name = output_name or f"{name}_output"
    x = _convolution(x, expansion * x.shape[-1], 1, name=f"{name}_expansion", dtype=dtype)
    # As in the reference: by the number of channels, although each kernel has one input.
    initializer = keras.initializers.RandomNormal(stddev=(2 / (9 * x.shape[-1])) ** 0.5)
    x = blocks.depthwise(x, strides=strides, initializer=initializer, name=f"{name}_depthwise", dtype=dtype)
    x = blocks.normalization(x, name=f"{name}_depthwise_bn", dtype=dtype)
    x = blocks.relu(x, name=f"{name}_depthwise_relu", dtype=dtype)
    x = blocks.convolution(x, filters, 1, name=f"{name}_conv", dtype=dtype)
    x = blocks.normalization(x, name=output_name if shortcut is None else f"{name}_bn", dtype=dtype)
    return x if shortcut is None else layers.Add(name=output_name, dtype=dtype)([x, shortcut])
