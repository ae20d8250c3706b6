"""Regressor from a student's map to the shape of a teacher's: Romero et al., ICLR 2015, https://arxiv.org/abs/1412.6550."""

import keras
from keras import layers

from keras_wsl.adapters.layers import convolution, normalization


@keras.saving.register_keras_serializable("keras_wsl")
class Regressor(keras.layers.Layer):
    """A convolution, batch normalization and optionally a ReLU, which convert a map to another shape.

    If the map is twice as high, the convolution is 3 x 3 with stride 2. If it is half as high, the convolution is a
    transposed 4 x 4 with stride 2. Otherwise, its kernel size is chosen such that the output has the target height; it
    is 1 x 1 for equal heights.

    Args:
        shape: `(batch, height, width, channels)` of the output. The batch is ignored.
        use_relu: Whether the last operation is a ReLU.
        name: The layer's name.

    Raises:
        ValueError: When built for an input for which no such convolution exists.
    """

    def __init__(self, shape, *, use_relu=True, name="regressor"):
        super().__init__(name=name, dtype="float32")
        self.shape = tuple(shape)
        self.use_relu = bool(use_relu)

    def build(self, input_shape):
        """Create the layers."""
        heights, widths = zip(input_shape[1:3], self.shape[1:3])
        arguments = {None}
        if None not in heights + widths:
            arguments = {self._convolution_arguments(*sizes) for sizes in (heights, widths)}
        if None in arguments or len(arguments) > 1:
            raise ValueError(
                "A regressor must halve, double or trim both sides alike. Received: a map of "
                f"{tuple(input_shape[1:3])} for the shape {self.shape[1:3]}. Choose layers whose maps have such sizes."
            )
        ((kernel_size, strides, transposed),) = arguments
        self.convolution = convolution(
            self.shape[-1],
            kernel_size,
            input_shape[-1],
            strides=strides,
            transposed=transposed,
            padding="same" if transposed else "valid",
            name="convolution",
        )
        # "same" would pad even sizes on the right and the bottom only.
        self.padding = layers.ZeroPadding2D(1 if strides == 2 and not transposed else 0, dtype="float32")
        self.normalization = normalization(name="normalization")
        self.convolution.build(self.padding.compute_output_shape(input_shape))
        self.normalization.build((None, *self.shape[1:]))

    @staticmethod
    def _convolution_arguments(size, target):
        """Return `(kernel size, strides, transposed)` that convert a size to the target; `None` if impossible."""
        if size == 2 * target:
            return 3, 2, False
        if 2 * size == target:
            return 4, 2, True
        return (1 + size - target, 1, False) if size >= target else None

    def call(self, maps):
        """Convert a map: `(batch, height, width, channels)` to `(batch, *shape[1:])`."""
        maps = self.normalization(self.convolution(self.padding(maps)))
        return keras.ops.relu(maps) if self.use_relu else maps

    def get_config(self):
        """Return the constructor's arguments."""
        return {"shape": self.shape, "use_relu": self.use_relu, "name": self.name}
