"""Residual networks for CIFAR: He et al., CVPR 2016, https://arxiv.org/abs/1512.03385, section 4.2.

With 1x1 convolutions in the shortcuts, as in https://github.com/HobbitLong/RepDistiller (`models/resnet.py`, and
`models/resnetv2.py` for the bottlenecks).
"""

import keras
from keras import layers

from keras_wsl.models import blocks


def resnet(*, depth, stem_filters, filters, classes, input_shape, dtype=None, name):
    r"""Build a network of three stages of n blocks, where `depth = 6 n + 2`.

    $$y = \mathrm{ReLU}(\mathrm{BN}(W_2 * \mathrm{ReLU}(\mathrm{BN}(W_1 * x))) + s(x))$$

    The shortcut $s$ is a 1x1 convolution with batch normalization if the shape changes, else the identity.

    Endpoints: `stem` and `block1` to `block3` are the last ReLU of their stage; `block1_preact` to `block3_preact` the
    sums before it; `pooled`; `logits`.

    Args:
        depth: Integer, 6 n + 2.
        stem_filters: Integer, the number of channels of the first convolution.
        filters: The numbers of channels of the three stages.
        classes: Integer.
        input_shape: `(height, width, channels)`. Inputs are normalized floats.
        dtype: Dtype policy of all layers except `logits`, which is float32. `None` for the global policy.
        name: The model's name.

    Returns:
        A `keras.Model` that maps `(batch, height, width, channels)` to logits, `(batch, classes)`.
    """
    inputs = keras.Input(input_shape, name="image")
    x = blocks.convolution(inputs, stem_filters, 3, name="stem_conv", dtype=dtype)
    x = blocks.normalization(x, name="stem_bn", dtype=dtype)
    x = blocks.relu(x, name="stem", dtype=dtype)
    units = (depth - 2) // 6
    for stage, stage_filters in enumerate(filters, start=1):
        for index in range(units):
            # The last sum and the last ReLU of a stage are endpoints.
            end = f"block{stage}" if index == units - 1 else None
            x = _unit(
                x,
                stage_filters,
                strides=2 if stage > 1 and index == 0 else 1,
                name=f"block{stage}_unit{index}",
                sum_name=f"{end}_preact" if end else None,
                output_name=end,
                dtype=dtype,
            )
    logits = blocks.head(x, classes, bias_initializer=blocks.uniform(filters[-1]), dtype=dtype)
    return keras.Model(inputs, logits, name=name)


def bottleneck_resnet(*, units, classes, input_shape, dtype=None, name):
    r"""Build a network of four stages of bottlenecks, with 256, 512, 1024 and 2048 channels.

    $$y = \mathrm{ReLU}(\mathrm{BN}(W_3 * a_2) + s(x)), \qquad a_2 = \mathrm{ReLU}(\mathrm{BN}(W_2 * a_1)), \qquad
      a_1 = \mathrm{ReLU}(\mathrm{BN}(W_1 * x))$$

    $W_1$ and $W_3$ are 1x1 convolutions, $W_2$ is a 3x3 one with a quarter of the channels and the strides of the unit.
    The shortcut $s$ is a 1x1 convolution with batch normalization if the shape changes, else the identity. The stages
    are those of the networks for ImageNet. The stem is for small images: 3x3 without strides or pool.

    Endpoints: `stem` and `block1` to `block4` are the last ReLU of their stage; `block1_preact` to `block4_preact` the
    sums before it; `pooled`; `logits`.

    Args:
        units: The numbers of units of the four stages. (3, 4, 6, 3) makes 50 layers.
        classes: Integer.
        input_shape: `(height, width, channels)`. Inputs are normalized floats.
        dtype: Dtype policy of all layers except `logits`, which is float32. `None` for the global policy.
        name: The model's name.

    Returns:
        A `keras.Model` that maps `(batch, height, width, channels)` to logits, `(batch, classes)`.
    """
    inputs = keras.Input(input_shape, name="image")
    x = blocks.convolution(inputs, 64, 3, name="stem_conv", dtype=dtype)
    x = blocks.normalization(x, name="stem_bn", dtype=dtype)
    x = blocks.relu(x, name="stem", dtype=dtype)
    for stage, stage_units in enumerate(units, start=1):
        for index in range(stage_units):
            end = f"block{stage}" if index == stage_units - 1 else None
            x = _bottleneck(
                x,
                32 * 2**stage,
                strides=2 if stage > 1 and index == 0 else 1,
                name=f"block{stage}_unit{index}",
                sum_name=f"{end}_preact" if end else None,
                output_name=end,
                dtype=dtype,
            )
    logits = blocks.head(x, classes, bias_initializer=blocks.uniform(x.shape[-1]), dtype=dtype)
    return keras.Model(inputs, logits, name=name)


def _unit(x, filters, *, strides, name, sum_name, output_name, dtype):
    """Apply two convolutions and their shortcut, with a ReLU after the sum."""
    shortcut = _shortcut(x, filters, strides=strides, name=name, dtype=dtype)
    x = blocks.convolution(x, filters, 3, strides=strides, name=f"{name}_conv1", dtype=dtype)
    x = blocks.normalization(x, name=f"{name}_bn1", dtype=dtype)
    x = blocks.relu(x, name=f"{name}_relu1", dtype=dtype)
    x = blocks.convolution(x, filters, 3, name=f"{name}_conv2", dtype=dtype)
    x = blocks.normalization(x, name=f"{name}_bn2", dtype=dtype)
    x = layers.Add(name=sum_name or f"{name}_sum", dtype=dtype)([x, shortcut])
    return blocks.relu(x, name=output_name or f"{name}_relu2", dtype=dtype)


def _bottleneck(x, filters, *, strides, name, sum_name, output_name, dtype):
    """Three convolutions and their shortcut; the last has four times the filters, and the ReLU is after the sum."""
    shortcut = _shortcut(x, 4 * filters, strides=strides, name=name, dtype=dtype)
    x = blocks.convolution(x, filters, 1, name=f"{name}_conv1", dtype=dtype)
    x = blocks.normalization(x, name=f"{name}_bn1", dtype=dtype)
    x = blocks.relu(x, name=f"{name}_relu1", dtype=dtype)
    x = blocks.convolution(x, filters, 3, strides=strides, name=f"{name}_conv2", dtype=dtype)
    x = blocks.normalization(x, name=f"{name}_bn2", dtype=dtype)
    x = blocks.relu(x, name=f"{name}_relu2", dtype=dtype)
    x = blocks.convolution(x, 4 * filters, 1, name=f"{name}_conv3", dtype=dtype)
    x = blocks.normalization(x, name=f"{name}_bn3", dtype=dtype)
    x = layers.Add(name=sum_name or f"{name}_sum", dtype=dtype)([x, shortcut])
    return blocks.relu(x, name=output_name or f"{name}_relu3", dtype=dtype)


def _shortcut(x, filters, *, strides, name, dtype):
    """Apply a 1x1 convolution with batch normalization if the shape changes, else the identity."""
    if strides == 1 and x.shape[-1] == filters:
        return x
    x = blocks.convolution(x, filters, 1, strides=strides, name=f"{name}_shortcut_conv", dtype=dtype)
    return blocks.normalization(x, name=f"{name}_shortcut_bn", dtype=dtype)
