"""Attention-based fusion: Chen et al., CVPR 2021, https://arxiv.org/abs/2104.09044."""

import keras
from keras import ops

from keras_wsl.adapters.layers import convolution, normalization


@keras.saving.register_keras_serializable("keras_wsl")
class AttentionFusion(keras.layers.Layer):
    """Joins a student's map with what comes from the deeper ones, and brings both to a teacher's map.

    Args:
        filters: Integer, the channels of what is handed on.
        shape: `(batch, height, width, channels)` of the teacher's map; the batch does not matter.
        fuse: Whether something comes from a deeper map.
        name: The layer's name.
    """

    def __init__(self, filters, shape, *, fuse, name="fusion"):
        super().__init__(name=name, dtype="float32")
        self.filters, self.shape, self.fuse = filters, tuple(shape), bool(fuse)

    def build(self, input_shape):
        """Makes the layers; they start as He's uniform initialization with slope 1 has it."""
        uniform = keras.initializers.VarianceScaling(1.0, "fan_in", "uniform")
        options = {"use_bias": False, "initializer": uniform}
        self.entry = convolution(self.filters, 1, input_shape[-1], name="entry", **options)
        self.entry_norm = normalization(name="entry_norm")
        self.exit = convolution(self.shape[-1], 3, self.filters, name="exit", **options)
        self.exit_norm = normalization(name="exit_norm")
        inner = (*input_shape[:-1], self.filters)
        self.entry.build(input_shape)
        self.entry_norm.build(inner)
        if self.fuse:
            self.attention = convolution(2, 1, 2 * self.filters, name="attention")
            self.attention.build((*inner[:-1], 2 * self.filters))
        self.exit.build((*self.shape[:-1], self.filters))
        self.exit_norm.build(self.shape)

    def call(self, maps, deeper=None):
        """What is compared with the teacher's map, and what is handed on to the next shallower one.

        Args:
            maps: Floats, shape `(batch, height, width, channels)`.
            deeper: `None`, or floats, shape `(batch, lower height, lower width, filters)`.

        Returns:
            Floats of shape `(batch, *shape[1:])`, and of shape `(batch, *shape[1:3], filters)`.
        """
        maps = self.entry_norm(self.entry(maps))
        if self.fuse:
            deeper = nearest(deeper, maps.shape[1:3])
            share = ops.sigmoid(self.attention(ops.concatenate([maps, deeper], axis=-1)))
            maps = maps * share[..., :1] + deeper * share[..., 1:]
        maps = nearest(maps, self.shape[1:3])
        return self.exit_norm(self.exit(maps)), maps

    def get_config(self):
        """The constructor's arguments."""
        return {"filters": self.filters, "shape": self.shape, "fuse": self.fuse, "name": self.name}


def nearest(maps, size):
    """`maps` resized to `size` by their nearest neighbours, the one at $\\lfloor i H / h \\rfloor$."""
    for axis, (old, new) in enumerate(zip(maps.shape[1:3], size), start=1):
        if old != new:
            maps = ops.take(maps, [i * old // new for i in range(new)], axis=axis)
    return maps
