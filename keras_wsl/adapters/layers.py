"""Layers with the settings of the reference code, which are PyTorch's defaults unless it sets others."""

import keras
from keras import layers

_FLOAT32 = {"dtype": "float32"}  # Same as the losses, independent of the networks' dtype policy.


def convolution(filters, kernel_size, in_filters, *, use_bias=True, initializer=None, transposed=False, **kwargs):
    r"""Create a convolution with kernel and bias initialized by $U(\pm 1 / \sqrt{k^2 c_{in}})$.

    Args:
        filters: Integer, the number of output channels.
        kernel_size: Integer.
        in_filters: Integer, the number of input channels.
        use_bias: Whether it has a bias.
        initializer: Initializer of the kernel, instead of the uniform one.
        transposed: Whether it is a transposed convolution.
        **kwargs: Arguments of `keras.layers.Conv2D`, such as `strides`, `padding` and `name`.
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
    r"""Create a dense layer with kernel and bias initialized by $U(\pm 1 / \sqrt{c_{in}})$."""
    initializer = keras.initializers.RandomUniform(-(in_units**-0.5), in_units**-0.5)
    return layers.Dense(units, kernel_initializer=initializer, bias_initializer=initializer, **kwargs, **_FLOAT32)


def embeddings(embedding_dim, student_shape, teacher_shape):
    """Create and build two dense layers from a student's and a teacher's vectors to `embedding_dim`."""
    layer_pair = []
    for role, shape in (("student", student_shape), ("teacher", teacher_shape)):
        layer_pair.append(dense(embedding_dim, shape[-1], name=f"{role}_embedding"))
        layer_pair[-1].build(shape)
    return layer_pair


def normalization(**kwargs):
    """Create batch normalization with epsilon 1e-5 and momentum 0.9."""
    return layers.BatchNormalization(epsilon=1e-5, momentum=0.9, **kwargs, **_FLOAT32)
