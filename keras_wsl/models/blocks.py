"""Layers with the arguments of the reference networks, which differ from Keras's defaults."""

import keras
from keras import layers


def uniform(fan_in):
    r"""Return PyTorch's default initializer of kernels and biases, $U(\pm 1 / \sqrt{\text{fan in}})$.

    Args:
        fan_in: Integer, the number of inputs per output: $k^2 c_{in}$ divided by the groups, 9 for a depthwise 3x3.

    Returns:
        An initializer. Use one per layer, because it returns the same values again.
    """
    bound = fan_in**-0.5
    return keras.initializers.RandomUniform(-bound, bound)


def convolution(x, filters, kernel_size, *, strides=1, use_bias=False, initializer=None, name, dtype):
    r"""Apply a convolution padded by `kernel_size // 2` on every side.

    Args:
        x: Floats, shape `(batch, height, width, channels)`.
        filters: Integer, the number of output channels.
        kernel_size: 1 or 3.
        strides: 1 or 2.
        use_bias: Boolean. The bias is initialized to 0.
        initializer: Initializer of the kernel. `None` is $N(0, 2 / (k^2 c_{out}))$, not truncated.
        name: The layer's name.
        dtype: Policy or `None`.

    Returns:
        Floats, shape `(batch, ceil(height / strides), ceil(width / strides), filters)`.
    """
    x, padding = _pad(x, kernel_size, strides, name=name, dtype=dtype)
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
    """Apply a depthwise 3x3 convolution without bias, padded by 1 on every side.

    Args:
        x: Floats, shape `(batch, height, width, channels)`.
        strides: 1 or 2.
        initializer: Initializer of the kernel. It must not depend on the fans: Keras uses 9 times the channels as fan
            in and 9 as fan out, PyTorch the reverse.
        name: The layer's name.
        dtype: Policy or `None`.

    Returns:
        Floats, shape `(batch, ceil(height / strides), ceil(width / strides), channels)`.
    """
    x, padding = _pad(x, 3, strides, name=name, dtype=dtype)
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


def _pad(x, kernel_size, strides, *, name, dtype):
    """Return the input and the convolution's `padding`, which together pad by `kernel_size // 2` on every side."""
    if strides == 1:
        return x, "same"
    if kernel_size == 3:
        # "same" would pad even sizes only on the right and the bottom.
        x = layers.ZeroPadding2D(1, data_format="channels_last", name=f"{name}_padding", dtype=dtype)(x)
    return x, "valid"


def normalization(x, *, name, dtype):
    """Apply batch normalization with epsilon 1e-5 and momentum 0.9, PyTorch's defaults (there the momentum is 0.1).

    The moving variance averages the biased variances of the batches. PyTorch's is n / (n - 1) times as large, where n
    is the number of values of a channel in a batch.
    """
    return layers.BatchNormalization(epsilon=1e-5, momentum=0.9, name=name, dtype=dtype)(x)


def relu(x, *, name, dtype):
    """Apply a ReLU as a separate layer, so that its output has a name."""
    return layers.ReLU(name=name, dtype=dtype)(x)


def shuffle(x, groups, *, name, dtype):
    """Shuffle the channels from the order `(groups, n)` to `(n, groups)`, which mixes the groups.

    Args:
        x: Floats, shape `(batch, height, width, channels)`. All but the batch size must be known.
        groups: Integer, a divisor of the number of channels.
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
    """Raise `ValueError` if the height or the width is not known."""
    if None in input_shape:
        raise ValueError(
            f"`input_shape` of {name} must have a height and a width, such as (32, 32, 3), because it reshapes feature "
            f"maps. Received: input_shape={input_shape!r}."
        )


def head(x, classes, *, initializer=None, bias_initializer, dtype):
    """Add the endpoints `pooled`, a global mean, and `logits`.

    Args:
        x: Floats, shape `(batch, height, width, channels)`.
        classes: Integer.
        initializer: Initializer of the logits' kernel. `None` is `uniform(channels)`.
        bias_initializer: Initializer of the logits' bias.
        dtype: Policy or `None`.

    Returns:
        Floats, shape `(batch, classes)`.
    """
    x = layers.GlobalAveragePooling2D(data_format="channels_last", name="pooled", dtype=dtype)(x)
    return logits(x, classes, initializer=initializer or uniform(x.shape[-1]), bias_initializer=bias_initializer)


def logits(x, classes, *, initializer, bias_initializer):
    """Add the endpoint `logits`, in float32 for any policy, to the embedding `x`, shape `(batch, channels)`."""
    return layers.Dense(
        classes,
        kernel_initializer=initializer,
        bias_initializer=bias_initializer,
        name="logits",
        dtype="float32",  # Softmax and losses of float16 logits can overflow.
    )(x)
