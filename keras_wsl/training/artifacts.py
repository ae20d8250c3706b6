"""Files of a run: `run.flags` and its lock, `result.json`, CSV files; and the environment that they record."""

import contextlib
import csv
import io
import json
import os
import pathlib
import platform
import re
import subprocess
from importlib import metadata

import keras
from absl import flags

from keras_wsl import untrusted
from keras_wsl.callbacks.backup_state import list_differences
from keras_wsl.file_lock import file_lock
from keras_wsl.files import atomic_write, is_temporary, make_directory, remove_orphans
from keras_wsl.training import config as config_file
from keras_wsl.training.fingerprint import identity

FLAGS = "run.flags"
LOCK = "run.lock"  # In the directory of a run, while a process writes to it.
PACKAGES = ("keras-wsl", "keras", "numpy", "tensorflow", "jax", "torch")


def open_run_directory(directory, config, *, resume, contents=None, source=None):
    """Create the directory of a run with its `run.flags`, or check that it holds this run.

    Args:
        directory: Path of the directory.
        config: `Config`.
        resume: Whether the directory may hold this run already.
        contents: Dict of `fingerprint.contents`, which replaces the paths of files; `None` if it is not known yet.
        source: Name or path of the data, a string, for `run.flags`.

    Returns:
        `pathlib.Path` of the directory.

    Raises:
        NotADirectoryError: If it, or a directory above it, is a file.
        ValueError: If the directory holds this run and `resume` is false, or another run, or other files; or it cannot
            be written to; or its `run.flags` is damaged.
    """
    if not directory:
        raise ValueError("--output_dir is missing. Pass a directory for the results, such as --output_dir=runs/wsl.")
    directory = pathlib.Path(directory)
    path = directory / FLAGS
    if os.path.lexists(path):
        if changes := list_differences(*_identities(path, config, contents), "run.flags"):
            raise ValueError(
                f"--output_dir={directory} holds another run. {'; '.join(changes)}. Choose another --output_dir, or "
                f"resume that run with its data: --flagfile={path} --resume."
            )
        if not resume:
            raise ValueError(
                f"--output_dir={directory} holds this run already. Pass --resume to resume it, or another --output_dir."
            )
    elif directory.is_dir() and any(
        entry.name != LOCK and not is_temporary(entry.name) for entry in directory.iterdir()
    ):
        raise ValueError(
            f"--output_dir={directory} holds other files and no run. Choose a directory that is empty or does not "
            "exist."
        )
    else:
        try:
            make_directory(directory)
            write_text(path, _flags_text(config, contents or {}, source))
        except NotADirectoryError:  # Its message names the file.
            raise
        except OSError as error:
            raise ValueError(
                f"--output_dir={directory} cannot be written to ({error}). Choose a writable directory."
            ) from error
    if not os.access(directory, os.W_OK):
        raise ValueError(f"--output_dir={directory} cannot be written to. Make it writable to resume the run.")
    return directory


def update_flags(directory, config, contents, source):
    """Update the paths of data and files in `run.flags`, if it records the same contents at other paths."""
    path = directory / FLAGS
    text = _flags_text(config, contents, source)
    lines, recorded = (set(content.splitlines()) for content in (text, config_file.read_text(path)))
    if _recorded_contents(path) == contents and recorded != lines:  # The order of lines has no meaning.
        write_text(path, text)


def check_backups(directory, *, has_stage):
    """Check that a run that has trained has backups; print a line if it has not trained.

    Args:
        directory: Path of the run.
        has_stage: Whether its method has a pretraining stage.

    Raises:
        ValueError: If backups are missing.
    """
    stages = {"epochs.csv": directory / "backups"}
    if has_stage:
        stages = {"first_stage.csv": directory / "backups" / "first_stage", **stages}
    for table, backups in stages.items():
        results = ("student.keras", "result.json") if table == "epochs.csv" else ()
        written = [directory / name for name in (table, *results) if os.path.lexists(directory / name)]
        if written and not any(backups.glob("*.backup")):
            raise ValueError(
                f"{backups} must hold the backups of this run, which has written {written[0]}. Received: no backup. "
                f"Restore {backups} to resume the run, or remove {directory} to start again."
            )
    if not any(directory.glob("backups/**/*.backup")):
        print(f"{directory} holds no backup: the run starts from its first step.")


def _identities(path, config, contents):
    """Return the identities of the run in a `run.flags` and of this one, without what only one of them knows."""
    lines, recorded = config_file.read_lines(path), _recorded_contents(path)
    try:
        recorded_config = config_file.parse(lines, type(config))
    except flags.Error:  # Settings of another class.
        return [dict(line.partition("=")[::2] for line in run) for run in (lines, config_file.to_lines(config))]
    known = recorded.keys() & (contents or {}).keys()
    identities = [
        identity(run, {name: run_contents[name] for name in known})
        for run, run_contents in ((recorded_config, recorded), (config, contents))
    ]
    unknown = {f"--{name}" for name in recorded} if contents is None else set()
    return [{name: value for name, value in run.items() if name not in unknown} for run in identities]


def _flags_text(config, contents, source):
    """Return the text of a `run.flags`: flags, and as comments what `--resume` compares in addition."""
    noted = {"data": source, **contents} if source else contents
    head = ["# --resume compares the contents of data and files with those below; --flagfile ignores these lines."]
    comments = [f"# {name}: {json.dumps(value)}" for name, value in noted.items()]
    return "\n".join([*config_file.to_lines(config), *(head if comments else []), *comments]) + "\n"


def _recorded_contents(path):
    """Return the contents that the comments of a `run.flags` record, without the name of the data."""
    contents = {}
    for line in config_file.read_text(path).splitlines():
        if match := re.fullmatch(r"# ([\w.]+): (.+)", line):
            with contextlib.suppress(ValueError, RecursionError):  # A comment that a user wrote.
                contents[match[1]] = json.loads(match[2])
    contents.pop("data", None)
    return contents


@contextlib.contextmanager
def lock_run(directory):
    """Keep other processes from writing to the directory of a run, and remove what killed processes left there.

    Raises:
        ValueError: If another process has the lock.
    """
    with file_lock(directory / LOCK) as locked:
        if not locked:
            raise ValueError(
                f"Another process is writing to --output_dir={directory}. Wait until it ends, or choose another "
                "--output_dir."
            )
        for path in (directory, directory / "tensorboard"):  # The callbacks do the same in their own directories.
            remove_orphans(path)
        yield


def write_text(path, text):
    """Write a text file atomically; create its directory if it is missing."""
    make_directory(pathlib.Path(path).parent)
    atomic_write(path, lambda file: file.write(text.encode()))


def write_json(path, values):
    """Write an indented JSON file atomically."""
    write_text(path, json.dumps(values, indent=2) + "\n")


def read_result(directory, *required):
    """Return the content of a finished run's `result.json`.

    Args:
        directory: Path of the run.
        *required: Names of fields in `_RESULT` that must be present. The others are checked if they are present.

    Returns:
        Dict.

    Raises:
        FileNotFoundError: If the run is not finished.
        ValueError: If the file is damaged or has fields of other types. The message is one line with the path.
    """
    path = pathlib.Path(directory) / "result.json"
    if not path.exists():
        raise FileNotFoundError(f"{directory} holds no finished run: there is no {path.name}. Resume it with --resume.")
    values = untrusted.read_json(path)
    try:
        untrusted.check_fields(values, {}, others=True)
        untrusted.check_fields(
            values, {name: field for name, field in _RESULT.items() if name in (*required, *values)}, others=True
        )
    except ValueError as error:
        raise ValueError(f"{path} is not the result of a run. {error} Train it again in another directory.") from error
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
    """Write rows, dicts whose keys may differ, to a CSV file with all their columns."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    table = csv.DictWriter(text, columns, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_text(path, text.getvalue())


def read_texts(path):
    """Return the rows of a CSV file, dicts of strings."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def read_csv(path):
    """Return the rows of a CSV file of numbers, dicts of floats without empty cells."""
    return [{name: float(value) for name, value in row.items() if value} for row in read_texts(path)]


def conditions():
    """Return what may change the last bits of a run's numbers and is not a setting: threads, device, versions."""
    used = ("keras-wsl", "keras", "numpy", keras.backend.backend())
    versions = {name: version for name, version in _versions().items() if name in used}
    return {"threads": _threads(), "device": _device(), **versions}


def _threads():
    """Return the number of threads that compute one operation."""
    if keras.backend.backend() == "torch":
        import torch

        return torch.get_num_threads()
    requested = os.environ.get("TF_NUM_INTRAOP_THREADS", "")
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        requested = tf.config.threading.get_intra_op_parallelism_threads() or requested
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return int(requested or 0) or cores


def environment():
    """Return what the numbers depend on in addition to the settings: backend, device, versions, commit."""
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
    """Return the commit of the code, with a `+` if tracked files differ from it; `None` outside a git checkout."""
    directory = pathlib.Path(__file__).parent
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=directory, capture_output=True, text=True, check=True)
        status = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"], cwd=directory, capture_output=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+" if status.stdout else "")
