"""TensorBoard events without TensorFlow, so that runs on every backend write the same."""

import pathlib
import time
import warnings

import numpy as np

from keras_wsl.files import explain_disk_full


def event_files(log_dir):
    """The module that writes events.

    Args:
        log_dir: Where to, for the error.

    Raises:
        ImportError: If the package `tensorboard` is not installed.
    """
    try:
        import tensorboard.summary.writer.event_file_writer as event_files
    except ImportError as error:
        raise ImportError(
            f"Writing TensorBoard events to {log_dir} needs the package tensorboard: `pip install tensorboard`."
        ) from error
    return event_files


class SummaryWriter:
    """Writes scalars and histograms that `tensorboard --logdir` shows.

    A file that is removed meanwhile is warned about, and another one is begun.

    Args:
        log_dir: Folder of the events file, made with the first value.

    Raises:
        ImportError: If the package `tensorboard` is not installed.
        OSError: From any method, if the disk is full.
    """

    def __init__(self, log_dir):
        self._log_dir, self._files = pathlib.Path(log_dir), event_files(log_dir)
        self._writer, self._path = None, None

    def scalar(self, name, value, step):
        """One number, at a step."""
        from tensorboard.plugins.scalar.summary_v2 import scalar_pb

        self._write(scalar_pb(name, float(value)), step)

    def histogram(self, name, values, step, buckets=30):
        """The distribution of an array, at a step."""
        from tensorboard.plugins.histogram.summary_v2 import histogram_pb

        self._write(histogram_pb(name, np.asarray(values, "float64"), buckets=buckets), step)

    def _write(self, summary, step):
        from tensorboard.compat.proto.event_pb2 import Event

        with explain_disk_full(self._log_dir):
            if self._writer is None:
                self._begin()
            self._writer.add_event(Event(wall_time=time.time(), step=step, summary=summary))

    def _begin(self):
        before = set(self._log_dir.glob("events.*"))
        self._writer = self._files.EventFileWriter(str(self._log_dir))
        self._path = next(iter(set(self._log_dir.glob("events.*")) - before), None)

    def flush(self):
        """Puts what was written on the disk."""
        if self._writer is None:
            return
        with explain_disk_full(self._log_dir):
            self._writer.flush()
        if self._path is not None and not self._path.exists():
            warnings.warn(
                f"{self._path} was removed while it was being written: the events in it are lost. Training goes on, "
                "and later ones go into another file.",
                stacklevel=3,
            )
            self.close()

    def close(self):
        """Ends the file; a value written later begins another."""
        writer, self._writer = self._writer, None
        if writer is not None:
            with explain_disk_full(self._log_dir):
                writer.close()
