"""What runs leave behind: results that are damaged, pictures, and what killed processes left."""

import contextlib
import dataclasses
import json
import os

import pytest

from keras_wsl import distribution, files
from keras_wsl.training import artifacts, plots, runner
from reproduction import launcher, saved_runs
from reproduction.run_store import RunRecord, RunStore
from tests.common import bright_splits
from tests.train.reproduction.test_bias_variance import SMALL

EXPORTS = True  # See conftest.py.

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
def test_read_result_refuses_in_one_line(tmp_path, content, message):
    path = tmp_path / "run" / "result.json"
    artifacts.write_text(path, content)
    artifacts.write_text(path.with_name("run.flags"), "--student=resnet8\n")
    artifacts.write_csv(path.with_name("epochs.csv"), [{"epoch": 1, "val_accuracy": 0.5}])
    readers = (
        artifacts.read_result,
        RunRecord.read,
        lambda folder: RunStore(tmp_path / "records").add(folder, "cifar100"),
        lambda folder: saved_runs.read(folder, None),
    )
    for read in readers:
        with pytest.raises(ValueError, match=message) as caught:
            read(path.parent)
        assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_read_result_names_what_is_missing(tmp_path):
    artifacts.write_json(tmp_path / "result.json", {"test_accuracy": 0.5, "other": [float("nan")]})
    assert artifacts.read_result(tmp_path, "test_accuracy")["test_accuracy"] == 0.5
    with pytest.raises(
        ValueError, match=r"result.json is no result of a run. `seconds` is missing. It must be a number"
    ):
        artifacts.read_result(tmp_path, "test_accuracy", "seconds")
    with pytest.raises(FileNotFoundError, match="holds no finished run"):
        artifacts.read_result(tmp_path / "missing")
    (tmp_path / "fifo").mkdir()
    os.mkfifo(tmp_path / "fifo" / "result.json")
    with pytest.raises(ValueError, match="result.json must be a regular file"):
        artifacts.read_result(tmp_path / "fifo")


def test_jobs_name_a_damaged_result(tmp_path, monkeypatch):
    def call(arguments, *others):
        artifacts.write_json(tmp_path / "run" / "result.json", {"test_accuracy": None, "seconds": 1.0})
        return 0, ""

    monkeypatch.setattr(launcher, "call", call)
    with pytest.raises(ValueError, match="result.json is no result of a run. `test_accuracy` must be a number"):
        launcher.train({tmp_path / "run": SMALL}, "images.npz")


def test_alone_in_removes_what_a_killed_process_left(tmp_path):
    (tmp_path / "tensorboard").mkdir()
    left = [
        tmp_path / f"{name}.0123456789abcdef.writing" for name in ("epochs.csv", "tensorboard/a.csv", "student.keras")
    ]
    for path in left[:2]:
        path.write_bytes(b"half")
    left[2].mkdir()
    (left[2] / "student.keras").write_bytes(b"half")
    with files.temporary_directory(tmp_path / "worker") as alive, artifacts.alone_in(tmp_path):
        assert alive.is_dir() and not any(path.exists() for path in left)


def test_alone_in_refuses_a_lock_that_is_a_link(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    (tmp_path / artifacts.LOCK).symlink_to("thesis.tex")
    with pytest.raises(ValueError, match="run.lock must be a regular file"), artifacts.alone_in(tmp_path):
        pytest.fail("The lock was given.")
    assert (tmp_path / "thesis.tex").read_text() == "precious"


def test_a_picture_is_whole_or_absent(tmp_path, monkeypatch):
    path = tmp_path / "curves.png"
    rows = {"run": [{"epoch": 1, "val_accuracy": 0.5}]}
    plots.plot(rows, path)
    before = path.read_bytes()
    assert before.startswith(b"\x89PNG")

    def fail(self, file, **_):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        plots.plot(rows, path)
    assert path.read_bytes() == before and [there.name for there in tmp_path.iterdir()] == ["curves.png"]


def test_a_worker_that_is_not_the_chief_writes_beside_the_results(tmp_path, monkeypatch):
    """On the disk of --output_dir, in a folder that is gone afterwards and does not keep the chief from starting."""
    seen = []

    def run(wanted, splits, out, held, **_):
        (beside,) = (tmp_path / "out").iterdir()
        assert out.is_relative_to(beside) and files.is_temporary(beside.name)
        with contextlib.suppress(ValueError):
            seen.append(artifacts.open_run(tmp_path / "out", wanted, resume=False))

    monkeypatch.setattr(distribution, "is_chief", lambda strategy: False)
    monkeypatch.setattr(runner, "_run", run)
    runner.run(dataclasses.replace(SMALL, teacher="", teacher_weights=""), bright_splits(6), tmp_path / "out")
    assert seen == [tmp_path / "out"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["run.flags"]
