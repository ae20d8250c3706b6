"""Atomic writes: concurrent and killed writers, locks, and temporary files next to their target."""

import contextlib
import errno
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time

import pytest

from keras_wsl import files
from keras_wsl.file_lock import file_lock
from tests.common import largest_file

# A process that loads the module alone, without Keras, and has the process id 1 as in a container.
CHILD = """
import os, pathlib, sys, types
os.getpid = lambda: 1
sys.modules["keras_wsl"] = types.ModuleType("keras_wsl")
sys.modules["keras_wsl"].__path__ = [os.path.dirname(sys.argv[1])]
from keras_wsl import files
path = pathlib.Path(sys.argv[2])
assert "keras" not in sys.modules and "numpy" not in sys.modules
"""
WRITES = """
for i in range(50):
    content = bytes([int(sys.argv[3])]) * 100_000
    files.atomic_write(path, lambda file: file.write(content))
"""
STOPS = """
def stop(*_):
    print("writing", flush=True)
    sys.stdin.read()

def write(file):
    file.write(b"half")
    file.flush()
    stop()

if sys.argv[3] == "file":
    files.atomic_write(path, write)
else:
    with files.temporary_directory(path) as directory:
        (directory / "part").mkdir()
        (directory / "part" / "file").write_bytes(b"half")
        stop()
"""


def child(code, path, argument):
    return subprocess.Popen(
        [sys.executable, "-c", CHILD + code, files.__file__, str(path), argument],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@contextlib.contextmanager
def writing(path, kind):
    """Run a process in the middle of a write, and kill it at the end."""
    process = child(STOPS, path, kind)
    try:
        assert process.stdout.readline() == "writing\n"
        yield process
    finally:
        process.kill()
        process.communicate(timeout=1200)


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def orphan(directory, name="a", content=b"half"):
    path = directory / f"{name}.0123456789abcdef.writing"
    path.write_bytes(content)
    return path


def test_atomic_write_in_processes_with_equal_ids(tmp_path):
    path = tmp_path / "result"
    processes = [child(WRITES, path, str(i)) for i in range(4)]
    assert [process.wait(timeout=1200) for process in processes] == [0] * 4
    content = path.read_bytes()
    assert len(content) == 100_000 and len(set(content)) == 1 and content[0] < 4
    assert names(tmp_path) == ["result"]


def test_atomic_write_in_threads(tmp_path):
    path, errors = tmp_path / "result", []
    start = threading.Barrier(8)

    def write(number):
        start.wait()
        try:
            for _ in range(50):
                files.atomic_write(path, lambda file: file.write(bytes([number]) * 10_000))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(1200)
    assert not errors
    assert len(path.read_bytes()) == 10_000 and len(set(path.read_bytes())) == 1
    assert names(tmp_path) == ["result"]


def test_atomic_write_replaces_symbolic_link(tmp_path):
    target, path = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"precious")
    path.symlink_to(target)
    files.atomic_write(path, lambda file: file.write(b"new"))
    assert target.read_bytes() == b"precious" and path.read_bytes() == b"new" and not path.is_symlink()


def test_atomic_write_removes_temporary_file_after_error(tmp_path):
    with largest_file(1000), pytest.raises(OSError, match=r"result does not fit. It has 5,000 bytes"):
        files.atomic_write(tmp_path / "result", lambda file: file.write(bytes(5000)), size=5000)
    assert names(tmp_path) == []


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_remove_orphans_removes_files_of_killed_process(tmp_path, kind):
    with writing(tmp_path / "result", kind) as process:
        (left,) = names(tmp_path)
        assert files.is_temporary(left)
        files.remove_orphans(tmp_path)
        assert names(tmp_path) == [left]  # The process lives.
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=1200)
        assert names(tmp_path) == [left]
        files.remove_orphans(tmp_path, "other")
        assert names(tmp_path) == [left]
        files.remove_orphans(tmp_path)
    assert names(tmp_path) == []


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_atomic_write_removes_only_orphans_of_its_path(tmp_path, kind):
    other = orphan(tmp_path, "other")
    with writing(tmp_path / "result", kind):
        pass
    assert len(names(tmp_path)) == 2
    files.atomic_write(tmp_path / "result", lambda file: file.write(b"new"))
    assert names(tmp_path) == [other.name, "result"]


def test_remove_orphans_keeps_other_files(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "thesis.tex").write_text("...")
    directory = tmp_path / "run"
    directory.mkdir()
    kept = ["a.writing", "a.xyz.writing", "notes.0123456789abcdef", ".0123456789abcdef.writing", "student.keras"]
    for name in kept:
        (directory / name).write_text("...")
    links = {"linked.0123.writing": outside, "file.0123.writing": outside / "thesis.tex", "gone.0123.writing": "gone"}
    for name, target in links.items():
        (directory / name).symlink_to(target)
    os.mkfifo(directory / "fifo.0123.writing")
    inside = directory / "dead.0123.writing"
    inside.mkdir()
    (inside / "link").symlink_to(outside)
    files.remove_orphans(directory)
    assert names(directory) == sorted([*kept, *links, "fifo.0123.writing"])
    assert (outside / "thesis.tex").read_text() == "..."
    files.remove_orphans(tmp_path / "missing")


def test_remove_orphans_uses_age_without_locks(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", no_locks)
    old, new = orphan(tmp_path, "old"), orphan(tmp_path, "new")
    os.utime(old, (time.time() - 2 * files._MAX_AGE,) * 2)
    files.remove_orphans(tmp_path)
    assert names(tmp_path) == [new.name]
    files.atomic_write(tmp_path / "result", lambda file: file.write(b"whole"))
    with file_lock(tmp_path / "lock") as mine:
        assert mine
    assert names(tmp_path) == [new.name, "result"]


@pytest.mark.parametrize("create", ["_new_file", "_new_directory"])
def test_atomic_write_recreates_removed_temporary_file(tmp_path, monkeypatch, create):
    """Another process removes it between its creation and its lock."""
    original, made = getattr(files, create), []

    @contextlib.contextmanager
    def raced(path):
        with original(path) as opened:
            made.append(path)
            if len(made) == 1:
                files.remove_orphans(tmp_path)
            yield opened

    monkeypatch.setattr(files, create, raced)
    with files._temporary(tmp_path / "a", raced) as (temporary, _):
        assert len(made) == 2 and temporary == made[1] and temporary.exists() and not made[0].exists()
    assert names(tmp_path) == []


def test_replace_directory_is_restored_after_kill(tmp_path):
    path, left = tmp_path / "model", tmp_path / "model.0123456789abcdef.writing"
    (left / "before").mkdir(parents=True)
    (left / "before" / "weights").write_text("old")
    (left / "new").mkdir()
    files.remove_orphans(tmp_path)
    assert names(tmp_path) == ["model"] and (path / "weights").read_text() == "old"
    with files.temporary_directory(path) as directory:
        (directory / "new").mkdir()
        files.replace_directory(directory / "new", path)
    assert names(tmp_path) == ["model"] and names(path) == []


def test_replace_directory_in_threads(tmp_path):
    path, errors = tmp_path / "model", []

    def write(number):
        try:
            for _ in range(30):
                with files.temporary_directory(path) as directory:
                    (directory / "new").mkdir()
                    for name in "ab":
                        (directory / "new" / name).write_text(str(number))
                    files.replace_directory(directory / "new", path)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=[number]) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(1200)
    assert not errors and names(tmp_path) == ["model"]
    assert names(path) == ["a", "b"] and (path / "a").read_text() == (path / "b").read_text()


def test_replace_directory_restores_after_error(tmp_path):
    path = tmp_path / "model"
    path.mkdir()
    (path / "weights").write_text("old")
    with files.temporary_directory(path) as directory, pytest.raises(FileNotFoundError):
        files.replace_directory(directory / "missing", path)
    assert names(tmp_path) == ["model"] and (path / "weights").read_text() == "old"


def test_check_writable_changes_nothing(tmp_path):
    (tmp_path / "writable").write_text("mine")
    files.check_writable(tmp_path)
    assert names(tmp_path) == ["writable"] and (tmp_path / "writable").read_text() == "mine"
    with pytest.raises(OSError):
        files.check_writable(tmp_path / "missing")


def test_scratch_directory_redirects_tempfile_in_its_thread(tmp_path):
    default, seen = tempfile.gettempdir(), []
    with files.scratch_directory(tmp_path / "a") as directory:
        thread = threading.Thread(target=lambda: seen.append(tempfile.gettempdir()))
        thread.start()
        thread.join(60)
        with files.scratch_directory(tmp_path / "b") as inner:
            assert pathlib.Path(tempfile.mkdtemp()).parent == inner
        with tempfile.NamedTemporaryFile() as file:
            assert pathlib.Path(file.name).parent == directory and directory.parent == tmp_path
    assert seen == [default] and tempfile.gettempdir() == default
    assert names(tmp_path) == []


def test_scratch_directory_names_file_on_full_disk(tmp_path):
    with largest_file(1000), pytest.raises(OSError, match="File too large: .*student.keras does not fit"):
        with files.scratch_directory(tmp_path / "student.keras") as directory:
            (directory / "part").write_bytes(bytes(5000))
    assert names(tmp_path) == []


def _link(path):
    path.with_name("target").write_text("precious")
    path.symlink_to("target")


@pytest.mark.parametrize(
    "make",
    [_link, lambda path: path.symlink_to("missing"), os.mkfifo, pathlib.Path.mkdir],
    ids=["link", "dangling_link", "fifo", "directory"],
)
def test_file_lock_accepts_only_regular_files(tmp_path, make):
    path = tmp_path / "run.lock"
    make(path)
    before = names(tmp_path)
    with pytest.raises(ValueError, match=r"run.lock must be a regular file, because it is a lock.*Remove it") as caught:
        with file_lock(path):
            pytest.fail("The lock was given.")
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == before
    if "target" in before:
        assert (tmp_path / "target").read_text() == "precious"


def test_file_lock_keeps_file_content(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    os.link(tmp_path / "thesis.tex", tmp_path / "run.lock")
    with file_lock(tmp_path / "run.lock") as mine:
        assert mine
        with file_lock(tmp_path / "run.lock") as other:
            assert not other
    assert names(tmp_path) == ["thesis.tex"] and (tmp_path / "thesis.tex").read_text() == "precious"
