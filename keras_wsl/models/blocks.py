"""Layers with the settings of the reference networks, which are not Keras's defaults."""

import keras
from keras import layers


def convolution(x, filters, kernel_size, *, strides=1, name, dtype):
    r"""A convolution without bias, padded by `kernel_size // 2` on every side.

    The kernel starts as $N(0, 2 / (k^2 c_{out}))$, not truncated.

    Args:
        x: Floats, shape `(batch, height, width, channels)`.
        filters: Integer, the channels of the result.
        kernel_size: 1 or 3.
        strides: 1 or 2.
        name: The layer's name.
        dtype: Policy or `None`.

    Returns:
        Floats, shape `(batch, ceil(height / strides), ceil(width / strides), filters)`.
    """
    padding = "same" if strides == 1 else "valid"
    if padding == "valid" and kernel_size == 3:
        # "same" would pad even sizes on the right and the bottom alone.
        x = layers.ZeroPadding2D(1, data_format="channels_last", name=f"{name}_padding", dtype=dtype)(x)
    return layers.Conv2D(
        filters,
        kernel_size,
        strides=strides,
        padding=padding,
        data_format="channels_last",
        use_bias=False,
        kernel_initializer=keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal"),
        name=name,
        dtype=dtype,
    )(x)


def normalization(x, *, name, dtype):
    """Batch normalization with epsilon 1e-5 and momentum 0.9, PyTorch's defaults (there the momentum is 0.1).

    The moving variance is of the biased variances of the batches; PyTorch's is n / (n - 1) times as large, where n is
    the number of values of a channel in a batch.
    """
    return layers.BatchNormalization(epsilon=1e-5, momentum=0.9, name=name, dtype=dtype)(x)


def relu(x, *, name, dtype):
    """A rectifier as a layer of its own, so that its output has a name."""
    return layers.ReLU(name=name, dtype=dtype)(x)


def head(x, classes, *, bias_initializer, dtype):
    r"""The endpoints `pooled`, a global mean, and `logits`, in float32 whatever the policy.

    The kernel starts as $U(\pm 1 / \sqrt{c_{in}})$.

    Args:
        x: Floats, shape `(batch, height, width, channels)`.
        classes: Integer.
        bias_initializer: Initializer of the logits' bias.
        dtype: Policy or `None`.

    Returns:
        Floats, shape `(batch, classes)`.
    """
    x = layers.GlobalAveragePooling2D(data_format="channels_last", name="pooled", dtype=dtype)(x)
    return layers.Dense(
        classes,
        kernel_initializer=keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform"),
        bias_initializer=bias_initializer,
        name="logits",
        dtype="float32",  # Softmax and losses of float16 logits overflow.
    )(x)
