"""The training step of a backend where Keras's own does not do."""

import keras


def step():
    """The class that gives a Distiller its training step on this backend: a mixin before `keras.Model`."""
    if keras.backend.backend() == "tensorflow":
        from keras_wsl.trainers.tensorflow import TensorFlowStep

        return TensorFlowStep
    return KerasStep


class KerasStep:
    """JAX and Torch: Keras's own step, which calls `compute_loss` and `compute_metrics`."""

    def _check_devices(self):
        """Nothing: what differs between devices is TensorFlow's."""

    def _check_range(self, what, values, limit):
        """`values` as they are; the loss of an example out of range is NaN."""
        return values


__all__ = ["KerasStep", "step"]
