"""The checkpoints of a teacher while it trains, for the online distillation of a student."""

import pathlib

import keras

from keras_wsl import teacher_checkpoints
from keras_wsl.argument_checks import check_positive_int
from keras_wsl.files import make_directory, remove_orphans
from keras_wsl.models.weights import save_weights


class Checkpoints(keras.callbacks.Callback):
    """Writes a network's weights after every so many epochs or steps, and before the first: see `online.Checkpoints`.

    Of a `Distiller` the student's weights are written: the network that is trained. Each file appears whole or not at
    all. A resumed run writes those of its own epochs again.

    Args:
        folder: Where to; made if it is missing.
        every: Positive integer, epochs or steps between two files.
        unit: `"epochs"` or `"steps"`.
        dtype: `"float32"`, which gives back the teacher to the bit, or `"float16"`, in half the space.

    Raises:
        ValueError: If `every` is not a positive integer, the unit is unknown, or steps are counted and `fit` does not
            know how many an epoch has.
    """

    def __init__(self, folder, every=1, unit="epochs", dtype="float32"):
        super().__init__()
        teacher_checkpoints.check_unit(unit)
        self.folder, self.every, self.unit, self.dtype = (
            pathlib.Path(folder),
            check_positive_int(every, "every"),
            unit,
            dtype,
        )
        self._epoch = 0

    def on_train_begin(self, logs=None):
        """Make the folder, and remove what killed processes left in it."""
        make_directory(self.folder)
        remove_orphans(self.folder)
        if self.unit == "steps":
            steps_of(self)

    def on_epoch_begin(self, epoch, logs=None):
        """Writes the weights with which training starts."""
        self._epoch = epoch
        if epoch == 0 and not (self.folder / teacher_checkpoints.file_name(0, self.unit)).exists():
            self._write(0)

    def on_train_batch_end(self, batch, logs=None):
        """Writes the weights after a step that is due."""
        if self.unit == "steps":
            done = self._epoch * self.params["steps"] + batch + 1
            if done % self.every == 0:
                self._write(done)

    def on_epoch_end(self, epoch, logs=None):
        """Writes the weights after an epoch that is due."""
        if self.unit == "epochs" and (epoch + 1) % self.every == 0:
            self._write(epoch + 1)

    def _write(self, count):
        network = getattr(self.model, "student", self.model)
        save_weights(network, self.folder / teacher_checkpoints.file_name(count, self.unit), self.dtype)


def steps_of(callback):
    """The steps of an epoch.

    Raises:
        ValueError: If `fit` does not know them.
    """
    steps = (callback.params or {}).get("steps")
    if not steps:
        raise ValueError(
            f"{type(callback).__name__} counts steps, and fit does not know how many an epoch has. Pass "
            "steps_per_epoch."
        )
    return steps
