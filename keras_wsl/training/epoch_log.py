"""Records of each epoch: the rows of `epochs.csv`, and a printed line."""

import time

import keras

from keras_wsl.training.artifacts import write_csv

# What `EpochPrinter` prints, and how. The other logs are in `epochs.csv` and TensorBoard.
PRINTED = {
    "accuracy": "accuracy {:.4f}",
    "val_accuracy": "val_accuracy {:.4f}",
    "loss": "loss {:7.4f}",
    "regularization_sample_rate": "regularization samples {:.1%}",
}


def history_rows(history):
    """Return the epochs of a `ExactBackupAndRestore`'s history as rows, counted from 1."""
    return [{**row, "epoch": row["epoch"] + 1} for row in history]


class EpochPrinter(keras.callbacks.Callback):
    """Print one line per epoch, of at most 100 characters.

    Args:
        epochs: Number of epochs of the run.
    """

    def __init__(self, epochs):
        super().__init__()
        self.epochs = epochs

    def on_epoch_end(self, epoch, logs=None):
        """Print the epoch's line."""
        texts = [text.format(float(logs[name])) for name, text in PRINTED.items() if name in (logs or {})]
        number = f"{epoch + 1:{len(str(self.epochs))}}/{self.epochs}"
        print("  ".join([f"epoch {number}", *texts]), flush=True)


class EpochLog(keras.callbacks.Callback):
    """Write `epochs.csv` after each epoch, and measure the seconds of training over all processes of the run.

    It must be the last callback, so that it has the logs that others add, and be watched by the backup for `seconds`.
    These include evaluation, and exclude the time between two processes and steps that a killed process did not save.

    Args:
        path: Path of `epochs.csv`.
        tables: `EpochCSV`s of other callbacks. Their rows are kept in the backup too, so that a resumed run writes
            them again if their files are missing or damaged.
    """

    def __init__(self, path, tables=()):
        super().__init__()
        self.path = path
        self.backup = None
        self.seconds = 0.0
        self.rows = {}
        self._tables = {table.path.name: table for table in tables}
        self._timer = _Timer()

    def on_epoch_begin(self, epoch, logs=None):
        """Start the timer, and give the tables the rows that the backup restored."""
        self._timer = _Timer()
        for name, rows in self.rows.items():
            self._tables[name].rows = rows

    def on_train_batch_end(self, batch, logs=None):
        """Add the seconds of the step. The backup may end this process before the next one."""
        self.seconds += self._timer.lap()

    def on_epoch_end(self, epoch, logs=None):
        """Write the rows of all epochs so far."""
        self.seconds += self._timer.lap()
        self.rows = {name: table.rows for name, table in self._tables.items()}
        rows = [row for row in self.backup.history if row["epoch"] < epoch]
        write_csv(self.path, history_rows([*rows, {"epoch": epoch, **{k: float(v) for k, v in (logs or {}).items()}}]))

    def on_train_end(self, logs=None):
        """Write all tables again: a finished run that is resumed trains no epoch, and its files may be damaged."""
        if self.backup.history:
            write_csv(self.path, history_rows(self.backup.history))
        for name, rows in self.rows.items():
            self._tables[name].write(rows)


class _Timer:
    """A timer of this process. It is an object and not a number, so that a backup does not save it."""

    def __init__(self):
        self._last = time.perf_counter()

    def lap(self):
        """Return the seconds since the last lap."""
        before, self._last = self._last, time.perf_counter()
        return self._last - before
