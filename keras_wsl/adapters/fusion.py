"""Attention-based fusion: Chen et al., CVPR 2021, https://arxiv.org/abs/2104.09044."""

import keras
from keras import ops

from keras_wsl.adapters.layers import convolution, normalization


@keras.saving.register_keras_serializable("keras_wsl")
class AttentionFusion(keras.layers.Layer):
    """Fusion of a student's map with the output for the deeper maps, projected to the shape of a teacher's map.

    Args:
        filters: Integer, the number of channels of the fused map.
        shape: `(batch, height, width, channels)` of the teacher's map. The batch is ignored.
        has_deeper_input: Whether there is a fused map of a deeper layer.
        name: The layer's name.
    """

    def __init__(self, filters, shape, *, has_deeper_input, name="fusion"):
        super().__init__(name=name, dtype="float32")
        self.filters, self.shape, self.has_deeper_input = filters, tuple(shape), bool(has_deeper_input)

    def build(self, input_shape):
        """Create the layers. Kernels are initialized by He's uniform initialization with slope 1."""
        uniform = keras.initializers.VarianceScaling(1.0, "fan_in", "uniform")
        options = {"use_bias": False, "initializer": uniform}
        self.input_projection = convolution(self.filters, 1, input_shape[-1], name="input_projection", **options)
        self.input_normalization = normalization(name="input_normalization")
        self.output_projection = convolution(self.shape[-1], 3, self.filters, name="output_projection", **options)
        self.output_normalization = normalization(name="output_normalization")
        projected_shape = (*input_shape[:-1], self.filters)
        self.input_projection.build(input_shape)
        self.input_normalization.build(projected_shape)
        if self.has_deeper_input:
            self.attention = convolution(2, 1, 2 * self.filters, name="attention")
            self.attention.build((*projected_shape[:-1], 2 * self.filters))
        self.output_projection.build((*self.shape[:-1], self.filters))
        self.output_normalization.build(self.shape)

    def call(self, maps, deeper=None):
        """Return the map to compare with the teacher's, and the fused map for the next shallower layer.

        Args:
            maps: Floats, shape `(batch, height, width, channels)`.
            deeper: `None`, or floats, shape `(batch, lower height, lower width, filters)`.

        Returns:
            Floats of shape `(batch, *shape[1:])`, and of shape `(batch, *shape[1:3], filters)`.
        """
        maps = self.input_normalization(self.input_projection(maps))
        if self.has_deeper_input:
            deeper = resize_nearest(deeper, maps.shape[1:3])
            weights = ops.sigmoid(self.attention(ops.concatenate([maps, deeper], axis=-1)))
            maps = maps * weights[..., :1] + deeper * weights[..., 1:]
        maps = resize_nearest(maps, self.shape[1:3])
        return self.output_normalization(self.output_projection(maps)), maps

    def get_config(self):
        """Return the constructor's arguments."""
        return {
            "filters": self.filters,
            "shape": self.shape,
            "has_deeper_input": self.has_deeper_input,
            "name": self.name,
        }


def resize_nearest(maps, size):
    r"""Resize `maps` to `size` by nearest-neighbor interpolation with the index $\lfloor i H / h \rfloor$."""
    for axis, (old, new) in enumerate(zip(maps.shape[1:3], size), start=1):
        if old != new:
            maps = ops.take(maps, [i * old // new for i in range(new)], axis=axis)
    return maps
