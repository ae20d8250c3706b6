"""What is kept of finished runs beside the pages: enough for every table, so that no run is done twice."""

import pathlib
import re
import statistics

import report
from benchmarks.limits import macs
from keras_wsl import models
from keras_wsl.files import copy_atomically
from keras_wsl.training import artifacts, config

# The last one finishes a run.
FILES = ("run.flags", "epochs.csv", "tensorboard/regularization_samples.csv", "result.json")


class Kept:
    """The folder of what is kept, with a folder a run.

    Args:
        folder: Path.
    """

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)

    def has(self, name):
        """Whether a run of this name is finished."""
        return (self.folder / name / FILES[-1]).exists()

    def take(self, out):
        """Keeps a run's files if it is finished, and is not kept yet."""
        out = pathlib.Path(out)
        if self.has(out.name) or not (out / FILES[-1]).exists():
            return
        for name in FILES:
            if (out / name).exists():
                target = self.folder / out.name / name
                target.parent.mkdir(parents=True, exist_ok=True)
                copy_atomically(out / name, target)

    def row(self, name):
        """The row of a run, as `report.read` has it."""
        return report.read(self.folder / name, "test_accuracy", "seconds", "train_examples", "epochs")[0]

    def rows(self):
        """Those of all runs."""
        return [self.row(path.parent.name) for path in sorted(self.folder.glob(f"*/{FILES[-1]}"))]


def _seconds(row):
    """Of a step, for an example."""
    return row["seconds"] / (row["train_examples"] * int(row["epochs"]))


class Estimate:
    """How long runs will take on this device, from those that are kept; from other devices' where it has none.

    Args:
        rows: As of `Kept.rows`.
        examples: Integer, of CIFAR-100's whole training set; other data sets have as many as those that were run.
    """

    def __init__(self, rows, examples):
        device = artifacts.environment()["device"]
        own = [row for row in rows if row["device"] == device]
        self.elsewhere = not own  # Whether runs of other devices are all there is to go by.
        self._rows = own or rows
        self._examples = examples
        self._costs = {}

    def seconds(self, run):
        """Seconds of a `budgets.Run`, or `None` where nothing like it was run.

        From runs of the same two networks and the same size of an example; of CIFAR-100 else from all, by the
        multiplications of a step.
        """
        wanted = run.wanted
        size = _size(" ".join(config.to_lines(wanted)))
        teacher = "" if run.replays else wanted.teacher
        of_size = [row for row in self._rows if _size(row["flags"]) == size]
        alike = [row for row in of_size if (row["student"], _live(row)) == (wanted.student, teacher)]
        if size and not alike:
            return None
        whole = alike[-1]["train_examples"] if size else self._examples - wanted.validation_examples
        examples = wanted.max_train_examples or whole
        if alike:
            return wanted.epochs * examples * statistics.median(map(_seconds, alike))
        cost = self._cost(wanted.student, teacher)
        rates = [
            _seconds(row) / other for row in of_size if (other := self._cost(row["student"], _live(row))) is not None
        ]
        return wanted.epochs * examples * cost * statistics.median(rates) if cost and rates else None

    def _cost(self, student, teacher):
        """Multiplications of a step for an example, or `None` where the networks are not of the zoo."""
        names = [student, *([teacher] if teacher else [])]
        for name in set(names) - set(self._costs):
            try:
                self._costs[name] = macs(models.build(name, classes=100, input_shape=(32, 32, 3)))
            except ValueError:
                self._costs[name] = None
        known = [self._costs[name] for name in names]
        return None if None in known else 3 * known[0] + sum(known[1:])


def _size(flags):
    """What says how large an example is, and which part of a network is trained: nothing of CIFAR-100's."""
    return re.findall(r"--(?:image_size|sequence_length|student_layers|teacher_layers)=\S+", flags)


def _live(row):
    """The name of the teacher that ran beside the student."""
    replayed = re.search(r"--soft_labels=\S", row["flags"])
    return "" if replayed else row["teacher"] or ""


def clock(seconds):
    """Seconds as `1 h 05 min`."""
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"
