"""Supervision complexity during the training of a student: Harutyunyan et al., ICLR 2023, https://arxiv.org/abs/2301.12245."""

import pathlib

import keras
import numpy as np

from keras_wsl.analysis.ntk import empirical_ntk
from keras_wsl.analysis.supervision_complexity import supervision_complexity
from keras_wsl.argument_checks import check_positive_int
from keras_wsl.callbacks.epoch_csv import EpochCSV
from keras_wsl.callbacks.summary_writer import SummaryWriter


class SupervisionComplexity(keras.callbacks.Callback):
    """Compute how complex targets are for the student's tangent kernel, before training and every `every_epochs`.

    Adds `complexity_NAME`, the adjusted value, to the logs of these epochs. Writes to `directory`: TensorBoard scalars
    of the same, and `supervision_complexity.csv` with one row per epoch, which also has the kernel's trace, its
    smallest eigenvalue relative to the mean of the diagonal, its condition number and the ridge. Does not affect
    training.

    Args:
        directory: Path of the directory. It is created if it is missing.
        inputs: Examples, an array or a structure of arrays. The kernel has one row per example.
        targets: Dict of names to targets, shape `(examples,)` or `(examples, classes)`, such as `analysis.targets`
            returns; or to functions that take the model and return targets, for a teacher that changes.
        every_epochs: Positive integer, the number of epochs between two evaluations.
        outputs: `"trace"` or `"sum"`, see `analysis.empirical_ntk`.

    Raises:
        ImportError: If the package `tensorboard` is not installed.
        ValueError: If `every_epochs` is not a positive integer, there are no targets, or shapes do not match.
    """

    def __init__(self, directory, inputs, targets, *, every_epochs=1, outputs="trace"):
        super().__init__()
        if not isinstance(targets, dict) or not targets:
            received = "an empty dict" if isinstance(targets, dict) else type(targets).__name__
            raise ValueError(
                "`targets` must be a dict of names to targets. Received: "
                f"{received}. Pass, for example, {{'teacher': targets}}."
            )
        if outputs not in ("trace", "sum"):
            raise ValueError(
                f"`outputs` must be 'trace' or 'sum', with one row per example. Received: outputs={outputs!r}."
            )
        self.table = EpochCSV(pathlib.Path(directory) / "supervision_complexity.csv")
        self.events = SummaryWriter(directory)
        self.inputs, self.targets, self.outputs = inputs, targets, outputs
        self.every_epochs = check_positive_int(every_epochs, "every_epochs")

    def on_train_begin(self, logs=None):
        """Read the rows of previous epochs of a resumed run."""
        self.table.read()

    def on_epoch_begin(self, epoch, logs=None):
        """Evaluate the untrained student."""
        if epoch == 0:
            self._evaluate(0)

    def on_epoch_end(self, epoch, logs=None):
        """Evaluate the student, add to the logs, and write the row."""
        if (epoch + 1) % self.every_epochs == 0:
            values = self._evaluate(epoch + 1)
            if logs is not None:
                logs.update(values)

    def on_train_end(self, logs=None):
        """Close the event file."""
        self.events.close()

    def _evaluate(self, epoch):
        model = self.model
        kernel = empirical_ntk(getattr(model, "student", model), self.inputs, self.outputs)
        targets = {name: value(model) if callable(value) else value for name, value in self.targets.items()}
        complexities = {name: supervision_complexity(kernel, np.asarray(value)) for name, value in targets.items()}
        values = {f"complexity_{name}": complexity.adjusted for name, complexity in complexities.items()}
        first = next(iter(complexities.values()))
        shared = {
            name: getattr(first, name) for name in ("examples", "trace", "smallest_relative", "condition", "ridge")
        }
        for name, value in {**values, "smallest_relative": first.smallest_relative}.items():
            self.events.scalar(f"supervision_complexity/{name}", value, epoch)
        self.events.flush()
        self.table.put(epoch, {**shared, **values})
        return values
