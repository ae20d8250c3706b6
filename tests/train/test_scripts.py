"""The scripts as their user runs them, on a few small images."""

import csv
import dataclasses
import importlib.util
import itertools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
import types

import keras
import numpy as np
import pytest
from absl import flags

import online_distillation
import report
import soft_label_storage
from benchmarks.fault_injection import differences
from keras_wsl import callbacks, data, models
from keras_wsl.training import artifacts, cli, config, recipes, runner
from tests.common import bright_splits, run_child, run_script

TRAIN = pathlib.Path(runner.__file__).parent
EXPORTS = True  # See conftest.py.
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


def _splits():
    return bright_splits(90)


SMALL = config.Config(student="tiny", method="none", epochs=2, batch_size=32, decay_epochs=(1,))


@pytest.fixture(scope="module")
def npz(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "images.npz"
    data.save_npz(_splits(), path)
    return path


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "teacher"
    runner.run(dataclasses.replace(SMALL, checkpoint_every=1), _splits(), out, verbose=0)
    return out / "student.keras"


def _taught(teacher, **changes):
    taught = {"method": "wsl", "teacher": "tiny", "teacher_weights": str(teacher), "backup_every_steps": 1}
    return dataclasses.replace(SMALL, **{**taught, **changes})


@pytest.fixture(scope="module")
def wsl(teacher, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "wsl"
    return out, runner.run(_taught(teacher), _splits(), out, verbose=0)


def _child(*arguments):
    """The command of a process that knows the network `tiny`."""
    return [sys.executable, "-m", "tests.script_child", "cifar100.py", *map(str, arguments)]


def _weights(path):
    return keras.saving.load_model(path, compile=False).get_weights()


def _assert_same_run(one, other):
    assert differences(one, other) == []


def test_a_run_leaves_everything(wsl):
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


def test_the_student_file_is_what_was_judged(wsl):
    out, result = wsl
    student = keras.saving.load_model(out / "student.keras", compile=False)
    test = _splits().test
    logits = student.predict(data.eval_batches(test, 10), verbose=0)
    assert np.mean(logits.argmax(-1) == test.labels) == pytest.approx(result["test_accuracy"])


@pytest.mark.tensorflow
def test_the_saved_model_serves_the_student(wsl):
    import tensorflow as tf

    out, _ = wsl
    student = keras.saving.load_model(out / "student.keras", compile=False)
    images = np.random.default_rng(1).normal(size=(5, 8, 8, 3)).astype("float32")
    loaded = tf.saved_model.load(str(out / "saved_model"))
    (logits,) = loaded.signatures["serving_default"](tf.constant(images)).values()
    np.testing.assert_allclose(logits, student.predict(images, verbose=0), atol=1e-5)
    test = _splits().test
    expected = student.predict(data.eval_batches(test, 10), verbose=0)
    np.testing.assert_allclose(loaded.serve_raw(test.images), expected, atol=1e-5)
    assert len(loaded.variables) == len(student.variables)


def test_differences_of_runs_are_named(wsl, tmp_path):
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


def test_a_run_repeats_from_its_flags(wsl, npz, tmp_path):
    out, _ = wsl
    arguments = f"--flagfile={out / 'run.flags'}", f"--data_dir={npz}", f"--output_dir={tmp_path / 'again'}"
    again = run_child(_child(*arguments), cwd=TRAIN.parent)
    assert again.returncode == 0, again.stderr[-2000:]
    assert "test accuracy" in again.stdout
    _assert_same_run(out, tmp_path / "again")


@pytest.mark.slow  # Backups are interrupted everywhere in callbacks/test_backup.py.
@pytest.mark.parametrize("number, status", [(signal.SIGKILL, -9), (signal.SIGTERM, 143)])
def test_a_killed_run_ends_in_the_same_bits(number, status, wsl, npz, tmp_path):
    out, _ = wsl
    flags = [f"--flagfile={out / 'run.flags'}", f"--data_dir={npz}", f"--output_dir={tmp_path / 'killed'}"]
    child = subprocess.Popen(
        _child(*flags),
        cwd=TRAIN.parent,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    backups = tmp_path / "killed" / "backups"
    end = time.time() + 240
    # Inside the first epoch, if this loop is as quick as the backups are.
    while not list(backups.glob("000000-00000001*.backup")) + list(backups.glob("000000-00000002*.backup")):
        assert child.poll() is None and time.time() < end, child.stderr.read()[-2000:]
        time.sleep(0.005)
    child.send_signal(number)
    assert child.wait() == status
    if number == signal.SIGTERM:
        said = child.stderr.read().decode().strip().splitlines()[-1]
        assert said.startswith("Backup: SIGTERM was received in epoch 1.") and said.endswith("Pass --resume.")
    assert not (tmp_path / "killed" / "result.json").exists()
    refused = run_script("cifar100.py", *flags)
    assert refused.returncode == 2 and "holds this run already. Pass --resume" in refused.stderr
    resumed = run_child(_child(*flags, "--resume"), cwd=TRAIN.parent)
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    _assert_same_run(out, tmp_path / "killed")


@pytest.mark.usefixtures("without_exports")
def test_seconds_are_those_of_training(teacher, tmp_path, monkeypatch):
    def seconds(name, *, start, ends_at=None):
        calls = itertools.count(1)

        def perf_counter():
            call = next(calls)
            if call == ends_at:
                os.kill(os.getpid(), signal.SIGTERM)
            return start + call

        monkeypatch.setattr(artifacts, "time", types.SimpleNamespace(perf_counter=perf_counter))
        return runner.run(_taught(teacher), _splits(), tmp_path / name, resume=True, verbose=0)["seconds"]

    whole = seconds("whole", start=0)
    with pytest.raises(callbacks.PreemptedError, match="SIGTERM was received in epoch 1. The state after step 1 of"):
        seconds("in_two", start=1000, ends_at=3)
    assert seconds("in_two", start=5) == whole < 20


def test_a_finished_run_is_only_reported(wsl, teacher, tmp_path):
    out = tmp_path / "copy"
    shutil.copytree(wsl[0], out)
    again = runner.run(_taught(teacher), _splits(), out, resume=True, verbose=0)
    assert again["test_accuracy"] == wsl[1]["test_accuracy"]
    _assert_same_run(wsl[0], out)


@pytest.mark.slow
@pytest.mark.usefixtures("without_exports")
def test_smoothed_labels_holdout_and_limit(teacher, tmp_path):
    wanted = _taught(
        teacher,
        method="kd",
        epochs=1,
        label_smoothing=0.1,
        validation_examples=30,
        max_train_examples=45,
        decay_epochs=(),
    )
    result = runner.run(wanted, _splits(), tmp_path / "run", verbose=0)
    assert result["train_examples"] == 45
    assert result["eval_split"] == "30 held-out training examples"
    row = artifacts.read_csv(tmp_path / "run" / "epochs.csv")[0]
    # KD as published: a tenth of the labels' loss, nine tenths of the soft labels'.
    assert row["distillation_loss"] == pytest.approx(0.9 * row["kd"], rel=1e-5)
    assert row["loss"] == pytest.approx(0.1 * row["student_loss"] + 0.9 * row["kd"], rel=1e-4)


def test_a_run_that_is_older_than_a_setting_goes_on(tmp_path):
    artifacts.open_run(tmp_path / "run", SMALL, resume=False)
    path = tmp_path / "run" / "run.flags"
    older = [line for line in path.read_text().splitlines() if not line.startswith(("--eval_every", "--extra_losses"))]
    path.write_text("\n".join(older) + "\n")
    assert artifacts.open_run(tmp_path / "run", SMALL, resume=True) == tmp_path / "run"
    with pytest.raises(ValueError, match="holds another run. --eval_every: 1 in run.flags, 2 now. Choose"):
        artifacts.open_run(tmp_path / "run", dataclasses.replace(SMALL, eval_every=2), resume=True)
    artifacts.open_run(tmp_path / "records", config.ImageNet(), resume=False)
    with pytest.raises(ValueError, match="another run. .*--student: 'imagenet_resnet18' in run.flags, 'tiny' now"):
        artifacts.open_run(tmp_path / "records", SMALL, resume=True)


def test_help_lists_the_settings_of_a_run():
    values = flags.FlagValues()
    config.define_flags(values)
    assert "--student:" not in values.main_module_help()
    cli.tell_of_all_flags(values)
    assert "--student: The student's network." in values.main_module_help()


@pytest.mark.usefixtures("without_exports")
def test_a_run_is_judged_at_times(tmp_path):
    """Which changes nothing of its training."""
    wanted = dataclasses.replace(SMALL, epochs=3)
    every = runner.run(wanted, _splits(), tmp_path / "every", verbose=0)
    result = runner.run(dataclasses.replace(wanted, eval_every=2), _splits(), tmp_path / "some", verbose=0)
    epochs, all_epochs = (artifacts.read_csv(tmp_path / name / "epochs.csv") for name in ("some", "every"))
    assert ["val_accuracy" in row for row in epochs] == [False, True, True]  # The last one is always judged.
    assert epochs == [{name: row[name] for name in own} for own, row in zip(epochs, all_epochs)]
    best = max(epochs[1:], key=lambda row: row["val_accuracy"])
    assert (result["best_epoch"], result["best_accuracy"]) == (best["epoch"], best["val_accuracy"])
    assert result["test_accuracy"] == every["test_accuracy"] == epochs[2]["val_accuracy"]


@pytest.mark.slow
def test_online(teacher, tmp_path):
    """The teacher's checkpoints teach; one for all epochs is the ordinary run; resumed in between it ends alike."""
    folder = shutil.copytree(teacher.parent, tmp_path / "teacher")
    runs = {"plain": {}, "online": {"online": True}, "late": {"online": True, "teacher_update_epochs": 2}}
    wanted = {name: _taught(folder / "student.keras", **changes) for name, changes in runs.items()}
    results = {name: runner.run(wanted[name], _splits(), tmp_path / name, verbose=0) for name in runs}
    plain, online, late = (_weights(tmp_path / name / "student.keras") for name in runs)
    for a, b in zip(plain, late, strict=True):
        np.testing.assert_array_equal(a, b)
    assert any(np.abs(a - b).max() > 1e-5 for a, b in zip(plain, online))
    assert results["online"]["teacher_update_epochs"] == 1 and results["plain"]["teacher_update_epochs"] is None
    assert results["online"]["teacher_accuracy"] == results["plain"]["teacher_accuracy"]
    # Without its last backup the run goes on where the first epoch ended, with the second checkpoint.
    again = shutil.copytree(tmp_path / "online", tmp_path / "again")
    for lost in (again / "result.json", again / "student.keras", max((again / "backups").glob("*.backup"))):
        lost.unlink()
    runner.run(wanted["online"], _splits(), again, resume=True, verbose=0)
    _assert_same_run(tmp_path / "online", again)
    shutil.copy(folder / "checkpoints" / "epoch-000000.weights.h5", folder / "checkpoints" / "epoch-000001.weights.h5")
    with pytest.raises(ValueError, match="another run. --teacher_checkpoints: 'SHA-256 .* in run.flags, 'SHA-256"):
        runner.run(wanted["online"], _splits(), again, resume=True, verbose=0)
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(FileNotFoundError, match="has no checkpoints such as epoch-000001.weights.h5"):
        runner.run(wanted["online"], _splits(), tmp_path / "none", verbose=0)


@pytest.mark.tensorflow  # Elsewhere the weights are the first that are not finite, and `Backup` says so.
def test_a_loss_that_is_not_finite_stops_the_run(teacher, tmp_path):
    wanted = _taught(teacher, learning_rate=1e30, epochs=3)
    with pytest.raises(callbacks.NonFiniteLossError, match=r"student_loss=nan|wsl=nan") as caught:
        runner.run(wanted, _splits(), tmp_path / "run", verbose=0)
    first, last = caught.value.examples
    assert f"step {caught.value.step} among examples {first} to {last} of the epoch" in str(caught.value)
    batches = data.train_batches(
        _splits().train, seed=0, batch_size=32, initial_position=(caught.value.epoch - 1, first // 32)
    )
    numbers = ", ".join(str(number) for number in np.asarray(next(iter(batches))[1]["index"]))
    assert last - first + 1 == numbers.count(",") + 1
    assert f"the numbers {numbers}, from 0 on." in str(caught.value)
    epochs = {int(path.name[:6]) for path in (tmp_path / "run" / "backups").glob("*.backup")}
    assert max(epochs) == caught.value.epoch - 1
    assert not (tmp_path / "run" / "student.keras").exists()


@pytest.mark.slow
@pytest.mark.tensorflow
def test_precision_strategy_and_steps_per_execution(wsl, teacher, tmp_path):
    changes = {"dtype_policy": "mixed_float16", "strategy": "mirrored"}
    wanted = _taught(teacher, **changes)
    result = runner.run(wanted, _splits(), tmp_path / "mixed", verbose=0)
    student = keras.saving.load_model(tmp_path / "mixed" / "student.keras", compile=False)
    assert {layer.compute_dtype for layer in student.layers} == {"float16", "float32"}
    plain = artifacts.read_csv(wsl[0] / "epochs.csv")[0]
    assert artifacts.read_csv(tmp_path / "mixed" / "epochs.csv")[0]["loss"] == pytest.approx(plain["loss"], rel=0.05)
    assert 0 <= result["test_accuracy"] <= 1
    runner.run(_taught(teacher, steps_per_execution=3, backup_every_steps=0), _splits(), tmp_path / "steps", verbose=0)
    for one, other in zip(_weights(wsl[0] / "student.keras"), _weights(tmp_path / "steps" / "student.keras")):
        np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"method": "wls"}, "no method 'wls'. Expected one of .*'kd', .*'none', .*'wsl'"),
        ({"student": "resnet9"}, "'resnet9'.*resnet8"),
        ({"method": "wsl"}, "--method=wsl needs a trained teacher"),
        (
            {"teacher": "tiny", "teacher_weights": "TEACHER"},
            "leave --teacher, --teacher_weights and --soft_labels out",
        ),
        ({"method": "kd", "teacher": "resnet14", "teacher_weights": "TEACHER"}, "does not fit|tiny"),
        ({"method": "kd", "teacher": "tiny", "teacher_weights": "absent.keras"}, "absent.keras"),
        ({"strategy": "magic"}, "no strategy 'magic'"),
        pytest.param(
            {"strategy": "mirrored", "steps_per_execution": 2},
            "--steps_per_execution=2 fails in Keras",
            marks=pytest.mark.tensorflow,
        ),
        (
            {"strategy": "tpu", "batch_size": 7},
            r"needs batches of one size, and \d+ .* leave \d over",
        ),
        ({"max_train_examples": 1000}, "1000 of 90"),
        ({"online": True}, "--online is for methods with a teacher in every epoch, and --method=none has none"),
        (
            {"method": "kd", "teacher": "tiny", "teacher_weights": "TEACHER", "teacher_checkpoints": "x"},
            "--teacher_checkpoints are for --online",
        ),
        ({"optimizer": "adam"}, "--optimizer=adam is unknown. Expected one of sgd, adamw"),
        ({"schedule": "cosine"}, "--schedule=cosine is unknown. Expected one of steps, linear"),
        ({"schedule": "linear", "lr_warmup_fraction": -0.1}, r"--lr_warmup_fraction=-0.1 must be .* in \[0, 1\)"),
        ({"temperature": 0.0, "method": "kd", "teacher": "tiny", "teacher_weights": "TEACHER"}, "positive number"),
    ],
)
def test_bad_settings_write_nothing(changes, message, teacher, tmp_path):
    changes = {name: str(teacher) if value == "TEACHER" else value for name, value in changes.items()}
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        runner.run(dataclasses.replace(SMALL, **changes), _splits(), tmp_path / "run", verbose=0)
    assert not (tmp_path / "run").exists()


def test_another_run_is_not_written_over(wsl, tmp_path):
    out, _ = wsl
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    with pytest.raises(ValueError, match=r"holds another run. .*--seed: 0 in run.flags, 1 now"):
        artifacts.open_run(out, dataclasses.replace(SMALL, seed=1), resume=True)
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="other files and no run"):
        artifacts.open_run(tmp_path, SMALL, resume=False)
    with pytest.raises(ValueError, match="--output_dir is missing"):
        artifacts.open_run("", SMALL, resume=False)


def test_an_out_that_cannot_be_written_to_is_refused(wsl, tmp_path, monkeypatch):
    (tmp_path / "notes.txt").write_text("mine")
    for place in (tmp_path / "notes.txt", tmp_path / "notes.txt" / "run"):
        with pytest.raises(NotADirectoryError, match=r"notes.txt is a file, and a folder was expected there"):
            artifacts.open_run(place, SMALL, resume=False)
    missing = tmp_path / "a" / "b" / "run"
    assert artifacts.open_run(missing, SMALL, resume=False) == missing and (missing / "run.flags").exists()
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)  # Permissions do not bind root.
    with pytest.raises(ValueError, match="run cannot be written to. Make it so that it can"):
        artifacts.open_run(missing, SMALL, resume=True)


def test_without_tensorboard_nothing_is_begun(teacher, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard.summary.writer.event_file_writer", None)
    with pytest.raises(ImportError, match="run needs the package tensorboard: `pip install tensorboard`"):
        runner.run(_taught(teacher), _splits(), tmp_path / "run", verbose=0)
    assert not (tmp_path / "run").exists()


def test_one_process_alone_writes_a_run(tmp_path):
    out = artifacts.open_run(tmp_path / "run", SMALL, resume=False)
    with artifacts.alone_in(out):
        with pytest.raises(ValueError, match="Another process is writing to --output_dir="), artifacts.alone_in(out):
            raise AssertionError("Two have it.")
        assert (out / artifacts.LOCK).exists()
    with artifacts.alone_in(out):
        assert (out / artifacts.LOCK).exists()
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / artifacts.LOCK).touch()  # A killed process leaves the file, and no lock.
    with artifacts.alone_in(artifacts.open_run(tmp_path / "killed", SMALL, resume=False)):
        assert artifacts.LOCK in {path.name for path in (tmp_path / "killed").iterdir()}
    assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == ["run.flags"]


def test_errors_of_the_command_are_one_line(tmp_path):
    absent = run_child(
        [
            sys.executable,
            TRAIN / "cifar100.py",
            "--method=none",
            f"--data_dir={tmp_path}",
            f"--output_dir={tmp_path / 'run'}",
        ]
    )
    assert absent.returncode == 2
    last = absent.stderr.strip().splitlines()[-1]
    assert last.startswith("FileNotFoundError: No cifar100 in") and "--download" in last
    assert not (tmp_path / "run").exists()


def test_a_report_has_the_runs_rows(wsl, tmp_path):
    out, result = wsl
    row, history = report.read(out)
    assert row["run"] == "wsl" and row["final_accuracy"] == result["final_accuracy"]
    assert "--method=wsl" in row["flags"].split() and [epoch["epoch"] for epoch in history] == [1, 2]
    table = report.markdown([row]).splitlines()
    assert len(table) == 3 and f"{result['final_accuracy']:.4f}" in table[2]
    with pytest.raises(FileNotFoundError, match="holds no finished run"):
        report.read(tmp_path)


def test_flags_are_the_settings():
    values = flags.FlagValues()
    config.define_flags(values)
    wanted = dataclasses.replace(SMALL, alpha=3.5, nesterov=True, deterministic=False, decay_epochs=(3, 5))
    values(["script", *config.to_lines(wanted)])
    assert config.from_flags(values) == wanted
    values(["script", "--decay_epochs=3,x"])
    with pytest.raises(ValueError, match="--decay_epochs=3,x must be whole numbers"):
        config.from_flags(values)


def test_the_three_scripts_share_their_settings():
    shared = {field.name: field for field in dataclasses.fields(config.Config)}
    for kind in (config.ImageNet, config.MultiNLI):
        own = {field.name: field for field in dataclasses.fields(kind)}
        assert list(own)[: len(shared)] == list(shared)
        assert all(own[name].type == field.type for name, field in shared.items())
        assert set(recipes.TABLES[kind]) <= {*recipes.METHODS, "pkd"}
        values = flags.FlagValues()
        config.define_flags(values, kind)
        assert set(own) < set(values) and {"output_dir", "resume"} <= set(values)
    assert set(recipes.TABLES[config.ImageNet]) == set(recipes.METHODS)


@pytest.mark.parametrize("folder", ["cifar100", "digits", "imagenet", "multinli"])
def test_every_flagfile_is_of_settings_that_exist(folder):

    kind = {
        "cifar100": config.Config,
        "digits": config.Config,
        "imagenet": config.ImageNet,
        "multinli": config.MultiNLI,
    }[folder]
    files = sorted((TRAIN / "configs" / folder).glob("*.flags"))
    assert files
    for path in files:
        values = flags.FlagValues()
        config.define_flags(values, kind)
        values(["script", f"--flagfile={path}"])
        wanted = config.from_flags(values, kind)
        recipe = recipes.of(wanted)
        assert wanted.teacher_weights or not recipe.needs_teacher or "methods" in path.name, path
        if folder != "multinli":  # Its networks are presets.
            assert {wanted.student, *filter(None, [wanted.teacher])} <= set(models.names())


@pytest.mark.parametrize("name, script", [("online", online_distillation), ("soft_label_storage", soft_label_storage)])
def test_every_flagfile_of_a_script_with_flags_of_its_own(name, script):
    files = sorted((TRAIN / "configs" / "studies").glob(f"{name}_*.flags"))
    assert files
    for path in files:
        values = flags.FlagValues()
        script.define_flags(values)
        values(["script", f"--flagfile={path}", "--data_dir=cifar100.npz"])
        wanted = config.from_flags(values)
        assert {wanted.teacher, wanted.student} <= set(models.names()), path
        assert not wanted.teacher_weights or (TRAIN.parent / wanted.teacher_weights).exists(), path


def test_the_learning_rate_falls_after_the_epochs():
    rate = runner._learning_rate(config.Config(), 782, 240)
    for step, expected in (
        (0, 0.05),
        (150 * 782 - 1, 0.05),
        (150 * 782, 0.005),
        (180 * 782, 5e-4),
        (210 * 782 - 1, 5e-4),
        (210 * 782, 5e-5),
    ):
        assert float(rate(step)) == pytest.approx(expected)


def test_the_learning_rate_is_linear_over_all_epochs():
    wanted = config.Config(schedule="linear", learning_rate=0.4, lr_warmup_fraction=0.25)
    rate = runner._learning_rate(wanted, 4, 3)  # 12 steps, of which 3 rise.
    for step, expected in ((0, 0.4 / 3), (2, 0.4), (3, 0.4), (6, 0.4 * 6 / 9), (11, 0.4 / 9), (12, 0.0)):
        assert float(rate(step)) == pytest.approx(expected)
    flat = runner._learning_rate(dataclasses.replace(wanted, lr_warmup_fraction=0.0), 4, 3)
    assert float(flat(0)) == pytest.approx(0.4)
