"""Layers with the reference code's settings: PyTorch's, where that code sets none."""

import keras
from keras import layers

_FLOAT32 = {"dtype": "float32"}  # Adapters compute as the losses do, whatever the policy of the networks.


def convolution(filters, kernel_size, in_filters, *, use_bias=True, initializer=None, transposed=False, **kwargs):
    r"""A convolution whose kernel and bias start as $U(\pm 1 / \sqrt{k^2 c_{in}})$.

    Args:
        filters: Integer, the channels of the result.
        kernel_size: Integer.
        in_filters: Integer, the channels that it is given.
        use_bias: Whether it has a bias.
        initializer: The kernel's, in place of the uniform one.
        transposed: Whether it is a transposed convolution.
        **kwargs: As of `keras.layers.Conv2D`: `strides`, `padding`, `name`.
    """
    layer = layers.Conv2DTranspose if transposed else layers.Conv2D
    bound = (kernel_size**2 * (filters if transposed else in_filters)) ** -0.5
    return layer(
        filters,
        kernel_size,
        use_bias=use_bias,
        kernel_initializer=initializer or keras.initializers.RandomUniform(-bound, bound),
        bias_initializer=keras.initializers.RandomUniform(-bound, bound),
        data_format="channels_last",
        **{"padding": "same", **kwargs, **_FLOAT32},
    )


def dense(units, in_units, **kwargs):
    r"""A linear layer whose kernel and bias start as $U(\pm 1 / \sqrt{c_{in}})$."""
    bound = keras.initializers.RandomUniform(-(in_units**-0.5), in_units**-0.5)
    return layers.Dense(units, kernel_initializer=bound, bias_initializer=bound, **kwargs, **_FLOAT32)


def embeddings(dimensions, student_shape, teacher_shape):
    """Linear layers from a student's and a teacher's vectors of these shapes to `dimensions`, built."""
    pair = []
    for role, shape in (("student", student_shape), ("teacher", teacher_shape)):
        pair.append(dense(dimensions, shape[-1], name=f"{role}_embedding"))
        pair[-1].build(shape)
    return pair


def normalization(**kwargs):
    """Batch normalization with epsilon 1e-5 and momentum 0.9."""
    return layers.BatchNormalization(epsilon=1e-5, momentum=0.9, **kwargs, **_FLOAT32)
