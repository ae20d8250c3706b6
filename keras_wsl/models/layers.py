"""Layers as the reference networks have them: https://github.com/HobbitLong/RepDistiller."""

import math

import keras


def conv(x, filters, kernel, *, stride=1, name):
    """A convolution without bias, He-normal by its outputs, padded alike on all sides as in PyTorch."""
    padding = "same"
    if stride > 1 and kernel > 1:
        # "same" would pad even sizes by (0, 1) here.
        x = keras.layers.ZeroPadding2D(kernel // 2, name=f"{name}_pad")(x)
        padding = "valid"
    initializer = keras.initializers.RandomNormal(stddev=math.sqrt(2 / (kernel**2 * filters)))
    return keras.layers.Conv2D(
        filters,
        kernel,
        strides=stride,
        padding=padding,
        use_bias=False,
        kernel_initializer=initializer,
        name=name,
    )(x)


def norm(x, *, name):
    """Batch normalization with PyTorch's constants: its momentum 0.1 is 0.9 here."""
    return keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=name)(x)


def relu(x, *, name):
    """ReLU."""
    return keras.layers.ReLU(name=name)(x)


def head(x, classes, *, zero_bias):
    """Endpoints `pooled` and `logits`, the latter in float32 under any policy; PyTorch's initialisation."""
    x = keras.layers.GlobalAveragePooling2D(name="pooled")(x)
    bound = 1 / math.sqrt(x.shape[-1])
    return keras.layers.Dense(
        classes,
        kernel_initializer=keras.initializers.RandomUniform(-bound, bound),
        bias_initializer="zeros" if zero_bias else keras.initializers.RandomUniform(-bound, bound),
        dtype="float32",
        name="logits",
    )(x)
