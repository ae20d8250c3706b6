"""What a fault is, what an attempt can end in, and how attempts are made and classified."""

import contextlib
import dataclasses
import functools
import hashlib
import os
import pathlib
import signal
import stat
from collections.abc import Callable, Iterable
from typing import NamedTuple

from benchmarks import fault_injection
from keras_wsl import callbacks

SURVIVED, LOST, WRONG = "survived", "lost", "wrong"
USER_ERRORS = (
    ValueError,
    OSError,
    ImportError,
    MemoryError,
    callbacks.NonFiniteLossError,
)  # Those of `scripts.status`.
USER_ERROR_STATUS = 2
TIME_LIMIT = 600  # Seconds of an attempt in this process.
FAULTS = []


class UnsupportedFault(Exception):
    """A fault that this system does not let the suite do."""


class HangError(BaseException):
    """An attempt took longer than its limit. No `Exception`, so that no handler of the tested code takes it."""


class Attempt(NamedTuple):
    """One attempt of a fault: `state`, a `note` on how it ended, and the `seconds` that count, or `None`."""

    state: str
    note: str = ""
    seconds: float | None = None


@dataclasses.dataclass(frozen=True)
class Fault:
    """A fault: its name and group, how it is done, what should happen, and the function that yields attempts."""

    name: str
    group: str
    method: str
    expected: str
    attempts: Callable[["Bench"], Iterable[Attempt]]


def fault(method, expected):
    """Register a function of a `Bench` that yields attempts, as the fault of its name in the group of its module.

    Args:
        method: String, how the fault is done.
        expected: String, what happens in an attempt that is survived.
    """

    def register(function):
        group = function.__module__.rpartition(".")[2].replace("_", " ")
        FAULTS.append(Fault(function.__name__.removesuffix("_"), group, method, expected, function))
        return function

    return register


@dataclasses.dataclass
class Bench:
    """Where the attempts of one fault are made.

    Args:
        folder: Path for the files of the fault alone; it is made when it is needed.
        seed: Integer, of all that is random.
        shared: Path for the undisturbed run, which all faults share.
    """

    folder: pathlib.Path
    seed: int
    shared: pathlib.Path

    @functools.cached_property
    def whole(self):
        """The undisturbed `RunUnderTest`, trained when it is first needed."""
        return fault_injection.prepare(self.shared)

    def run(self, name, **changes):
        """Return a `RunUnderTest` like the undisturbed one, in a folder of the fault, with these fields changed."""
        changes = {"out": self.folder / name, "log_dir": self.folder / "logs", **changes}
        return dataclasses.replace(self.whole, **changes)

    def new_folder(self):
        """Make the fault's folder, and return its path."""
        self.folder.mkdir(parents=True)
        return self.folder


def classify(note="", seconds=None, *, data=None, **claims):
    """Return an attempt that is survived if all claims hold.

    Args:
        note: String, how it ended.
        seconds: Float, or `None`.
        data: Dict of claims about data and work: if one does not hold, something was lost.
        **claims: Booleans by what they claim; if one does not hold, the attempt ended wrongly.
    """
    data = data or {}
    broken = [claim.replace("_", " ") for claim, holds in {**data, **claims}.items() if not holds]
    if not broken:
        return Attempt(SURVIVED, note, seconds)
    state = LOST if not all(data.values()) else WRONG
    return Attempt(state, f"not: {', '.join(broken)}{'; ' if note else ''}{note}", seconds)


def classify_finished(whole, run, note="", seconds=None, *, logs=0.0, **claims):
    """Return an attempt that is survived if a finished run equals the undisturbed one and left no files behind.

    Args:
        whole: The undisturbed `RunUnderTest`.
        run: The finished one.
        note: Same as in `classify`.
        seconds: Same as in `classify`.
        logs: Same as in `fault_injection.differences`.
        **claims: Same as in `classify`.
    """
    different = fault_injection.differences(whole.out, run.out, logs=logs)
    left = fault_injection.leftovers(whole.out, run.out)
    note = "; ".join(filter(None, [note, ", ".join(different), ", ".join(left)]))
    return classify(note, seconds, data={"the_same_result": not different}, **claims, no_file_left_behind=not left)


@contextlib.contextmanager
def time_limit(seconds=TIME_LIMIT):
    """Raise `HangError` in the block if it takes longer. Python code and system calls are interrupted."""

    def expired(number, frame):
        raise HangError(f"no answer within {seconds} s")

    before = signal.signal(signal.SIGALRM, expired)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(work):
    """Return `(value, error)` of a function: what it returned or what it raised; the other is `None`."""
    try:
        with time_limit():
            return work(), None
    except (Exception, HangError) as error:
        return None, error


def describe(error):
    """Return an exception as the scripts print it."""
    return f"{type(error).__name__}: {error}"


def is_user_error(error, *words):
    """Return whether an exception is one that the scripts show in one line, and the line has all the words."""
    text = str(error)
    # Keras itself lists the lengths of arrays that differ in lines of their own.
    one_line = len(text.splitlines()) == 1 or text.startswith("Data cardinality is ambiguous")
    return isinstance(error, USER_ERRORS) and one_line and all(word in text for word in words)


def refused(work, *words):
    """Return an attempt that is survived if `work()` raises an error of a user, in one line that has the words."""
    value, error = outcome(work)
    if error is None:
        return Attempt(WRONG, f"accepted silently: {value!r:.80}")
    return Attempt(SURVIVED if is_user_error(error, *words) else WRONG, describe(error))


def accepted(work, note=""):
    """Return an attempt that is survived if `work()` returns a true value."""
    value, error = outcome(work)
    if error is not None:
        return Attempt(WRONG, f"{note}: {describe(error)}".removeprefix(": "))
    return Attempt(SURVIVED if value else WRONG, note if value else f"wrong result; {note}")


def refused_or_right(work, is_right, *words):
    """Return an attempt that is survived if `work()` is refused, or `is_right` of what it returns."""
    value, error = outcome(work)
    if error is None:
        return Attempt(SURVIVED if is_right(value) else WRONG, f"gave {value!r:.80}")
    return Attempt(SURVIVED if is_user_error(error, *words) else WRONG, describe(error))


def unchanged(attempt, folder, before, but=()):
    """Return the attempt, or a lost one if a folder's `snapshot` has `changes`."""
    changed = changes(before, snapshot(folder), but)
    return Attempt(LOST, f"changed: {', '.join(changed)}; {attempt.note}") if changed else attempt


def changes(before, after, but=()):
    """Return the sorted names that differ between two snapshots, without those that have an ending of `but`."""
    names = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    return sorted(name for name in names if not name.endswith(tuple(but)))


def snapshot(folder):
    """Return what a folder holds: a dict of names to kind, size, time of change, and SHA-256 or target."""
    return {str(path.relative_to(folder)): _state(path) for path in sorted(pathlib.Path(folder).rglob("*"))}


def _state(path):
    status = path.lstat()
    kind, content = stat.S_IFMT(status.st_mode), None
    if stat.S_ISLNK(status.st_mode):
        content = os.readlink(path)
    elif stat.S_ISREG(status.st_mode):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
    # The time of a folder changes with a lock that comes and goes in it.
    return (kind, status.st_size, status.st_mtime_ns, content) if not stat.S_ISDIR(status.st_mode) else (kind,)
