"""How long runs will take, estimated from recorded ones."""

import re
import statistics

from benchmarks.limits import macs
from keras_wsl import models
from keras_wsl.training import artifacts
from keras_wsl.training.config import to_lines


class Estimator:
    """Estimate the duration of runs on this device from recorded runs; if it has none, from those of other devices.

    Args:
        rows: List of rows, as `RunStore.rows` returns them.
        num_examples: Integer, size of CIFAR-100's training set. Other data sets have as many examples as their
            recorded runs.
    """

    def __init__(self, rows, num_examples):
        device = artifacts.environment()["device"]
        on_this_device = [row for row in rows if row["device"] == device]
        self.from_other_devices = not on_this_device
        self._rows = on_this_device or rows
        self._num_examples = num_examples
        self._costs = {}

    def estimate(self, run):
        """Return the seconds that a `presets.Run` will take, or `None` if no similar run is recorded.

        The estimate is the median of runs of the same two networks on examples of the same size. On CIFAR-100, if
        there are none, it is the median of all runs, scaled by the multiplications of a step.
        """
        config = run.config
        size = _size_flags(" ".join(to_lines(config)))
        teacher = "" if run.uses_cached_logits else config.teacher
        same_size = [row for row in self._rows if _size_flags(row["flags"]) == size]
        similar = [row for row in same_size if (row["student"], _live_teacher(row)) == (config.student, teacher)]
        if size and not similar:
            return None
        all_examples = similar[-1]["train_examples"] if size else self._num_examples - config.validation_examples
        steps = config.epochs * (config.max_train_examples or all_examples)
        if similar:
            return steps * statistics.median(map(_seconds_per_example, similar))
        cost = self._cost(config.student, teacher)
        rates = [
            _seconds_per_example(row) / row_cost
            for row in same_size
            if (row_cost := self._cost(row["student"], _live_teacher(row))) is not None
        ]
        return steps * cost * statistics.median(rates) if cost and rates else None

    def _cost(self, student, teacher):
        """Return the multiplications of a step per example, or `None` if a network is not in `models`."""
        names = [student, *([teacher] if teacher else [])]
        for name in set(names) - set(self._costs):
            try:
                self._costs[name] = macs(models.build(name, classes=100, input_shape=(32, 32, 3)))
            except ValueError:
                self._costs[name] = None
        costs = [self._costs[name] for name in names]
        return None if None in costs else 3 * costs[0] + sum(costs[1:])


def _seconds_per_example(row):
    return row["seconds"] / (row["train_examples"] * int(row["epochs"]))


def _size_flags(flags):
    """Return the flags that set how large an example is and which layers are trained; CIFAR-100 has none of them."""
    return re.findall(r"--(?:image_size|sequence_length|student_layers|teacher_layers)=\S+", flags)


def _live_teacher(row):
    """Return the name of the teacher that ran during the student's training; empty if its logits were cached."""
    cached = re.search(r"--soft_labels=\S", row["flags"])
    return "" if cached else row["teacher"] or ""


def format_seconds(seconds):
    """Format seconds as `1 h 05 min`."""
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"
