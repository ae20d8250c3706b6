"""Checkpoints of a teacher during its training, for online distillation of a student."""

import pathlib

import keras

from keras_wsl import teacher_checkpoints
from keras_wsl.argument_checks import check_positive_int
from keras_wsl.files import make_directory, remove_orphans
from keras_wsl.models.weights import save_weights


class PeriodicCheckpoint(keras.callbacks.Callback):
    """Save a network's weights before training and periodically during training, for `teacher_checkpoints.Checkpoints`.

    For a `Distiller`, the student's weights are saved. Each file is written atomically. A resumed run overwrites the
    checkpoints of the epochs that it trains.

    Args:
        directory: Path of the directory. It is created if it is missing.
        save_freq: Positive integer, the number of epochs or steps between two checkpoints.
        save_freq_unit: `"epochs"` or `"steps"`.
        dtype: `"float32"`, which restores the teacher bit for bit, or `"float16"`, which takes half the space.

    Raises:
        ValueError: If `save_freq` is not a positive integer, the unit is unknown, or the unit is `"steps"` and `fit`
            does not know the number of steps per epoch.
    """

    def __init__(self, directory, save_freq=1, save_freq_unit="epochs", dtype="float32"):
        super().__init__()
        teacher_checkpoints.check_unit(save_freq_unit, "save_freq_unit")
        self.directory, self.save_freq = pathlib.Path(directory), check_positive_int(save_freq, "save_freq")
        self.save_freq_unit, self.dtype = save_freq_unit, dtype
        self._epoch = 0

    def on_train_begin(self, logs=None):
        """Create the directory, and remove the temporary files of killed processes."""
        make_directory(self.directory)
        remove_orphans(self.directory)
        if self.save_freq_unit == "steps":
            get_steps_per_epoch(self)

    def on_epoch_begin(self, epoch, logs=None):
        """Save the initial weights before the first epoch."""
        self._epoch = epoch
        if epoch == 0 and not self._path(0).exists():
            self._save(0)

    def on_train_batch_end(self, batch, logs=None):
        """Save the weights every `save_freq` steps."""
        if self.save_freq_unit == "steps":
            steps_done = self._epoch * self.params["steps"] + batch + 1
            if steps_done % self.save_freq == 0:
                self._save(steps_done)

    def on_epoch_end(self, epoch, logs=None):
        """Save the weights every `save_freq` epochs."""
        if self.save_freq_unit == "epochs" and (epoch + 1) % self.save_freq == 0:
            self._save(epoch + 1)

    def _path(self, count):
        return self.directory / teacher_checkpoints.file_name(count, self.save_freq_unit)

    def _save(self, count):
        save_weights(getattr(self.model, "student", self.model), self._path(count), self.dtype)


def get_steps_per_epoch(callback):
    """Return the number of steps per epoch.

    Raises:
        ValueError: If `fit` does not know it.
    """
    steps = (callback.params or {}).get("steps")
    if not steps:
        raise ValueError(
            f"{type(callback).__name__} counts steps, so `fit` must know the number of steps per epoch. Received: "
            f"{steps}. Pass steps_per_epoch to `fit`."
        )
    return steps
