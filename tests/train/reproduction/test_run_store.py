"""Records of finished runs: what is written is read again, by several processes, and after interruptions."""

import concurrent.futures
import json

import pytest

from keras_wsl.file_lock import file_lock
from keras_wsl.training import artifacts
from reproduction import run_store
from reproduction.run_store import RunRecord, RunStore

FLAGS = ["--student=resnet8", "--teacher=", "--vocabulary=a folder/with spaces", '# data: "cifar100.npz"']
RESULT = {
    "method": "kd",
    "teacher": None,
    "commit": "123456",  # Text that reads as a number.
    "seed": 3,
    "epochs": 2,
    "train_examples": 100,
    "test_accuracy": 0.16580000519752502,
    "seconds": 20.0,
    "best_accuracy": float("nan"),
    "versions": {"keras": "3.15.1"},
    "last_epoch": {"regularization_samples": 292.0, "regularization_sample_rate": 0.058400001376867294},
}
EPOCHS = [{"epoch": 1, "loss": 0.042399998754262924, "val_accuracy": ""}, {"epoch": 2, "loss": 3.0, "val_accuracy": 1}]
COUNTS = [{"epoch": epoch, "examples": 60, "class_0": 3, "class_1": 0} for epoch in (1, 2)]


def _finish(directory, result=RESULT, *, counts=COUNTS, epochs=EPOCHS):
    artifacts.write_text(directory / "run.flags", "\n".join(FLAGS) + "\n")
    artifacts.write_csv(directory / "epochs.csv", epochs)
    if counts:
        artifacts.write_csv(directory / "tensorboard" / "regularization_samples.csv", counts)
    artifacts.write_json(directory / "result.json", result)
    return directory


def test_run_store_returns_what_was_added(tmp_path):
    store = RunStore(tmp_path / "records")
    _finish(tmp_path / "kd")
    store.add(tmp_path / "kd", "cifar100")
    record, original = store.get("kd"), RunRecord.read(tmp_path / "kd")
    assert record.flag_lines == FLAGS and record.flags == FLAGS[:3] and record.name == "kd"
    assert json.dumps(record.result, sort_keys=True) == json.dumps(RESULT, sort_keys=True)
    assert record.epochs == original.epochs == [{"epoch": 1.0, "loss": 0.042399998754262924}, {**EPOCHS[1]}]
    assert record.clean_counts == original.clean_counts == COUNTS
    assert repr(store.row("kd")) == repr(record.row) == repr(original.row) == repr(store.rows()[0])
    assert record.row["regularization_samples"] == 292.0 and record.row["flags"] == " ".join(FLAGS[:3])
    assert record.row["teacher"] is None and tuple(record.row) == run_store.COLUMNS
    names = {f"cifar100_{kind}.csv" for kind in ("runs", "epochs", "classes")}
    assert {path.name for path in store.directory.iterdir()} == names


def test_run_store_adds_finished_runs_once(tmp_path):
    store = RunStore(tmp_path / "records")
    artifacts.write_text(tmp_path / "begun" / "run.flags", "--student=resnet8\n")
    store.add(tmp_path / "begun", "cifar100")
    assert "begun" not in store and not store.directory.exists() and not store.rows()
    _finish(tmp_path / "done", counts=[])
    store.add(tmp_path / "done", "cifar100")
    _finish(tmp_path / "done", {**RESULT, "test_accuracy": 0.6})
    store.add(tmp_path / "done", "cifar100")
    assert store.row("done")["test_accuracy"] == RESULT["test_accuracy"] and not store.get("done").clean_counts
    _finish(tmp_path / "b", {**RESULT, "mismatched_accuracy": 0.5})
    store.add(tmp_path / "b", "multinli")
    assert [row["run"] for row in store.rows()] == ["done", "b"] and store.row("b")["mismatched_accuracy"] == 0.5
    with pytest.raises(ValueError, match="'absent' is not a recorded run"):
        store.get("absent")


def test_run_store_tables_are_sorted_whatever_the_order(tmp_path):
    for names in ("abc", "cab"):
        for name in names:
            RunStore(tmp_path / names).add(_finish(tmp_path / "runs" / name), "cifar100")
    for path in (tmp_path / "abc").iterdir():
        assert path.read_bytes() == (tmp_path / "cab" / path.name).read_bytes()


def test_run_store_keeps_all_runs_of_concurrent_writers(tmp_path):
    directories = [_finish(tmp_path / "runs" / str(number)) for number in range(8)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda directory: RunStore(tmp_path / "records").add(directory, "cifar100"), directories))
    store = RunStore(tmp_path / "records")
    assert [row["run"] for row in store.rows()] == [directory.name for directory in directories]
    assert all(len(store.get(directory.name).epochs) == 2 for directory in directories)


def test_run_store_replaces_what_an_interrupted_add_left(tmp_path, monkeypatch):
    store, insert = RunStore(tmp_path / "records"), run_store._insert
    _finish(tmp_path / "kd", epochs=[{"epoch": 1, "loss": 9.0}])

    def interrupted(path, *others):
        if path.name.endswith("_runs.csv"):
            raise KeyboardInterrupt
        insert(path, *others)

    monkeypatch.setattr(run_store, "_insert", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.add(tmp_path / "kd", "cifar100")
    assert "kd" not in store and (store.directory / "cifar100_epochs.csv").exists()
    monkeypatch.undo()
    _finish(tmp_path / "kd")
    store.add(tmp_path / "kd", "cifar100")
    assert [row["loss"] for row in store.get("kd").epochs] == [EPOCHS[0]["loss"], 3.0]


def test_run_store_reports_a_lock_and_a_damaged_table(tmp_path, monkeypatch):
    store = RunStore(tmp_path)
    _finish(tmp_path / "kd")
    monkeypatch.setattr(run_store, "_LOCK_TIMEOUT", 0.1)
    with file_lock(tmp_path / "records.lock"), pytest.raises(TimeoutError, match="Another process holds"):
        store.add(tmp_path / "kd", "cifar100")
    (tmp_path / "cifar100_runs.csv").write_text("name,flags\nkd,--a\n")
    with pytest.raises(ValueError, match=r"cifar100_runs.csv must be a table of runs. Received: KeyError\('run'\)"):
        store.rows()
