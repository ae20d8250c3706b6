"""Whole runs: what they write, how they repeat, and options of `run`."""

import contextlib
import csv
import dataclasses
import importlib.util
import json
import shutil
import sys

import keras
import numpy as np
import pytest

from benchmarks.fault_injection import differences
from keras_wsl import data, distribution, files
from keras_wsl.training import artifacts, runner
from tests.common import bright_splits
from tests.training.conftest import SMALL, assert_same_run, load_weights, splits_of_90, with_teacher

EXPORTS = True  # See tests/train/conftest.py.


OUTPUTS = [
    "backups",
    "curves.png",
    "epochs.csv",
    "result.json",
    "run.flags",
    *(["saved_model"] if keras.backend.backend() != "torch" or importlib.util.find_spec("torch_xla") else []),
    "student.keras",
    "tensorboard",
]


def test_run_writes_all_outputs(wsl):
    out, result = wsl
    assert sorted(path.name for path in out.iterdir()) == sorted(OUTPUTS)
    with open(out / "epochs.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert float(rows[-1]["val_accuracy"]) == result["final_accuracy"] == result["test_accuracy"]
    assert result["best_accuracy"] == max(float(row["val_accuracy"]) for row in rows)
    assert result["last_epoch"]["regularization_samples"] == float(rows[-1]["regularization_samples"])
    assert {"clean_regularization_samples", "wsl", "student_loss", "distillation_loss"} <= set(rows[0])
    assert result == json.loads((out / "result.json").read_text())
    assert result["versions"]["keras"] == keras.__version__
    assert (out / "curves.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert len(list((out / "tensorboard").glob("events.*"))) > 0


def test_run_saves_the_evaluated_student(wsl):
    out, result = wsl
    student = keras.saving.load_model(out / "student.keras", compile=False)
    test = splits_of_90().test
    logits = student.predict(data.eval_batches(test, 10), verbose=0)
    assert np.mean(logits.argmax(-1) == test.labels) == pytest.approx(result["test_accuracy"])


@pytest.mark.tensorflow
def test_run_exports_a_saved_model_that_serves_the_student(wsl):
    import tensorflow as tf

    out, _ = wsl
    student = keras.saving.load_model(out / "student.keras", compile=False)
    images = np.random.default_rng(1).normal(size=(5, 8, 8, 3)).astype("float32")
    loaded = tf.saved_model.load(str(out / "saved_model"))
    (logits,) = loaded.signatures["serving_default"](tf.constant(images)).values()
    np.testing.assert_allclose(logits, student.predict(images, verbose=0), atol=1e-5)
    test = splits_of_90().test
    expected = student.predict(data.eval_batches(test, 10), verbose=0)
    np.testing.assert_allclose(loaded.serve_raw(test.images), expected, atol=1e-5)
    assert len(loaded.variables) == len(student.variables)


def test_differences_names_changed_files(wsl, tmp_path):
    out = shutil.copytree(wsl[0], tmp_path / "copy")
    student = keras.saving.load_model(out / "student.keras", compile=False)
    student.trainable_variables[0].assign_add(keras.ops.full(student.trainable_variables[0].shape, 1e-6))
    student.save(out / "student.keras")
    (out / "epochs.csv").write_text((out / "epochs.csv").read_text()[:-2])
    (out / "tensorboard" / "regularization_samples.csv").unlink()
    result = json.loads((out / "result.json").read_text())
    (out / "result.json").write_text(json.dumps({**result, "best_accuracy": 2.0, "seconds": -1.0}))
    files = ["student.keras", "epochs.csv", "tensorboard/regularization_samples.csv"]
    assert differences(wsl[0], out) == [*files, "result.json: best_accuracy"]


def test_run_resumes_a_finished_run_without_training(wsl, teacher, tmp_path):
    out = tmp_path / "copy"
    shutil.copytree(wsl[0], out)
    again = runner.run(with_teacher(teacher), splits_of_90(), out, resume=True, verbose=0)
    assert again["test_accuracy"] == wsl[1]["test_accuracy"]
    assert_same_run(wsl[0], out)


@pytest.mark.slow
@pytest.mark.usefixtures("without_exports")
def test_run_with_label_smoothing_validation_examples_and_subset(teacher, tmp_path):
    settings = with_teacher(
        teacher,
        method="kd",
        epochs=1,
        label_smoothing=0.1,
        validation_examples=30,
        max_train_examples=45,
        decay_epochs=(),
    )
    result = runner.run(settings, splits_of_90(), tmp_path / "run", verbose=0)
    assert result["train_examples"] == 45
    assert result["eval_split"] == "30 held-out training examples"
    row = artifacts.read_csv(tmp_path / "run" / "epochs.csv")[0]
    # KD as published: a tenth of the labels' loss, nine tenths of the soft labels'.
    assert row["distillation_loss"] == pytest.approx(0.9 * row["kd"], rel=1e-5)
    assert row["loss"] == pytest.approx(0.1 * row["student_loss"] + 0.9 * row["kd"], rel=1e-4)


@pytest.mark.slow
def test_run_online_uses_teacher_checkpoints(teacher, tmp_path):
    """One checkpoint for all epochs gives the offline run; a resumed run ends in the same bits."""
    directory = shutil.copytree(teacher.parent, tmp_path / "teacher")
    runs = {"plain": {}, "online": {"online": True}, "late": {"online": True, "teacher_update_epochs": 2}}
    settings = {name: with_teacher(directory / "student.keras", **changes) for name, changes in runs.items()}
    results = {name: runner.run(settings[name], splits_of_90(), tmp_path / name, verbose=0) for name in runs}
    plain, online, late = (load_weights(tmp_path / name / "student.keras") for name in runs)
    for a, b in zip(plain, late, strict=True):
        np.testing.assert_array_equal(a, b)
    assert any(np.abs(a - b).max() > 1e-5 for a, b in zip(plain, online))
    assert results["online"]["teacher_update_epochs"] == 1 and results["plain"]["teacher_update_epochs"] is None
    assert results["online"]["teacher_accuracy"] == results["plain"]["teacher_accuracy"]
    # Without its last backup the run goes on where the first epoch ended, with the second checkpoint.
    again = shutil.copytree(tmp_path / "online", tmp_path / "again")
    for lost in (again / "result.json", again / "student.keras", max((again / "backups").glob("*.backup"))):
        lost.unlink()
    runner.run(settings["online"], splits_of_90(), again, resume=True, verbose=0)
    assert_same_run(tmp_path / "online", again)
    shutil.copy(
        directory / "checkpoints" / "epoch-000000.weights.h5", directory / "checkpoints" / "epoch-000001.weights.h5"
    )
    with pytest.raises(ValueError, match="another run. --teacher_checkpoints: 'SHA-256 .* in run.flags, 'SHA-256"):
        runner.run(settings["online"], splits_of_90(), again, resume=True, verbose=0)
    shutil.rmtree(directory / "checkpoints")
    with pytest.raises(FileNotFoundError, match="has no checkpoints such as epoch-000001.weights.h5"):
        runner.run(settings["online"], splits_of_90(), tmp_path / "none", verbose=0)


@pytest.mark.slow
@pytest.mark.tensorflow
def test_run_with_dtype_policy_strategy_and_steps_per_execution(wsl, teacher, tmp_path):
    changes = {"dtype_policy": "mixed_float16", "strategy": "mirrored"}
    settings = with_teacher(teacher, **changes)
    result = runner.run(settings, splits_of_90(), tmp_path / "mixed", verbose=0)
    student = keras.saving.load_model(tmp_path / "mixed" / "student.keras", compile=False)
    assert {layer.compute_dtype for layer in student.layers} == {"float16", "float32"}
    plain = artifacts.read_csv(wsl[0] / "epochs.csv")[0]
    assert artifacts.read_csv(tmp_path / "mixed" / "epochs.csv")[0]["loss"] == pytest.approx(plain["loss"], rel=0.05)
    assert 0 <= result["test_accuracy"] <= 1
    runner.run(
        with_teacher(teacher, steps_per_execution=3, backup_every_steps=0),
        splits_of_90(),
        tmp_path / "steps",
        verbose=0,
    )
    for one, other in zip(load_weights(wsl[0] / "student.keras"), load_weights(tmp_path / "steps" / "student.keras")):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_run_without_tensorboard_writes_nothing(teacher, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard.summary.writer.event_file_writer", None)
    with pytest.raises(ImportError, match="run requires the package tensorboard. Run `pip install tensorboard`"):
        runner.run(with_teacher(teacher), splits_of_90(), tmp_path / "run", verbose=0)
    assert not (tmp_path / "run").exists()


def test_run_of_a_worker_writes_to_a_temporary_directory(tmp_path, monkeypatch):
    """The directory is on the disk of --output_dir, is removed, and does not keep the chief from starting."""
    seen = []

    def run(settings, splits, out, held, **_):
        (worker,) = (tmp_path / "out").iterdir()
        assert out.is_relative_to(worker) and files.is_temporary(worker.name)
        with contextlib.suppress(ValueError):
            seen.append(artifacts.open_run_directory(tmp_path / "out", settings, resume=False))

    monkeypatch.setattr(distribution, "is_chief", lambda strategy: False)
    monkeypatch.setattr(runner, "_run", run)
    runner.run(dataclasses.replace(SMALL, teacher="", teacher_weights=""), bright_splits(6), tmp_path / "out")
    assert seen == [tmp_path / "out"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["run.flags"]
