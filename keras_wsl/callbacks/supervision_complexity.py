"""Supervision complexity while a student trains: Harutyunyan et al., ICLR 2023, https://arxiv.org/abs/2301.12245."""

import pathlib

import keras
import numpy as np

from keras_wsl.analysis.ntk import empirical_ntk
from keras_wsl.analysis.supervision_complexity import supervision_complexity
from keras_wsl.argument_checks import check_positive_int
from keras_wsl.callbacks.epoch_csv import EpochCSV
from keras_wsl.callbacks.summary_writer import SummaryWriter


class SupervisionComplexity(keras.callbacks.Callback):
    """How complex targets are for the student's tangent kernel, before training and after every so many epochs.

    Adds `complexity_NAME`, the adjusted value, to the logs of those epochs. Writes into `log_dir`: TensorBoard scalars
    of the same, and `supervision_complexity.csv`, a row an epoch, which also has the kernel's trace, its smallest
    eigenvalue as a part of the diagonal's mean, its condition and the ridge. It changes nothing of the training.

    Args:
        log_dir: Folder, made if it is missing.
        inputs: Examples, an array or a structure of arrays; the kernel has a row for each.
        targets: Dict of names to targets, `(examples,)` or `(examples, classes)`, as `analysis.targets` gives them; or
            to functions of the model that give them, such as one that asks a teacher which changes.
        every: Positive integer, epochs.
        outputs: `"trace"` or `"sum"`, as of `analysis.empirical_ntk`.

    Raises:
        ImportError: If the package `tensorboard` is not installed.
        ValueError: If `every` is no positive integer, there are no targets, or a shape does not fit.
    """

    def __init__(self, log_dir, inputs, targets, *, every=1, outputs="trace"):
        super().__init__()
        if not isinstance(targets, dict) or not targets:
            came = "an empty dict" if isinstance(targets, dict) else type(targets).__name__
            raise ValueError(
                f"SupervisionComplexity needs targets by name. Received: {came}. Give such as {{'teacher': targets}}."
            )
        if outputs not in ("trace", "sum"):
            raise ValueError(f"outputs={outputs!r} is not a kernel of a row an example. Expected 'trace' or 'sum'.")
        self.table = EpochCSV(pathlib.Path(log_dir) / "supervision_complexity.csv")
        self.events = SummaryWriter(log_dir)
        self.inputs, self.targets, self.every, self.outputs = (
            inputs,
            targets,
            check_positive_int(every, "every"),
            outputs,
        )

    def on_train_begin(self, logs=None):
        """Reads the rows of epochs before a resumed one."""
        self.table.read()

    def on_epoch_begin(self, epoch, logs=None):
        """Judges the untrained student."""
        if epoch == 0:
            self._judge(0)

    def on_epoch_end(self, epoch, logs=None):
        """Judges the student, adds to the logs, writes the row."""
        if (epoch + 1) % self.every == 0:
            found = self._judge(epoch + 1)
            if logs is not None:
                logs.update(found)

    def on_train_end(self, logs=None):
        """Ends the events file."""
        self.events.close()

    def _judge(self, epoch):
        model = self.model
        kernel = empirical_ntk(getattr(model, "student", model), self.inputs, self.outputs)
        wanted = {name: given(model) if callable(given) else given for name, given in self.targets.items()}
        found = {name: supervision_complexity(kernel, np.asarray(given)) for name, given in wanted.items()}
        first = next(iter(found.values()))
        values = {f"complexity_{name}": complexity.adjusted for name, complexity in found.items()}
        shared = {
            name: getattr(first, name) for name in ("examples", "trace", "smallest_relative", "condition", "ridge")
        }
        for name, value in {**values, "smallest_relative": first.smallest_relative}.items():
            self.events.scalar(f"supervision_complexity/{name}", value, epoch)
        self.events.flush()
        self.table.put(epoch, {**shared, **values})
        return values
