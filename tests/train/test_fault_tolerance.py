"""The suite of faults: how attempts are classified, the tables, and, in the slow tests, the faults themselves."""

import gc
import os
import random
import signal
import subprocess
import sys
import time
import types
import weakref

import keras
import numpy as np
import pytest
from absl import flags

import benchmark
from benchmarks import fault_injection, fault_tolerance, faults, soak
from benchmarks.faults import child, disks, hostile_files, inputs, material, numerics, soaks
from benchmarks.faults.fault import (
    LOST,
    SURVIVED,
    WRONG,
    Attempt,
    HangError,
    accepted,
    changes,
    classify,
    refused,
    refused_or_right,
    snapshot,
    time_limit,
    unchanged,
)
from keras_wsl.training import artifacts
from reproduction.markdown import format_table

ENVIRONMENT = {"backend": "jax", "python": "3", "versions": {"keras": "3.15"}, "commit": "abc"}


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return tmp_path_factory.mktemp("faults") / "runs"


@pytest.mark.slow
@pytest.mark.parametrize("fault", faults.FAULTS, ids=lambda fault: fault.name)
def test_fault_is_survived(fault, shared, tmp_path):
    row = fault_tolerance.attempt_all(fault, faults.Bench(tmp_path / "fault", 1, shared))
    if not row["attempts"]:
        pytest.skip(row["outcome"])
    assert row[SURVIVED] == row["attempts"], row["outcome"]


def test_faults_have_a_name_a_method_and_an_expectation():
    assert len({fault.name for fault in faults.FAULTS}) == len(faults.FAULTS) > 40
    assert all(fault.method and fault.expected for fault in faults.FAULTS)
    assert len({fault.group for fault in faults.FAULTS}) == len(faults.GROUPS)


def test_fit_leaves_no_thread_and_no_file_open_and_a_distiller_is_collected():
    """TensorFlow keeps the graph of every compiled step, of Keras's models too; networks and variables must go."""
    data, model = soak.Material(), soak.distiller()
    soak.fit_distiller(model, data)
    before = _open()
    for _ in range(2):
        soak.fit_distiller(model, data)
    assert all(now <= then for now, then in zip(_open(), before, strict=True))
    references = [
        weakref.ref(one) for one in (model, model.student, model.teacher, model.student.trainable_variables[0])
    ]
    del model
    keras.backend.clear_session()
    gc.collect()
    assert [reference() for reference in references] == [None] * len(references)


def _open():
    held = soak.held()
    return held["threads"], held["files"] or 0


def test_growth_is_from_the_first_sample():
    samples = [{"mib": 100.0, "files": 4}, {"mib": 150.0, "files": 5}, {"mib": 101.0, "files": 4}]
    assert soak.growth(samples) == pytest.approx(0.01)
    assert soak.growth(samples, "files") == 0


def test_classify_samples_allows_two_percent_and_no_open_file():
    samples = [{"calls": n, "mib": 100.0 + n, "objects": 5, "threads": 1, "files": 3} for n in (1, 2)]
    assert soaks.classify_samples(samples).state == SURVIVED
    larger = soaks.classify_samples([samples[0], {**samples[1], "mib": 110.0}])
    assert larger.state == WRONG and "+8.91%" in larger.note
    assert soaks.classify_samples([samples[0], {**samples[1], "files": 4}]).state == WRONG


def test_classify_separates_lost_from_wrong():
    assert classify("note", 1.5, data={"kept": True}, a_line=True) == Attempt(SURVIVED, "note", 1.5)
    assert classify("note", a_line=False, status_2=True) == Attempt(WRONG, "not: a line; note")
    assert classify(data={"kept": False}, a_line=True).state == LOST


def _raise(error):
    raise error


@pytest.mark.parametrize(
    "error, state",
    [
        (ValueError("`x` must be 1."), SURVIVED),
        (FileNotFoundError("no x"), SURVIVED),
        (ValueError("of y"), WRONG),
        (ValueError("x\ny"), WRONG),
        (KeyError("x"), WRONG),
        (RecursionError("x"), WRONG),
        (HangError("x"), WRONG),
    ],
)
def test_refused_expects_a_line_of_a_user_error_that_names_the_culprit(error, state):
    assert refused(lambda: _raise(error), "x").state == state
    assert refused_or_right(lambda: _raise(error), bool, "x").state == state


def test_refused_is_wrong_if_nothing_is_raised():
    assert refused(lambda: 7) == Attempt(WRONG, "accepted silently: 7")
    assert refused_or_right(lambda: 7, lambda value: value == 7).state == SURVIVED
    assert refused_or_right(lambda: 7, lambda value: value == 8).state == WRONG


def test_accepted_expects_a_true_value():
    assert accepted(lambda: True).state == SURVIVED
    assert accepted(lambda: False).state == accepted(lambda: _raise(ValueError("x"))).state == WRONG


def test_time_limit_ends_a_hang():
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(HangError), time_limit(1):
        time.sleep(60)
    assert signal.getsignal(signal.SIGALRM) is before


def test_snapshot_sees_every_change(tmp_path):
    (tmp_path / "folder").mkdir()
    path = tmp_path / "folder" / "file"
    path.write_text("one")
    (tmp_path / "link").symlink_to(path)
    before = snapshot(tmp_path)
    assert changes(before, snapshot(tmp_path)) == []
    times = path.stat()
    path.write_text("two")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    (tmp_path / "link").unlink()
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "new.verified").touch()
    assert changes(before, snapshot(tmp_path)) == ["folder/file", "link", "new.verified"]
    assert changes(before, snapshot(tmp_path), [".verified"]) == ["folder/file", "link"]
    assert unchanged(Attempt(SURVIVED), tmp_path, before).state == LOST
    assert unchanged(Attempt(WRONG), tmp_path, snapshot(tmp_path)).state == WRONG


def _fault(attempts, name="name"):
    return faults.Fault(name, "group", "method", "expected", attempts)


def test_attempt_all_counts_states_and_keeps_reasons():
    def attempts(bench):
        yield Attempt(SURVIVED, "fine", 0.5)
        yield Attempt(LOST, "gone", 2.25)
        yield Attempt(WRONG, "a | b")
        raise KeyError("x")

    row = fault_tolerance.attempt_all(_fault(attempts), None)
    assert [row[name] for name in fault_tolerance.COUNTS] == [4, 1, 1, 2]
    assert row["outcome"] == "gone; a / b; KeyError: 'x'" and row["seconds_to_end"] == "0.5 to 2.2"


def test_attempt_all_says_what_is_not_supported():
    def attempts(bench):
        raise faults.UnsupportedFault("no disk")
        yield

    row = fault_tolerance.attempt_all(_fault(attempts), None)
    assert row["attempts"] == 0 and row["outcome"] == "not done here: no disk"


def test_page_has_totals_and_short_cells():
    survived = fault_tolerance.attempt_all(_fault(lambda bench: [Attempt(SURVIVED, "fine")] * 3, "one_fault"), None)
    lost = fault_tolerance.attempt_all(_fault(lambda bench: [Attempt(LOST, "word " * 100)]), None)
    rows = [{**{key: str(value) for key, value in row.items()}, "commit": "abc"} for row in (survived, lost)]
    text = fault_tolerance.page(rows, ENVIRONMENT)
    assert "commits abc." in text and "## Not run\n\nuneven batches," in text
    assert format_table([dict(zip(fault_tolerance.COUNTS, "4310"))], fault_tolerance.COUNTS) in text
    assert "| one fault | method | 3 | 3 | 0 | 0 | expected |" in text and "- one fault: `fine`" in text
    assert max(len(cell) for line in text.splitlines() if line.startswith("|") for cell in line.split("|")) <= 102


def test_selected_takes_names_and_groups():
    assert fault_tolerance.selected([]) == faults.FAULTS
    assert [fault.name for fault in fault_tolerance.selected(["sigterm"])] == ["sigterm"]
    assert {fault.group for fault in fault_tolerance.selected(["disks", "sigterm"])} == {"disks", "processes"}
    with pytest.raises(ValueError, match=r"unknown faults \['sigtrem'\]"):
        fault_tolerance.selected(["sigtrem"])


def test_main_keeps_finished_faults(tmp_path, monkeypatch):
    done = []

    def attempts(bench):
        done.append(bench.new_folder().name)
        yield Attempt(SURVIVED if len(done) > 1 else WRONG)

    monkeypatch.setattr(faults, "FAULTS", [_fault(attempts, "first"), _fault(attempts, "second")])
    values = types.SimpleNamespace(output_dir=str(tmp_path / "out"), results=str(tmp_path), only=[], seed=0)
    monkeypatch.setattr(flags, "FLAGS", values)
    assert fault_tolerance.main() == 1 and done == ["first", "second"]
    assert fault_tolerance.main() == 1 and done == ["first", "second"]
    values.only = ["first"]
    assert fault_tolerance.main() == 0 and done == ["first", "second", "first"]
    rows = artifacts.read_texts(tmp_path / "fault_tolerance.csv")
    assert [(row["fault"], row[SURVIVED]) for row in rows] == [("first", "1"), ("second", "1")]
    assert "| 2 | 2 | 0 | 0 |" in (tmp_path / "fault_tolerance.md").read_text()


def test_select_imports_the_suite():
    values = flags.FlagValues()
    assert benchmark.select(["benchmark.py", "--suite=faults", "--only=disks"], values) is fault_tolerance
    with pytest.raises(flags.Error, match="suite"):
        benchmark.select(["benchmark.py", "--suite=fault"], flags.FlagValues())


@pytest.mark.slow
@pytest.mark.parametrize("suite", benchmark.SUITES)
def test_benchmark_lists_the_flags_of_each_suite(suite):
    command = [sys.executable, benchmark.__file__, f"--suite={suite}", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert "--suite" in done.stdout and ("--results" in done.stdout or "--output_dir" in done.stdout), done.stderr


def echo(*arguments):
    """Return the arguments: what a child process is asked for."""
    print("noise")
    return list(arguments)


@pytest.mark.slow
def test_call_returns_what_a_function_returns_in_another_process():
    path = os.pathsep.join([os.getcwd(), *sys.path])
    assert child.call(echo, 1, "a", PYTHONPATH=path) == [1, "a"]
    with pytest.raises(RuntimeError, match="ended with status"):
        child.call(_raise, "x", PYTHONPATH=path)


def test_damage_changes_a_file():
    content, generator = bytes(range(100)), random.Random(0)
    assert disks.cut_in_half(content) == content[:50]
    for _ in range(20):
        changed = disks.flip_bit(content, generator)
        assert len(changed) == 100 and sum(bin(a ^ b).count("1") for a, b in zip(content, changed)) == 1


def test_with_description_changes_a_backup_and_nothing_else(tmp_path):
    content = disks.backup(tmp_path)
    run = hostile_files.description(content)
    assert run["position"] == [0, 0]
    changed = hostile_files.with_description(content, '{"position": [1, 0]}')
    assert hostile_files.description(changed) == {"position": [1, 0]}


def test_exact_weights_are_precise_for_certain_networks():
    logits = np.array([[60.0, 0.0, 0.0, 0.0, 0.0]], "float32")
    exact = np.log1p(4 * np.exp(-np.float64(60)))
    assert numerics._cross_entropies(logits.astype("float64"))[0, 0] == pytest.approx(exact, rel=1e-12)
    assert numerics._cross_entropies(logits.astype("float64"))[0, 1] == pytest.approx(60)


def test_fit_outcome_restores_the_weights():
    distiller, (x, y) = material.distiller(), material.examples(inputs.ROWS)
    before = distiller.student.get_weights()
    finite, error = inputs.fit_outcome(distiller, x, y)
    assert finite and error is None
    assert all(np.array_equal(a, b) for a, b in zip(before, distiller.student.get_weights(), strict=True))
    finite, error = inputs.fit_outcome(distiller, x, np.full(inputs.ROWS, 0.5))
    assert finite is None and inputs.is_refusal(error)


def test_wait_until_returns_false_if_the_process_has_ended():
    assert not fault_injection.wait_until(lambda: True, types.SimpleNamespace(poll=lambda: 0))


def test_at_random_step_needs_a_step_that_is_left():
    ended = types.SimpleNamespace(total_steps=66, saved_steps=lambda: 66)
    assert not fault_injection.at_random_step(ended, None, random.Random(0))


def test_killed_runs_are_killed_as_often_as_asked(monkeypatch, tmp_path):
    run = types.SimpleNamespace(out=tmp_path, resume=lambda: None)
    answers = iter([None, *[{"status": -9}] * 5])
    monkeypatch.setattr(fault_injection, "interrupt", lambda *args: next(answers))
    kills = [
        number for number, _ in fault_injection.killed_runs(lambda name: run, fault_injection.at_random_step, 5, seed=0)
    ]
    assert sum(kills) == 5 and max(kills) <= 3


def test_leftovers_are_files_that_an_undisturbed_run_has_not(tmp_path):
    for name in ("one/run.flags", "one/backups/1.backup", "two/run.flags", "two/backups/2.backup", "two/a.1f.writing"):
        artifacts.write_text(tmp_path / name, "")
    assert fault_injection.leftovers(tmp_path / "one", tmp_path / "two") == ["a.1f.writing"]


def test_differences_of_tables(tmp_path, monkeypatch):
    network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    monkeypatch.setattr(keras.saving, "load_model", lambda *args, **kwargs: network)
    for name, loss in (("one", 1.0), ("near", 1.0 + 1e-7), ("far", 1.1)):
        artifacts.write_csv(tmp_path / name / "epochs.csv", [{"epoch": 1, "loss": loss}])
        artifacts.write_json(tmp_path / name / "result.json", {"best_accuracy": 0.5, "seconds": loss})
    artifacts.write_csv(tmp_path / "one" / "more.csv", [{"epoch": 1}])
    assert fault_injection.differences(tmp_path / "near", tmp_path / "near") == []
    assert fault_injection.differences(tmp_path / "near", tmp_path / "one") == ["epochs.csv", "more.csv"]
    assert fault_injection.differences(tmp_path / "near", tmp_path / "one", logs=1e-6) == ["more.csv"]
    assert fault_injection.differences(tmp_path / "near", tmp_path / "far", logs=1e-6) == ["epochs.csv"]
