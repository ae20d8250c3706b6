"""Layers with the settings of the reference networks, which are not Keras's defaults."""

import keras
from keras import layers


def uniform(fan_in):
    r"""PyTorch's default for kernels and biases, $U(\pm 1 / \sqrt{\text{fan in}})$.

    Args:
        fan_in: Integer, the inputs of one output: $k^2 c_{in}$ divided by the groups, 9 for a depthwise 3x3.

    Returns:
        An initializer; two layers need two of them, as one gives the same values again.
    """
    bound = fan_in**-0.5
    return keras.initializers.RandomUniform(-bound, bound)


def convolution(x, filters, kernel_size, *, strides=1, use_bias=False, initializer=None, name, dtype):
    r"""A convolution padded by `kernel_size // 2` on every side.

    Args:
        x: Floats, shape `(batch, height, width, channels)`.
        filters: Integer, the channels of the result.
        kernel_size: 1 or 3.
        strides: 1 or 2.
        use_bias: Boolean; the bias starts at 0.
        initializer: The kernel's; `None` is $N(0, 2 / (k^2 c_{out}))$, not truncated.
        name: The layer's name.
        dtype: Policy or `None`.

    Returns:
        Floats, shape `(batch, ceil(height / strides), ceil(width / strides), filters)`.
    """
    x, padding = _padded(x, kernel_size, strides, name=name, dtype=dtype)
    return layers.Conv2D(
        filters,
        kernel_size,
        strides=strides,
        padding=padding,
        data_format="channels_last",
        use_bias=use_bias,
        kernel_initializer=initializer or keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal"),
        name=name,
        dtype=dtype,
    )(x)


def depthwise(x, *, strides=1, initializer, name, dtype):
    """A 3x3 convolution of every channel with its own kernel, without bias, padded by 1 on every side.

    Args:
        x: Floats, shape `(batch, height, width, channels)`.
        strides: 1 or 2.
        initializer: The kernel's. Keras takes 9 times the channels for its fan in and 9 for its fan out, PyTorch the
            other way round; so it should be one that asks for neither.
        name: The layer's name.
        dtype: Policy or `None`.

    Returns:
        Floats, shape `(batch, ceil(height / strides), ceil(width / strides), channels)`.
    """
    x, padding = _padded(x, 3, strides, name=name, dtype=dtype)
    return layers.DepthwiseConv2D(
        3,
        strides=strides,
        padding=padding,
        data_format="channels_last",
        use_bias=False,
        depthwise_initializer=initializer,
        name=name,
        dtype=dtype,
    )(x)


def _padded(x, kernel_size, strides, *, name, dtype):
    """The input and the convolution's own padding, together `kernel_size // 2` on every side."""
    if strides == 1:
        return x, "same"
    if kernel_size == 3:
        # "same" would pad even sizes on the right and the bottom alone.
        x = layers.ZeroPadding2D(1, data_format="channels_last", name=f"{name}_padding", dtype=dtype)(x)
    return x, "valid"


def normalization(x, *, name, dtype):
    """Batch normalization with epsilon 1e-5 and momentum 0.9, PyTorch's defaults (there the momentum is 0.1).

    The moving variance is of the biased variances of the batches; PyTorch's is n / (n - 1) times as large, where n is
    the number of values of a channel in a batch.
    """
    return layers.BatchNormalization(epsilon=1e-5, momentum=0.9, name=name, dtype=dtype)(x)


def relu(x, *, name, dtype):
    """A rectifier as a layer of its own, so that its output has a name."""
    return layers.ReLU(name=name, dtype=dtype)(x)


def shuffle(x, groups, *, name, dtype):
    """The channels `(groups, n)` in the order `(n, groups)`, so that the next groups see all of these.

    Args:
        x: Floats, shape `(batch, height, width, channels)`; all but the batch are known.
        groups: Integer, a divisor of the channels.
        name: The last layer's name.
        dtype: Policy or `None`.

    Returns:
        Floats of the same shape.
    """
    height, width, channels = x.shape[1:]
    x = layers.Reshape((height * width, groups, channels // groups), name=f"{name}_groups", dtype=dtype)(x)
    x = layers.Permute((1, 3, 2), name=f"{name}_permutation", dtype=dtype)(x)
    return layers.Reshape((height, width, channels), name=name, dtype=dtype)(x)


def check_fixed_size(name, input_shape):
    """A `ValueError` where the height or the width is not known."""
    if None in input_shape:
        raise ValueError(
            f"{name} needs a height and a width, as in (32, 32, 3), since it reshapes its maps. "
            f"Received: input_shape={input_shape!r}."
        )


def head(x, classes, *, initializer=None, bias_initializer, dtype):
    """The endpoints `pooled`, a global mean, and `logits`.

    Args:
        x: Floats, shape `(batch, height, width, channels)`.
        classes: Integer.
        initializer: Initializer of the logits' kernel; `None` is `uniform(channels)`.
        bias_initializer: Initializer of the logits' bias.
        dtype: Policy or `None`.

    Returns:
        Floats, shape `(batch, classes)`.
    """
    x = layers.GlobalAveragePooling2D(data_format="channels_last", name="pooled", dtype=dtype)(x)
    return logits(x, classes, initializer=initializer or uniform(x.shape[-1]), bias_initializer=bias_initializer)


def logits(x, classes, *, initializer, bias_initializer):
    """The endpoint `logits`, in float32 whatever the policy, of the embedding `x`, shape `(batch, channels)`."""
    return layers.Dense(
        classes,
        kernel_initializer=initializer,
        bias_initializer=bias_initializer,
        name="logits",
        dtype="float32",  # Softmax and losses of float16 logits overflow.
    )(x)
