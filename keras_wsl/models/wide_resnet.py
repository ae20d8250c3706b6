"""Wide residual networks: Zagoruyko and Komodakis, BMVC 2016, https://arxiv.org/abs/1605.07146."""

import keras
from keras import layers

from keras_wsl.models import blocks


def wide_resnet(*, depth, width, classes, input_shape, dtype=None, name):
    r"""Build a network of three stages of n pre-activation blocks, where `depth = 6 n + 4`.

    $$a = \mathrm{ReLU}(\mathrm{BN}(x)), \qquad y = W_2 * \mathrm{ReLU}(\mathrm{BN}(W_1 * a)) + s$$

    The shortcut $s$ is $x$, or $W_s * a$ with a 1x1 convolution if the number of channels changes.
    Dropout is 0, as in the distillation papers.

    Endpoints: `stem` is the output of the first convolution; `block1` to `block3` are the sums at the end of their
    stage, neither normalized nor rectified; `block1_preact` to `block3_preact` are the batch normalization that follows
    them, in the next stage's first unit or before `pooled`; `pooled`; `logits`.

    Args:
        depth: Integer, 6 n + 4.
        width: Integer, the factor of the channels 16, 32 and 64.
        classes: Integer.
        input_shape: `(height, width, channels)`. Inputs are normalized floats.
        dtype: Dtype policy of all layers except `logits`, which is float32. `None` for the global policy.
        name: The model's name.

    Returns:
        A `keras.Model` that maps `(batch, height, width, channels)` to logits, `(batch, classes)`.
    """
    inputs = keras.Input(input_shape, name="image")
    x = blocks.convolution(inputs, 16, 3, name="stem", dtype=dtype)
    units = (depth - 4) // 6
    for stage in (1, 2, 3):
        for index in range(units):
            x = _unit(
                x,
                2 ** (3 + stage) * width,
                strides=2 if stage > 1 and index == 0 else 1,
                name=f"block{stage}_unit{index}",
                # The first normalization of a stage is that of the previous stage's output.
                first_name=f"block{stage - 1}_preact" if stage > 1 and index == 0 else None,
                sum_name=f"block{stage}" if index == units - 1 else None,
                dtype=dtype,
            )
    x = blocks.normalization(x, name="block3_preact", dtype=dtype)
    x = blocks.relu(x, name="final_relu", dtype=dtype)
    logits = blocks.head(x, classes, bias_initializer="zeros", dtype=dtype)
    return keras.Model(inputs, logits, name=name)


def _unit(x, filters, *, strides, name, first_name, sum_name, dtype):
    """Apply two convolutions, each after its normalization and ReLU, and their shortcut."""
    shortcut = x
    in_filters = x.shape[-1]
    x = blocks.normalization(x, name=first_name or f"{name}_bn1", dtype=dtype)
    x = blocks.relu(x, name=f"{name}_relu1", dtype=dtype)
    # Units with strides also change the number of channels.
    if in_filters != filters:
        shortcut = blocks.convolution(x, filters, 1, strides=strides, name=f"{name}_shortcut_conv", dtype=dtype)
    x = blocks.convolution(x, filters, 3, strides=strides, name=f"{name}_conv1", dtype=dtype)
    x = blocks.normalization(x, name=f"{name}_bn2", dtype=dtype)
    x = blocks.relu(x, name=f"{name}_relu2", dtype=dtype)
    x = blocks.convolution(x, filters, 3, name=f"{name}_conv2", dtype=dtype)
    return layers.Add(name=sum_name or f"{name}_sum", dtype=dtype)([x, shortcut])
