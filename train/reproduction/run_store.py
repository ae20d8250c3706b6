"""Records of finished runs: a few tables from which every page is made, so that no run is trained twice."""

import contextlib
import csv
import functools
import json
import pathlib
import re
import shlex
import time
from typing import NamedTuple

from keras_wsl.file_lock import file_lock
from keras_wsl.files import make_directory
from keras_wsl.training import artifacts, config

NEEDED = ("test_accuracy", "seconds", "train_examples", "epochs")  # Fields of `result.json` that every record has.
COLUMNS = (
    "run",
    "student",
    "student_layers",
    "teacher",
    "teacher_layers",
    "teacher_update_epochs",
    "method",
    "extra_losses",
    "weighting",
    "seed",
    "epochs",
    "pretrain_epochs",
    "train_examples",
    "eval_split",
    "final_accuracy",
    "best_accuracy",
    "best_epoch",
    "test_accuracy",
    "test_top_5_accuracy",
    "mismatched_accuracy",
    "teacher_accuracy",
    "teacher_mismatched_accuracy",
    "regularization_samples",
    "regularization_sample_rate",
    "mean_wsl_weight",
    "clean_regularization_sample_rate",
    "seconds",
    "peak_memory_mib",
    "device",
    "backend",
    "commit",
    "flags",
)
_CLASS_COUNTS = "class_counts"  # A column of the counts per class, separated by spaces.
_LAST_EPOCH = "last_epoch"  # A dict in `result.json`; its fields have columns of their own, with this prefix.
_LOCK_TIMEOUT = 60.0  # Seconds.


class RunRecord(NamedTuple):
    """What is recorded of a finished run.

    Args:
        name: Name of the run.
        flag_lines: List of the lines of its `run.flags`, comments included.
        result: Dict, the content of its `result.json`.
        epochs: List of dicts of floats, the rows of its `epochs.csv`.
        clean_counts: List of dicts of floats, the rows of its `regularization_samples.csv`; empty if it has none.
    """

    name: str
    flag_lines: list
    result: dict
    epochs: list
    clean_counts: list

    @classmethod
    def read(cls, directory, *needed):
        """Read the record of a run from its directory.

        Args:
            directory: Path.
            needed: Names of fields that `result.json` must have. See `artifacts.read_result`.

        Raises:
            FileNotFoundError: If the run is not finished.
            ValueError: If its `result.json` is damaged.
        """
        directory = pathlib.Path(directory)
        result = artifacts.read_result(directory, *needed)
        path, counts = directory / artifacts.FLAGS, _clean_counts_path(directory)
        config.read_lines(path)  # Raises an error if the file is damaged.
        return cls(
            directory.name,
            config.read_text(path).splitlines(),
            result,
            artifacts.read_csv(directory / "epochs.csv"),
            artifacts.read_csv(counts) if counts.exists() else [],
        )

    @property
    def flags(self):
        """List of the flags, without comments."""
        return [line for line in map(str.strip, self.flag_lines) if line and not line.startswith("#")]

    @property
    def row(self):
        """Dict of `COLUMNS`, `None` where the run has no such value."""
        settings = {name.removeprefix("--"): value for name, _, value in (line.partition("=") for line in self.flags)}
        values = {**settings, **self.result, **self.result.get(_LAST_EPOCH, {})}
        values |= {"run": self.name, "flags": " ".join(self.flags)}
        return {column: _shorten_paths(values.get(column)) for column in COLUMNS}


class RunStore:
    """Tables of finished runs, three per data set: `DATASET_runs.csv`, `DATASET_epochs.csv`, `DATASET_classes.csv`.

    `runs` has one row per run: its name, the fields of its `result.json` and its flags. Cells of text are written as
    they are, others as JSON; the fields of `last_epoch` have columns of their own. `epochs` has one row per run and
    epoch. `classes` has one row per run and epoch with the clean counts of regularization samples, in total and per
    class. A run is finished if it is in `runs`, which is written last.

    Args:
        directory: Path of the directory of the tables; made when the first run is added.
    """

    def __init__(self, directory):
        self.directory = pathlib.Path(directory)

    def __contains__(self, name):
        """Return whether a run of this name is recorded."""
        return self._find(name) is not None

    def row(self, name):
        """Return the row (see `RunRecord.row`) of a run.

        Raises:
            ValueError: If no run of this name is recorded.
        """
        return _to_record(_load(self._get_path(name))[name][0]).row

    def rows(self):
        """Return the rows of all recorded runs."""
        return [_to_record(row).row for path in self._tables() for (row,) in _load(path).values()]

    def get(self, name):
        """Return the `RunRecord` of a run.

        Raises:
            ValueError: If no run of this name is recorded.
        """
        path = self._get_path(name)
        epochs, classes = (
            [_to_numbers(row) for row in _load(_sibling(path, kind)).get(name, [])] for kind in ("epochs", "classes")
        )
        return _to_record(_load(path)[name][0])._replace(epochs=epochs, clean_counts=classes)

    def add(self, directory, dataset):
        """Record a run if it is finished and not yet recorded.

        Several processes may add runs at the same time. A process that is killed leaves the tables valid.

        Args:
            directory: Path of the run's directory.
            dataset: Name of the data set, for the names of the tables.

        Raises:
            TimeoutError: If another process holds the lock for a minute.
            ValueError: If the run's `result.json` is damaged.
        """
        directory = pathlib.Path(directory)
        if directory.name in self or not (directory / "result.json").exists():
            return
        record = RunRecord.read(directory, *NEEDED)
        counts = _clean_counts_path(directory)
        rows = {
            "epochs": artifacts.read_texts(directory / "epochs.csv"),
            "classes": [_pack_classes(row) for row in artifacts.read_texts(counts)] if counts.exists() else [],
            "runs": [{**_encode(record), "flags": shlex.join(record.flag_lines)}],
        }
        make_directory(self.directory)
        with self._lock():
            if directory.name not in self:
                for kind, new in rows.items():
                    _insert(self.directory / f"{dataset}_{kind}.csv", directory.name, new)

    @contextlib.contextmanager
    def _lock(self):
        """Wait until no other process writes the tables."""
        path, end = self.directory / "records.lock", time.monotonic() + _LOCK_TIMEOUT
        while True:
            with file_lock(path) as mine:
                if mine:
                    yield
                    return
            if time.monotonic() > end:
                raise TimeoutError(f"Another process holds {path}. Wait until it has ended.")
            time.sleep(0.05)

    def _tables(self):
        return sorted(self.directory.glob("*_runs.csv"))

    def _find(self, name):
        """Return the path of the table of runs that has a run of this name, or `None`."""
        return next((path for path in self._tables() if name in _load(path)), None)

    def _get_path(self, name):
        path = self._find(name)
        if path is None:
            raise ValueError(
                f"{name!r} is not a recorded run. Expected a name in the column `run` of "
                f"{self.directory / '*_runs.csv'}."
            )
        return path


def _clean_counts_path(directory):
    return directory / "tensorboard" / "regularization_samples.csv"


def _sibling(path, kind):
    return path.with_name(f"{path.name.removesuffix('_runs.csv')}_{kind}.csv")


def _load(path):
    """Return a table as a dict of names of runs to lists of rows, dicts of strings; read again if it has changed."""
    if not path.exists():
        return {}
    status = path.stat()
    return _load_version(path, (status.st_mtime_ns, status.st_ino, status.st_size))


@functools.lru_cache(maxsize=32)
def _load_version(path, version):
    by_run = {}
    try:
        for row in artifacts.read_texts(path):
            by_run.setdefault(row["run"], []).append(row)
    except (csv.Error, KeyError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} must be a table of runs. Received: {error!r}. Restore it.") from error
    return by_run


def _insert(path, name, new):
    """Write a table with the rows of one run, in the order of names; what an interrupted `add` left is replaced."""
    by_run = {**_load(path), name: [{"run": name, **row} for row in new]}
    rows = [row for key in sorted(by_run) for row in by_run[key]]
    if rows:
        artifacts.write_csv(path, rows)


def _to_record(row):
    """Return the `RunRecord`, without epochs and counts, of a row of a table of runs."""
    cells = {name: cell for name, cell in row.items() if name not in ("run", "flags")}
    return RunRecord(row["run"], shlex.split(row["flags"]), _decode(cells), [], [])


def _encode(record):
    """Return the cells of a result: text as it is unless it reads as JSON, everything else as JSON."""
    values = {name: value for name, value in record.result.items() if (name, value) != ("config", record.flags)}
    nested = values.pop(_LAST_EPOCH, {})
    values |= {f"{_LAST_EPOCH}.{name}": value for name, value in nested.items()}
    return {name: value if _is_plain(value) else json.dumps(value) for name, value in values.items()}


def _is_plain(value):
    return isinstance(value, str) and value != "" and _parse(value) == value


def _decode(cells):
    """Return the result of which `_encode` made these cells, without `config`, which is the flags."""
    values = {name: _parse(cell) for name, cell in cells.items() if cell}
    nested = {name.partition(".")[2]: values.pop(name) for name in list(values) if name.startswith(f"{_LAST_EPOCH}.")}
    return {**values, **({_LAST_EPOCH: nested} if nested else {})}


def _parse(cell):
    try:
        return json.loads(cell)
    except ValueError:
        return cell


def _pack_classes(row):
    """Return a row of `regularization_samples.csv` with the counts of all classes in one cell."""
    counts = [name for name in row if name.startswith("class_")]
    others = {name: cell for name, cell in row.items() if name not in counts}
    return {**others, _CLASS_COUNTS: " ".join(row[name] for name in counts)}


def _to_numbers(row):
    """Return the numbers of a row, with the counts of classes as `class_0` and so on, without empty cells."""
    cells = {name: cell for name, cell in row.items() if name not in ("run", _CLASS_COUNTS) and cell}
    counts = row.get(_CLASS_COUNTS, "").split()
    return {name: float(cell) for name, cell in [*cells.items(), *((f"class_{c}", n) for c, n in enumerate(counts))]}


def _shorten_paths(value):
    """Shorten absolute paths to their last two names: where files were on another machine is not part of a result."""
    return re.sub(r"(?<![\w.])/[\w./+-]*/([\w.+-]+/[\w.+-]+)", r"\1", value) if isinstance(value, str) else value
