"""TensorBoard events without TensorFlow, so that runs on every backend write the same."""

import time

import numpy as np


class Events:
    """Writes scalars and histograms that `tensorboard --logdir` shows.

    Args:
        log_dir: Folder of the events file, made with the first value.

    Raises:
        ImportError: If the package `tensorboard` is not installed.
    """

    def __init__(self, log_dir):
        try:
            import tensorboard.summary.writer.event_file_writer as event_files
        except ImportError as error:
            raise ImportError(
                f"Writing TensorBoard events to {log_dir} needs the package tensorboard: `pip install tensorboard`."
            ) from error
        self._make_writer = lambda: event_files.EventFileWriter(str(log_dir))
        self._writer = None

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

        if self._writer is None:
            self._writer = self._make_writer()
        self._writer.add_event(Event(wall_time=time.time(), step=step, summary=summary))

    def flush(self):
        """Puts what was written on the disk."""
        if self._writer is not None:
            self._writer.flush()

    def close(self):
        """Ends the file; a value written later begins another."""
        if self._writer is not None:
            self._writer.close()
        self._writer = None
