"""What a run leaves behind: `run.flags`, `epochs.csv`, `result.json`, `curves.png`."""

import contextlib
import csv
import io
import json
import os
import pathlib
import platform
import re
import subprocess
import time
from importlib import metadata

import keras
from absl import flags

from keras_wsl import untrusted
from keras_wsl.callbacks.backup_state import list_differences
from keras_wsl.file_lock import file_lock
from keras_wsl.files import atomic_write, is_temporary, make_directory, remove_orphans
from keras_wsl.training import config as settings_file
from keras_wsl.training.fingerprint import identity

FLAGS = "run.flags"
LOCK = "run.lock"  # In the folder of a run, while a process writes there.
PACKAGES = ("keras-wsl", "keras", "numpy", "tensorflow", "jax", "torch")


def open_run(out, config, *, resume, contents=None, source=None):
    """Return the folder of a run, which holds its `run.flags`.

    Args:
        out: Path of the folder, made if it is missing.
        settings: `Config`.
        resume: Whether to go on with what is there.
        contents: Dict of `identity.contents`, in which a file stands for its path; `None` if it is not known yet.
        source: Name or path of the data, a string, for `run.flags`.

    Raises:
        NotADirectoryError: If it, or a folder above it, is a file.
        ValueError: If the folder holds this run and `resume` is not asked for, or another run, or other files; or it
            cannot be written to; or its `run.flags` is damaged.
    """
    if not out:
        raise ValueError("--output_dir is missing: name a folder for the results, such as --output_dir=runs/wsl.")
    out = pathlib.Path(out)
    path = out / FLAGS
    if os.path.lexists(path):
        if differing := list_differences(*_compared(path, config, contents), "run.flags"):
            raise ValueError(
                f"--output_dir={out} holds another run. {'; '.join(differing)}. Choose another --output_dir, or "
                f"resume that run with its data: --flagfile={path} --resume."
            )
        if not resume:
            raise ValueError(
                f"--output_dir={out} holds this run already. Pass --resume to go on with it, or another --output_dir."
            )
    elif out.is_dir() and any(there.name != LOCK and not is_temporary(there.name) for there in out.iterdir()):
        raise ValueError(
            f"--output_dir={out} holds other files and no run. Choose a folder that is empty or does not exist."
        )
    else:
        try:
            make_directory(out)
            write_text(path, _flags_text(config, contents or {}, source))
        except NotADirectoryError:  # It says which file is in the way.
            raise
        except OSError as error:
            raise ValueError(f"--output_dir={out} cannot be written to ({error}). Choose a folder that can.") from error
    if not os.access(out, os.W_OK):
        raise ValueError(
            f"--output_dir={out} cannot be written to. Make it so that it can, to go on with the run there."
        )
    return out


def update_flags(out, config, contents, source):
    """Write where data and files are now into `run.flags`, if it records the same contents at other places."""
    path = out / FLAGS
    text = _flags_text(config, contents, source)
    if _recorded_contents(path) == contents and settings_file.read_text(path) != text:
        write_text(path, text)


def _compared(path, config, contents):
    """The identities of the run in a `run.flags` and of this one, as far as both are known: two dicts."""
    lines, recorded = settings_file.read_lines(path), _recorded_contents(path)
    try:
        there = settings_file.parse(lines, type(config))
    except flags.Error:  # A run of another kind.
        pair = lines, settings_file.to_lines(config)
        return [dict(line.partition("=")[::2] for line in one) for one in pair]
    known = recorded.keys() & (contents or {}).keys()
    pair = [
        identity(run, {name: described[name] for name in known})
        for run, described in ((there, recorded), (config, contents))
    ]
    unknown = {f"--{name}" for name in recorded} if contents is None else set()
    return [{name: value for name, value in one.items() if name not in unknown} for one in pair]


def _flags_text(config, contents, source):
    """The content of a `run.flags`: flags, and as comments what `--resume` compares in addition."""
    noted = {"data": source, **contents} if source else contents
    head = ["# --resume compares the contents of data and files with those below; --flagfile ignores these lines."]
    comments = [f"# {name}: {json.dumps(value)}" for name, value in noted.items()]
    return "\n".join([*settings_file.to_lines(config), *(head if comments else []), *comments]) + "\n"


def _recorded_contents(path):
    """The contents that a `run.flags` records: those of `_flags_text`, without the name of the data."""
    found = {}
    for line in settings_file.read_text(path).splitlines():
        if match := re.fullmatch(r"# ([\w.]+): (.+)", line):
            with contextlib.suppress(ValueError, RecursionError):  # A comment of a user's.
                found[match[1]] = json.loads(match[2])
    found.pop("data", None)
    return found


@contextlib.contextmanager
def alone_in(out):
    """Keeps other processes from writing into the folder of a run.

    Raises:
        ValueError: If another process is doing so.
    """
    with file_lock(out / LOCK) as mine:
        if not mine:
            raise ValueError(
                f"Another process is writing to --output_dir={out}. Wait for its end, or choose another --output_dir."
            )
        for directory in (out, out / "tensorboard"):  # The callbacks do the same in their own directories.
            remove_orphans(directory)
        yield


def write_text(path, text):
    """Writes a text file whole or not at all; its folder is made if it is missing."""
    make_directory(pathlib.Path(path).parent)
    atomic_write(path, lambda file: file.write(text.encode()))


def write_json(path, values):
    """Writes a JSON file that a person can read."""
    write_text(path, json.dumps(values, indent=2) + "\n")


def read_result(folder, *needed):
    """Return the content of a finished run's `result.json`.

    Args:
        folder: Path of the run's folder.
        needed: Names of the fields in `_RESULT` that must be there. The others are checked if they are there.

    Returns:
        Dict.

    Raises:
        FileNotFoundError: If the run is not finished.
        ValueError: In one line with the path, if the file is damaged, or has fields of other types.
    """
    path = pathlib.Path(folder) / "result.json"
    if not path.exists():
        raise FileNotFoundError(f"{folder} holds no finished run: there is no {path.name}. Go on with it by --resume.")
    values = untrusted.read_json(path)
    try:
        untrusted.check_fields(values, {}, others=True)
        untrusted.check_fields(
            values, {name: field for name, field in _RESULT.items() if name in (*needed, *values)}, others=True
        )
    except ValueError as error:
        raise ValueError(f"{path} is no result of a run. {error} Train it again in another folder.") from error
    return values


_RESULT = {
    **{name: untrusted.TEXT for name in ("method", "student", "device", "backend")},
    **{name: untrusted.optional(untrusted.TEXT) for name in ("teacher", "weighting", "teacher_sha256", "commit")},
    **{name: untrusted.integer(1) for name in ("train_examples", "test_examples", "epochs")},
    **{name: untrusted.NUMBER for name in ("seconds", "test_accuracy", "final_accuracy", "best_accuracy")},
    "seed": untrusted.integer(0),
    "last_epoch": untrusted.OBJECT,
}


def write_csv(path, rows):
    """Writes rows, dicts whose keys may differ, under all their columns."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    table = csv.DictWriter(text, columns, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_text(path, text.getvalue())


def read_texts(path):
    """The rows of a CSV file: dicts of strings."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def read_csv(path):
    """The rows of a CSV file of numbers: dicts, without the cells that are empty."""
    return [{name: float(value) for name, value in row.items() if value} for row in read_texts(path)]


def history_rows(history):
    """The epochs of a `ExactBackupAndRestore`'s history as rows, counted from 1."""
    return [{**row, "epoch": row["epoch"] + 1} for row in history]


class Epochs(keras.callbacks.Callback):
    """Rewrites `epochs.csv` after every epoch, and keeps the seconds that training took, over all its processes.

    The last of the callbacks, so that it sees what the others add; watched by the backup for its `seconds`. They
    include every judging, and neither the time between two processes nor the steps that a killed one did not save.

    Args:
        path: Path of `epochs.csv`.
        tables: `EpochCSV`s of other callbacks. Their rows are kept in the backup too, so that a resumed run writes
            them again, whatever became of their files.
    """

    def __init__(self, path, tables=()):
        super().__init__()
        self.path = path
        self.backup = None
        self.seconds = 0.0
        self.rows = {}
        self._tables = {table.path.name: table for table in tables}
        self._clock = _Laps()

    def on_epoch_begin(self, epoch, logs=None):
        """Starts the clock, and hands over the rows that the backup has restored."""
        self._clock = _Laps()
        for name, rows in self.rows.items():
            self._tables[name].rows = rows

    def on_train_batch_end(self, batch, logs=None):
        """Adds the step's seconds: the backup may end this process before the next one."""
        self.seconds += self._clock.lap()

    def on_epoch_end(self, epoch, logs=None):
        """Writes the rows of all epochs so far."""
        self.seconds += self._clock.lap()
        self.rows = {name: table.rows for name, table in self._tables.items()}
        rows = [row for row in self.backup.history if row["epoch"] < epoch]
        write_csv(self.path, history_rows([*rows, {"epoch": epoch, **{k: float(v) for k, v in (logs or {}).items()}}]))

    def on_train_end(self, logs=None):
        """Writes all tables again: a resumed run that is finished trains no epoch, and its files may be damaged."""
        if self.backup.history:
            write_csv(self.path, history_rows(self.backup.history))
        for name, rows in self.rows.items():
            self._tables[name].write(rows)


class _Laps:
    """A clock of this process; an object, which no backup takes for a number to give to the next one."""

    def __init__(self):
        self._last = time.perf_counter()

    def lap(self):
        """Seconds since the lap before."""
        before, self._last = self._last, time.perf_counter()
        return self._last - before


def conditions():
    """Return what may change the last bits of a run's numbers and does not belong to it: cores, device, versions."""
    used = ("keras-wsl", "keras", "numpy", keras.backend.backend())
    versions = {name: version for name, version in _versions().items() if name in used}
    return {"threads": _threads(), "device": _device(), **versions}


def _threads():
    """The threads in which one operation is computed."""
    if keras.backend.backend() == "torch":
        import torch

        return torch.get_num_threads()
    asked = os.environ.get("TF_NUM_INTRAOP_THREADS", "")
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        asked = tf.config.threading.get_intra_op_parallelism_threads() or asked
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return int(asked or 0) or cores


def environment():
    """What the numbers depend on beside the settings: versions, device, commit."""
    return {
        "backend": keras.backend.backend(),
        "device": _device(),
        "python": platform.python_version(),
        "versions": _versions(),
        "commit": _commit(),
    }


def _versions():
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _device():
    devices = keras.distribution.list_devices() if keras.backend.backend() != "torch" else []
    accelerators = [device for device in devices if not device.startswith("cpu")]
    return ", ".join(accelerators) or f"{os.cpu_count()} CPU cores ({platform.machine()})"


def _commit():
    """The commit of the code, with a `+` where files differ from it; `None` outside a git checkout."""
    here = pathlib.Path(__file__).parent
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        status = subprocess.run(["git", "status", "--porcelain", "--untracked-files=no"], cwd=here, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+" if status.stdout else "")
