"""Faults done to real runs, and soaks. The table of `train/results/reliability.md` comes from the same functions."""

import gc
import os
import random
import weakref

import keras
import pytest

import record
from benchmarks import faults, soak, victim


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return victim.prepare(tmp_path_factory.mktemp("faults"))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in faults.NAMES if name not in faults.SOAKS])
def test_runs_withstand(name, whole):
    """Twenty kills, SIGTERM, damaged backups, full and read-only disks, two runs, and the others."""
    try:
        rows = faults.faults(whole, seed=1)[name]()
    except faults.NotHere as reason:
        pytest.skip(str(reason))
    for row in rows:
        assert row["as wanted"] == row["times"], row
    if name == "kills":
        assert sum(row["times"] for row in rows) == 20


@pytest.mark.slow
def test_a_soak_of_two_thousand_calls():
    samples = soak.measure("one distiller", 2000)
    assert samples[-1]["calls"] == 2000
    assert soak.growth(samples) < 0.02
    for what in ("threads", "files"):
        assert samples[0][what] == samples[-1][what]


def test_a_call_leaves_no_thread_and_no_file_open_and_a_distiller_goes_with_its_last_name():
    """TensorFlow keeps the graph of every compiled step, of Keras's models too; networks and variables must go."""
    material, model = soak.Material(), soak.distiller()
    soak.fit_distiller(model, material)
    before = _open()
    for _ in range(2):
        soak.fit_distiller(model, material)
    assert all(now <= then for now, then in zip(_open(), before, strict=True))
    gone = [weakref.ref(one) for one in (model, model.student, model.teacher, model.student.trainable_variables[0])]
    del model
    keras.backend.clear_session()
    gc.collect()
    assert [reference() for reference in gone] == [None] * len(gone)


def _open():
    held = soak.held()
    return held["threads"], held["files"] or 0


def test_growth_is_from_the_first_sample():
    samples = [{"mib": 100.0, "files": 4}, {"mib": 150.0, "files": 5}, {"mib": 101.0, "files": 4}]
    assert soak.growth(samples) == pytest.approx(0.01)
    assert soak.growth(samples, "files") == 0


def test_a_soak_grows_by_less_than_two_percent_or_is_not_as_wanted():
    samples = [{"calls": n, "mib": 100.0 + n, "objects": 5, "threads": 1, "files": None} for n in (1, 2)]
    assert faults.soak_row("one distiller", samples, 3.0)["as wanted"] == 2
    worse = [samples[0], {**samples[1], "mib": 110.0, "objects": 7}]
    row = faults.soak_row("one distiller", worse, 3.0)
    assert row["as wanted"] == 0 and "+8.91%" in row["what came of it"] and "+2 objects" in row["what came of it"]
    assert faults.soak_row("new Keras models", worse, 3.0)["as wanted"] == ""


def test_damage_changes_a_file():
    content, generator = bytes(range(100)), random.Random(0)
    assert faults.truncate(content) == content[:50]
    for _ in range(20):
        changed = faults.flip(content, generator)
        assert len(changed) == 100 and sum(bin(a ^ b).count("1") for a, b in zip(content, changed)) == 1


def test_rows_and_page(tmp_path):
    row = faults.row("a fault", 2, 1, "text", [0.5, 2.25])
    assert row["seconds"] == "0.5 to 2.2" and faults.row("a", 1, 1, "b")["seconds"] == ""
    text = faults.page([row], {"backend": "jax", "python": "3", "versions": {"keras": "3.15"}})
    assert "| a fault | 2 | 1 | text | 0.5 to 2.2 |" in text and f"{os.cpu_count()} CPU cores; jax" in text
    assert faults.short(f"{tmp_path}{os.sep}run/a|b `c`", tmp_path) == "run/a/b 'c'"


def test_a_process_that_ends_is_not_waited_for():
    class Ended:
        def poll(self):
            return 0

    assert not victim.wait_until(lambda: True, Ended())


def test_a_run_without_steps_left_has_no_random_one():
    class Ended:
        all_steps = 66

        def saved(self):
            return 66

    assert not victim.at_a_step(Ended(), None, random.Random(0))


def test_differences_of_tables(tmp_path, monkeypatch):
    network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    monkeypatch.setattr(keras.saving, "load_model", lambda *args, **kwargs: network)
    for name, loss in (("one", 1.0), ("near", 1.0 + 1e-7), ("far", 1.1)):
        record.write_csv(tmp_path / name / "epochs.csv", [{"epoch": 1, "loss": loss}])
        record.write_json(tmp_path / name / "result.json", {"best_accuracy": 0.5, "seconds": loss})
    record.write_csv(tmp_path / "one" / "more.csv", [{"epoch": 1}])
    assert victim.differences(tmp_path / "near", tmp_path / "near") == []
    assert victim.differences(tmp_path / "near", tmp_path / "one") == ["epochs.csv", "more.csv"]
    assert victim.differences(tmp_path / "near", tmp_path / "one", logs=1e-6) == ["more.csv"]
    assert victim.differences(tmp_path / "near", tmp_path / "far", logs=1e-6) == ["epochs.csv"]
