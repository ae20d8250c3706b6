"""From a student's map to a teacher's: Romero et al., ICLR 2015, https://arxiv.org/abs/1412.6550."""

import keras
from keras import layers

from keras_wsl.adapters.layers import convolution, normalization


@keras.saving.register_keras_serializable("keras_wsl")
class Regressor(keras.layers.Layer):
    """A convolution, batch normalization and, if wanted, a ReLU, which give a map the shape of another.

    Of a map twice as high, the convolution is 3 x 3 with stride 2; of one half as high, a transposed 4 x 4 with stride
    2; else it has the kernel that leaves the wanted height, 1 x 1 where the heights are equal.

    Args:
        shape: `(batch, height, width, channels)` of the map that is wanted; the batch does not matter.
        use_relu: Whether it ends in a ReLU.
        name: The layer's name.

    Raises:
        ValueError: When it is built on a map of which no such convolution gives the wanted one.
    """

    def __init__(self, shape, *, use_relu=True, name="regressor"):
        super().__init__(name=name, dtype="float32")
        self.shape = tuple(shape)
        self.use_relu = bool(use_relu)

    def build(self, input_shape):
        """Makes the layers."""
        heights, widths = zip(input_shape[1:3], self.shape[1:3])
        if None in heights + widths or any(
            self._result(*heights) != self._result(*sizes) or self._result(*sizes) is None
            for sizes in (heights, widths)
        ):
            raise ValueError(
                f"A regressor cannot bring a map of {tuple(input_shape[1:3])} to {self.shape[1:3]}: it halves, doubles "
                "or trims both sides alike. Choose layers whose maps have such sizes."
            )
        kernel_size, strides, transposed = self._result(*heights)
        self.convolution = convolution(
            self.shape[-1],
            kernel_size,
            input_shape[-1],
            strides=strides,
            transposed=transposed,
            padding="same" if transposed else "valid",
            name="convolution",
        )
        # "same" would pad an even size on the right and the bottom alone.
        self.padding = layers.ZeroPadding2D(1 if strides == 2 and not transposed else 0, dtype="float32")
        self.normalization = normalization(name="normalization")
        self.convolution.build(self.padding.compute_output_shape(input_shape))
        self.normalization.build((None, *self.shape[1:]))

    @staticmethod
    def _result(size, wanted):
        """`(kernel size, strides, transposed)` that bring a size to the one that is wanted; `None` if there is none."""
        if size == 2 * wanted:
            return 3, 2, False
        if 2 * size == wanted:
            return 4, 2, True
        return (1 + size - wanted, 1, False) if size >= wanted else None

    def call(self, maps):
        """The map as it is wanted: `(batch, height, width, channels)` to `(batch, *shape[1:])`."""
        maps = self.normalization(self.convolution(self.padding(maps)))
        return keras.ops.relu(maps) if self.use_relu else maps

    def get_config(self):
        """The constructor's arguments."""
        return {"shape": self.shape, "use_relu": self.use_relu, "name": self.name}
