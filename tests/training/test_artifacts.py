"""Directories and files of runs: what is refused, and what a damaged file raises."""

import dataclasses
import json
import os

import pytest

from keras_wsl import files
from keras_wsl.training import artifacts, config
from reproduction import launcher, saved_runs
from reproduction.run_store import RunRecord, RunStore
from tests.training.conftest import SMALL

EXPORTS = True  # See tests/train/conftest.py.


RESULT = {
    "test_accuracy": 0.5,
    "seconds": 1.0,
    "train_examples": 100,
    "test_examples": 10,
    "epochs": 2,
    "teacher": None,
}


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "JSON"),
        ("[" * 10_000, "at most 100 deep"),
        ("[1]", "must be an object"),
        (json.dumps({**RESULT, "test_accuracy": "high"}), "`test_accuracy` must be a number"),
        (json.dumps({**RESULT, "seconds": True}), "`seconds` must be a number"),
        (json.dumps({**RESULT, "epochs": 0}), "`epochs` must be an integer"),
        (json.dumps({**RESULT, "test_examples": 1.5}), "`test_examples` must be an integer"),
        (json.dumps({**RESULT, "last_epoch": [1]}), "`last_epoch` must be an object"),
        (json.dumps({**RESULT, "teacher": 3}), "`teacher` must be text .*or null"),
        (json.dumps({**RESULT, "more": "x" * 2**21}), "at most 1,048,576 bytes"),
    ],
    ids=range(10),
)
def test_read_result_refuses_a_damaged_file_in_one_line(tmp_path, content, message):
    path = tmp_path / "run" / "result.json"
    artifacts.write_text(path, content)
    artifacts.write_text(path.with_name("run.flags"), "--student=resnet8\n")
    artifacts.write_csv(path.with_name("epochs.csv"), [{"epoch": 1, "val_accuracy": 0.5}])
    readers = (
        artifacts.read_result,
        RunRecord.read,
        lambda directory: RunStore(tmp_path / "records").add(directory, "cifar100"),
        lambda directory: saved_runs.read(directory, None),
    )
    for read in readers:
        with pytest.raises(ValueError, match=message) as caught:
            read(path.parent)
        assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_read_result_names_a_missing_field(tmp_path):
    artifacts.write_json(tmp_path / "result.json", {"test_accuracy": 0.5, "other": [float("nan")]})
    assert artifacts.read_result(tmp_path, "test_accuracy")["test_accuracy"] == 0.5
    with pytest.raises(
        ValueError, match=r"result.json is not the result of a run. `seconds` is missing. It must be a number"
    ):
        artifacts.read_result(tmp_path, "test_accuracy", "seconds")
    with pytest.raises(FileNotFoundError, match="holds no finished run"):
        artifacts.read_result(tmp_path / "missing")
    (tmp_path / "fifo").mkdir()
    os.mkfifo(tmp_path / "fifo" / "result.json")
    with pytest.raises(ValueError, match="result.json must be a regular file"):
        artifacts.read_result(tmp_path / "fifo")


def test_jobs_train_names_a_damaged_result(tmp_path, monkeypatch):
    def call(arguments, *others):
        artifacts.write_json(tmp_path / "run" / "result.json", {"test_accuracy": None, "seconds": 1.0})
        return 0, ""

    monkeypatch.setattr(launcher, "call", call)
    with pytest.raises(ValueError, match="result.json is not the result of a run. `test_accuracy` must be a number"):
        launcher.train({tmp_path / "run": SMALL}, "images.npz")


def test_lock_run_removes_orphans(tmp_path):
    (tmp_path / "tensorboard").mkdir()
    left = [
        tmp_path / f"{name}.0123456789abcdef.writing" for name in ("epochs.csv", "tensorboard/a.csv", "student.keras")
    ]
    for path in left[:2]:
        path.write_bytes(b"half")
    left[2].mkdir()
    (left[2] / "student.keras").write_bytes(b"half")
    with files.temporary_directory(tmp_path / "worker") as alive, artifacts.lock_run(tmp_path):
        assert alive.is_dir() and not any(path.exists() for path in left)


def test_lock_run_refuses_a_symbolic_link(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    (tmp_path / artifacts.LOCK).symlink_to("thesis.tex")
    with pytest.raises(ValueError, match="run.lock must be a regular file"), artifacts.lock_run(tmp_path):
        pytest.fail("The lock was acquired.")
    assert (tmp_path / "thesis.tex").read_text() == "precious"


def test_open_run_directory_gives_new_settings_their_defaults(tmp_path):
    artifacts.open_run_directory(tmp_path / "run", SMALL, resume=False)
    path = tmp_path / "run" / "run.flags"
    older = [line for line in path.read_text().splitlines() if not line.startswith(("--eval_every", "--extra_losses"))]
    path.write_text("\n".join(older) + "\n")
    assert artifacts.open_run_directory(tmp_path / "run", SMALL, resume=True) == tmp_path / "run"
    with pytest.raises(ValueError, match="holds another run. --eval_every: 1 in run.flags, 2 now. Choose"):
        artifacts.open_run_directory(tmp_path / "run", dataclasses.replace(SMALL, eval_every=2), resume=True)
    artifacts.open_run_directory(tmp_path / "records", config.ImageNetConfig(), resume=False)
    with pytest.raises(ValueError, match="another run. .*--student: 'imagenet_resnet18' in run.flags, 'tiny' now"):
        artifacts.open_run_directory(tmp_path / "records", SMALL, resume=True)


def test_open_run_directory_refuses_another_run(tmp_path):
    out = artifacts.open_run_directory(tmp_path / "run", SMALL, resume=False)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    with pytest.raises(ValueError, match=r"holds another run. .*--seed: 0 in run.flags, 1 now"):
        artifacts.open_run_directory(out, dataclasses.replace(SMALL, seed=1), resume=True)
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="other files and no run"):
        artifacts.open_run_directory(tmp_path, SMALL, resume=False)
    with pytest.raises(ValueError, match="--output_dir is missing"):
        artifacts.open_run_directory("", SMALL, resume=False)


def test_open_run_directory_refuses_an_unwritable_path(tmp_path, monkeypatch):
    (tmp_path / "notes.txt").write_text("mine")
    for place in (tmp_path / "notes.txt", tmp_path / "notes.txt" / "run"):
        with pytest.raises(NotADirectoryError, match=r"notes.txt must be a directory. Received: it is a file"):
            artifacts.open_run_directory(place, SMALL, resume=False)
    missing = tmp_path / "a" / "b" / "run"
    assert artifacts.open_run_directory(missing, SMALL, resume=False) == missing and (missing / "run.flags").exists()
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)  # Permissions do not bind root.
    with pytest.raises(ValueError, match="run cannot be written to. Make it writable"):
        artifacts.open_run_directory(missing, SMALL, resume=True)


def test_lock_run_excludes_other_processes(tmp_path):
    out = artifacts.open_run_directory(tmp_path / "run", SMALL, resume=False)
    with artifacts.lock_run(out):
        with pytest.raises(ValueError, match="Another process is writing to --output_dir="), artifacts.lock_run(out):
            raise AssertionError("Two contexts hold the lock.")
        assert (out / artifacts.LOCK).exists()
    with artifacts.lock_run(out):
        assert (out / artifacts.LOCK).exists()
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / artifacts.LOCK).touch()  # A killed process leaves the file, and no lock.
    with artifacts.lock_run(artifacts.open_run_directory(tmp_path / "killed", SMALL, resume=False)):
        assert artifacts.LOCK in {path.name for path in (tmp_path / "killed").iterdir()}
    assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == ["run.flags"]


DAMAGED_FLAGS = {
    "binary": (lambda path: path.write_bytes(bytes(range(256))), "bytes that are not text"),
    "null byte": (lambda path: path.write_bytes(b"--epochs=1\0\n"), "bytes that are not text"),
    "words": (lambda path: path.write_text("hello\n--epochs=3\n"), "the line 'hello'"),
    "other files": (lambda path: path.write_text("--flagfile=/dev/zero\n"), "the line '--flagfile=/dev/zero'"),
    "comments": (lambda path: path.write_text("# data: 1\n"), "no flags"),
    "empty": (lambda path: path.write_text(""), "no flags"),
    "huge": (lambda path: path.write_bytes(b"-" * (2**20 + 1)), "1,048,577 bytes"),
    "directory": (lambda path: path.mkdir(), "it is a directory"),
    "pipe": (lambda path: os.mkfifo(path), "it is a named pipe"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "it is a device"),
    "dangling": (lambda path: path.symlink_to("nowhere"), "it is a symbolic link without a target"),
}


@pytest.mark.parametrize("name", DAMAGED_FLAGS)
def test_open_run_directory_refuses_damaged_flags(name, tmp_path):
    damage, received = DAMAGED_FLAGS[name]
    damage(tmp_path / "run.flags")
    for read in (
        lambda: artifacts.open_run_directory(tmp_path, SMALL, resume=True),
        lambda: config.read(tmp_path / "run.flags"),
    ):
        with pytest.raises(ValueError, match=f"run.flags must .*Received: {received}"):
            read()


def test_open_run_directory_ignores_comments(tmp_path):
    artifacts.open_run_directory(tmp_path / "run", SMALL, resume=False, contents={"data.train.examples": 3})
    with open(tmp_path / "run" / "run.flags", "a") as file:
        file.write(f"# note: {'[' * 100_000}\n# seed: 3: my favourite\n#\n\n")
    assert artifacts.open_run_directory(tmp_path / "run", SMALL, resume=True, contents={"data.train.examples": 3})
    with pytest.raises(ValueError, match="data.train.examples: 3 in run.flags, 4 now"):
        artifacts.open_run_directory(tmp_path / "run", SMALL, resume=True, contents={"data.train.examples": 4})
