"""Factor transfer, which compresses feature maps to factors: Kim et al., NeurIPS 2018, https://arxiv.org/abs/1802.04977."""

import itertools

import keras

from keras_wsl.adapters.layers import convolution, normalization

NEGATIVE_SLOPE = 0.1  # Of the leaky ReLUs.


def _make_convolutions(channels, *, transposed=False, name):
    """Return three 3 x 3 convolutions between the four numbers of `channels`."""
    return [
        convolution(filters, 3, in_filters, transposed=transposed, name=f"{name}{i}")
        for i, (in_filters, filters) in enumerate(itertools.pairwise(channels))
    ]


@keras.saving.register_keras_serializable("keras_wsl")
class Paraphraser(keras.layers.Layer):
    """An autoencoder of the teacher's maps, without normalization. Its code, the factor, has half the channels.

    Args:
        name: The layer's name.
    """

    def __init__(self, *, name="paraphraser"):
        super().__init__(name=name, dtype="float32")

    def build(self, input_shape):
        """Create the layers."""
        channels = input_shape[-1]
        code = channels // 2
        self.encoder = _make_convolutions((channels, channels, code, code), name="encoder")
        self.decoder = _make_convolutions((code, code, channels, channels), transposed=True, name="decoder")
        for layer in self.encoder + self.decoder:
            layer.build(input_shape)
            input_shape = (*input_shape[:-1], layer.filters)

    def call(self, maps):
        """Return the factor: `(batch, height, width, channels)` to `(batch, height, width, channels // 2)`."""
        for layer in self.encoder:
            maps = keras.ops.leaky_relu(layer(maps), NEGATIVE_SLOPE)
        return maps

    def decode(self, factor):
        """Return the maps reconstructed from the factor."""
        for layer in self.decoder:
            factor = keras.ops.leaky_relu(layer(factor), NEGATIVE_SLOPE)
        return factor

    def get_config(self):
        """Return the constructor's arguments."""
        return {"name": self.name}


@keras.saving.register_keras_serializable("keras_wsl")
class Translator(keras.layers.Layer):
    """Three convolutions from a student's map to a factor, each with batch normalization and a leaky ReLU.

    Args:
        filters: Integer, the number of channels of the factor.
        name: The layer's name.
    """

    def __init__(self, filters, *, name="translator"):
        super().__init__(name=name, dtype="float32")
        self.filters = filters

    def build(self, input_shape):
        """Create the layers."""
        channels = input_shape[-1]
        self.convolutions = _make_convolutions((channels, channels, self.filters, self.filters), name="convolution")
        self.normalizations = [normalization(name=f"normalization{i}") for i in range(3)]
        for layer, norm in zip(self.convolutions, self.normalizations):
            layer.build(input_shape)
            input_shape = (*input_shape[:-1], layer.filters)
            norm.build(input_shape)

    def call(self, maps):
        """Return the factor: `(batch, height, width, channels)` to `(batch, height, width, filters)`."""
        for layer, norm in zip(self.convolutions, self.normalizations):
            maps = keras.ops.leaky_relu(norm(layer(maps)), NEGATIVE_SLOPE)
        return maps

    def get_config(self):
        """Return the constructor's arguments."""
        return {"filters": self.filters, "name": self.name}
