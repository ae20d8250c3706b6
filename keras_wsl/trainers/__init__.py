"""The training step of a backend where Keras's own does not do, and the pass of a network that only speaks."""

import keras
import numpy as np


def step():
    """The class that gives a Distiller its training step on this backend: a mixin before `keras.Model`."""
    if keras.backend.backend() == "tensorflow":
        from keras_wsl.trainers.tensorflow import TensorFlowStep

        return TensorFlowStep
    return KerasStep


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
        from keras_wsl.trainers.tensorflow import forward_step

        return _arrays(forward_step(model)(inputs))
    return _arrays(model.predict_on_batch(inputs))


def _arrays(structure):
    return keras.tree.map_structure(np.asarray, structure)


class KerasStep:
    """JAX and Torch: Keras's own step, which calls `compute_loss` and `compute_metrics`."""

    def _check_devices(self):
        """Nothing: what differs between devices is TensorFlow's."""

    def _check_range(self, what, values, limit):
        """`values` as they are; the loss of an example out of range is NaN."""
        return values


__all__ = ["KerasStep", "forward", "step"]
