"""TensorBoard summaries without TensorFlow, so that runs on all backends write the same files."""

import pathlib
import time
import warnings

import numpy as np

from keras_wsl.files import explain_disk_full


def import_event_files(directory):
    """Import and return tensorboard's module that writes event files.

    Args:
        directory: Where the events are written, for the error.

    Raises:
        ImportError: If the package `tensorboard` is not installed.
    """
    try:
        import tensorboard.summary.writer.event_file_writer as event_files
    except ImportError as error:
        raise ImportError(
            f"Writing to {directory} requires the package tensorboard. Run `pip install tensorboard`."
        ) from error
    return event_files


class SummaryWriter:
    """A writer of scalars and histograms for `tensorboard --logdir`.

    If its file is removed, it issues a warning and starts another file.

    Args:
        directory: Path of the directory of the event file. It is created with the first value.

    Raises:
        ImportError: If the package `tensorboard` is not installed.
        OSError: From any method, if the disk is full.
    """

    def __init__(self, directory):
        self._directory, self._event_files = pathlib.Path(directory), import_event_files(directory)
        self._writer, self._path = None, None

    def scalar(self, name, value, step):
        """Write a number for a step."""
        from tensorboard.plugins.scalar.summary_v2 import scalar_pb

        self._write(scalar_pb(name, float(value)), step)

    def histogram(self, name, values, step, buckets=30):
        """Write the distribution of an array for a step."""
        from tensorboard.plugins.histogram.summary_v2 import histogram_pb

        self._write(histogram_pb(name, np.asarray(values, "float64"), buckets=buckets), step)

    def _write(self, summary, step):
        from tensorboard.compat.proto.event_pb2 import Event

        with explain_disk_full(self._directory):
            if self._writer is None:
                self._start_file()
            self._writer.add_event(Event(wall_time=time.time(), step=step, summary=summary))

    def _start_file(self):
        existing = set(self._directory.glob("events.*"))
        self._writer = self._event_files.EventFileWriter(str(self._directory))
        self._path = next(iter(set(self._directory.glob("events.*")) - existing), None)

    def flush(self):
        """Write buffered events to the disk."""
        if self._writer is None:
            return
        with explain_disk_full(self._directory):
            self._writer.flush()
        if self._path is not None and not self._path.exists():
            warnings.warn(
                f"{self._path} was removed, and its events are lost. Training continues, and later events are written "
                "to another file.",
                stacklevel=3,
            )
            self.close()

    def close(self):
        """Close the file. A later value starts another file."""
        writer, self._writer = self._writer, None
        if writer is not None:
            with explain_disk_full(self._directory):
                writer.close()
