"""The training step of Keras, which calls `compute_loss` and `compute_metrics`: JAX on one device, and Torch."""

import keras
import numpy as np


class DefaultTrainer:
    """A mixin before `keras.Model` that changes nothing."""

    def _check_devices(self):
        """Do nothing: only strategies of TensorFlow can differ between student and Distiller."""


def check_range(name, values, limit):
    """Return `values`, without a check; the loss of an example whose value is out of range is NaN."""
    return values


def compile_forward(model):
    """Return a function of inputs that computes a model's outputs in inference mode."""
    return lambda inputs: keras.tree.map_structure(np.asarray, model.predict_on_batch(inputs))
