"""The training step of a backend where Keras's own does not do, and the pass of a network that only speaks."""

import keras
import numpy as np

from keras_wsl.backend.base import DefaultTrainer


def step():
    """The class that gives a Distiller its training step on this backend: a mixin before `keras.Model`."""
    if keras.backend.backend() == "tensorflow":
        from keras_wsl.backend.tensorflow.trainer import TensorFlowTrainer

        return TensorFlowTrainer
    if keras.backend.backend() == "jax":
        from keras_wsl.backend.jax.trainer import JaxTrainer

        return JaxTrainer
    return DefaultTrainer


def forward(model, inputs):
    """A model's outputs on a batch in inference mode, by a function that is compiled once for a model.

    Args:
        model: A built `keras.Model`.
        inputs: Arrays or tensors, as the model takes them: one, or a dict or list.

    Returns:
        NumPy arrays, in the model's own structure.
    """
    inputs = _arrays(inputs)
    if keras.backend.backend() == "tensorflow":
        from keras_wsl.backend.tensorflow.trainer import forward_step

        return _arrays(forward_step(model)(inputs))
    return _arrays(model.predict_on_batch(inputs))


def _arrays(structure):
    return keras.tree.map_structure(np.asarray, structure)


__all__ = ["forward", "step"]
