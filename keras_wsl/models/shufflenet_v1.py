"""ShuffleNet for CIFAR: Zhang et al., CVPR 2018, https://arxiv.org/abs/1707.01083.

With a 1x1 stem and a ReLU after the depthwise convolution, unlike the paper, as in
https://github.com/HobbitLong/RepDistiller (`models/ShuffleNetv1.py`).
"""

import keras
from keras import layers

from keras_wsl.models import blocks

_GROUPS = 3


def shufflenet_v1(*, classes, input_shape, dtype=None, name):
    r"""Build a network of three stages of 4, 8 and 4 units, with 240, 480 and 960 channels.

    $$y = \mathrm{ReLU}(G_2 * \mathrm{ReLU}(D * \mathrm{shuffle}(\mathrm{ReLU}(G_1 * x))) + x)$$

    $G_1$ and $G_2$ are 1x1 convolutions in 3 groups (the first of all has one) and $D$ is a depthwise 3x3 one, each
    with batch normalization. The first unit of a stage has strides 2, and concatenates instead of adding: its shortcut
    is the mean of 3x3 values, including padded zeros.

    Endpoints: `stem` and `block1` to `block3` are the last ReLU of their stage; `block1_preact` to `block3_preact` the
    sums before it; `pooled`; `logits`.

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
    initializer = blocks.uniform(input_shape[-1])
    x = blocks.convolution(inputs, 24, 1, initializer=initializer, name="stem_conv", dtype=dtype)
    x = blocks.normalization(x, name="stem_bn", dtype=dtype)
    x = blocks.relu(x, name="stem", dtype=dtype)
    for stage, (filters, units) in enumerate(((240, 4), (480, 8), (960, 4)), start=1):
        for index in range(units):
            end = f"block{stage}" if index == units - 1 else None
            x = _unit(
                x,
                filters,
                first_groups=1 if stage == 1 and index == 0 else _GROUPS,
                strides=2 if index == 0 else 1,
                name=f"block{stage}_unit{index}",
                sum_name=f"{end}_preact" if end else None,
                output_name=end,
                dtype=dtype,
            )
    bias_initializer = blocks.uniform(x.shape[-1])
    logits = blocks.head(x, classes, bias_initializer=bias_initializer, dtype=dtype)
    return keras.Model(inputs, logits, name=name)


def _unit(x, filters, *, first_groups, strides, name, sum_name, output_name, dtype):
    """Apply two grouped convolutions with a shuffle and a depthwise one between them, and their shortcut."""
    shortcut = x
    # With strides, the shortcut's channels are part of the output.
    residual_filters = filters - (x.shape[-1] if strides == 2 else 0)
    filters = residual_filters // 4
    x = _pointwise(x, filters, first_groups, name=f"{name}_conv1", dtype=dtype)
    x = blocks.normalization(x, name=f"{name}_bn1", dtype=dtype)
    x = blocks.relu(x, name=f"{name}_relu1", dtype=dtype)
    if first_groups > 1:
        x = blocks.shuffle(x, first_groups, name=f"{name}_shuffle", dtype=dtype)
    initializer = blocks.uniform(9)
    x = blocks.depthwise(x, strides=strides, initializer=initializer, name=f"{name}_depthwise", dtype=dtype)
    x = blocks.normalization(x, name=f"{name}_bn2", dtype=dtype)
    x = blocks.relu(x, name=f"{name}_relu2", dtype=dtype)
    x = _pointwise(x, residual_filters, _GROUPS, name=f"{name}_conv2", dtype=dtype)
    x = blocks.normalization(x, name=f"{name}_bn3", dtype=dtype)
    if strides == 2:
        kwargs = {"data_format": "channels_last", "dtype": dtype}
        # Zeros of a separate layer count in the mean; those of the pool would not.
        shortcut = layers.ZeroPadding2D(1, name=f"{name}_shortcut_padding", **kwargs)(shortcut)
        shortcut = layers.AveragePooling2D(3, 2, name=f"{name}_shortcut_pool", **kwargs)(shortcut)
        x = layers.Concatenate(name=f"{name}_concatenation", dtype=dtype)([x, shortcut])
    else:
        x = layers.Add(name=sum_name or f"{name}_sum", dtype=dtype)([x, shortcut])
    return blocks.relu(x, name=output_name or f"{name}_relu3", dtype=dtype)


def _pointwise(x, filters, groups, *, name, dtype):
    """Apply a 1x1 convolution without bias, in groups.

    It is one matrix product per group. `Conv2D(groups=3)` computes the same, but on TensorFlow it is a separate XLA
    function, which is compiled again in every eager step.
    """
    height, width, channels = x.shape[1:]
    initializer = blocks.uniform(channels // groups)
    if groups == 1:
        return blocks.convolution(x, filters, 1, initializer=initializer, name=name, dtype=dtype)
    x = layers.Reshape((height * width, groups, channels // groups), name=f"{name}_groups", dtype=dtype)(x)
    x = layers.EinsumDense(
        "bngi,gio->bngo",
        (height * width, groups, filters // groups),
        kernel_initializer=initializer,
        name=name,
        dtype=dtype,
    )(x)
    return layers.Reshape((height, width, filters), name=f"{name}_map", dtype=dtype)(x)
