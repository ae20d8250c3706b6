"""What the methods' names stand for: published weights, adapters, stages; and how all are run and reported."""

import dataclasses
import functools
import importlib.util
import json
import math
import pathlib

import keras
import numpy as np
import pytest

import methods
import methods_report
from keras_wsl import callbacks, data, models
from keras_wsl.features import FeatureExtractor
from keras_wsl.training import artifacts, config, recipes, runner
from tests.common import bright_splits

pytestmark = pytest.mark.eager


def _splits():
    return bright_splits(96)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    keras.utils.set_random_seed(7)
    path = tmp_path_factory.mktemp("teacher") / "teacher.weights.h5"
    models.save_weights(models.build("tiny", 3, input_shape=(8, 8, 3)), path)
    return path


def _run(path, **changes):
    small = config.Config(
        teacher="tiny",
        teacher_weights=str(path),
        student="tiny",
        epochs=1,
        pretrain_epochs=2,
        batch_size=32,
        decay_epochs=(),
        deterministic=False,
    )
    return dataclasses.replace(small, **changes)


# Of the comparison: RepDistiller's scripts, weight of the labels and of the method.
@pytest.mark.parametrize(
    "method, labels, weight",
    [
        ("kd", 0.1, 0.9),
        ("fitnet", 1, 100),
        ("at", 1, 1000),
        ("sp", 1, 3000),
        ("cc", 1, 0.02),
        ("vid", 1, 1),
        ("rkd", 1, 1),
        ("pkt", 1, 30000),
        ("ft", 1, 200),
        ("nst", 1, 50),
        ("crd", 1, 0.8),
        ("wsl", 1, 2.25),
        ("lskd", 0.1, 9),
        ("tf_kd", 0.05, 0.95),
    ],
)
def test_published_weights(method, labels, weight, teacher):
    recipe = recipes.get(method)
    negatives = {"loss_kwargs": ("negatives=8",)} if method == "crd" else {}
    (loss,) = recipes.main_losses(_run(teacher, method=method, **negatives), _splits().train)
    assert (recipe.student_loss_weight, loss.weight) == (labels, weight)


@pytest.mark.parametrize(
    "method, setting, expected",
    [
        ("dkd", "beta", [6, 6, 2, 2, 8]),
        ("reviewkd", "weight", [5, 5, 0.6, 1, 5]),
        ("catkd", "weight", [12, 1.5, 0.7, 1.8, 15]),
    ],
)
def test_settings_of_pairs(method, setting, expected):
    pairs = [
        "wrn_40_2 wrn_16_2",
        "wrn_40_2 wrn_40_1",
        "resnet56 resnet20",
        "resnet110 resnet32",
        "resnet32x4 resnet8x4",
    ]
    for pair, value in zip(pairs, expected):
        own, other = pair.split()
        wanted = config.Config(teacher=own, student=other, method=method)
        assert getattr(recipes.main_losses(wanted, None)[0], setting) == value


_build = functools.cache(models.build)


# The sizes of the original modules: methods.md 3.2, 3.6 and 3.13.
@pytest.mark.parametrize(
    "method, pair, parameters",
    [
        ("fitnet", "wrn_40_2 wrn_16_2", 4288),
        ("fitnet", "wrn_40_2 wrn_40_1", 2240),
        ("fitnet", "resnet56 resnet20", 1120),
        ("fitnet", "resnet32x4 resnet8x4", 16768),
        ("vid", "wrn_40_2 wrn_40_1", 53984),
        ("vid", "resnet32x4 resnet8x4", 258496),
        ("crd", "resnet56 resnet20", 16640),
        ("crd", "wrn_40_2 wrn_40_1", 24832),
        ("crd", "wrn_40_2 wrn_16_2", 33024),
        ("crd", "resnet32x4 resnet8x4", 65792),
    ],
)
def test_adapters_have_the_originals_size(method, pair, parameters):
    teacher, student = map(_build, pair.split())
    negatives = {"loss_kwargs": ("negatives=8",)} if method == "crd" else {}
    wanted = config.Config(method=method, **negatives)
    (loss,) = recipes.main_losses(wanted, _splits().train)
    shapes = (
        FeatureExtractor(model, names).shapes()
        for model, names in ((student, loss.student_layers), (teacher, loss.teacher_layers))
    )
    loss.build((None,), *shapes)
    assert sum(math.prod(variable.shape) for variable in loss.trainable_variables) == parameters


@pytest.mark.slow
def test_activation_boundaries_are_a_start(teacher, tmp_path):
    wanted = _run(teacher, method="ab")
    keras.utils.set_random_seed(wanted.seed)
    before = {v.path: np.array(v) for v in _student(wanted).variables}
    result = runner.run(wanted, _splits(), tmp_path / "run", verbose=0)
    stage = artifacts.read_csv(tmp_path / "run" / "first_stage.csv")
    assert len(stage) == 2 and stage[1]["ab"] < stage[0]["ab"] and stage[0]["loss"] == pytest.approx(stage[0]["ab"])
    main = artifacts.read_csv(tmp_path / "run" / "epochs.csv")[0]
    assert "ab" not in main and main["loss"] == pytest.approx(main["student_loss"])
    assert result["pretrain_epochs"] == 2 and result["teacher_accuracy"] is not None
    # After the first stage the head is as it was, for nothing there has trained it.
    after = _stage_weights(wanted, tmp_path / "stage")
    moved = {path for path in before if not np.array_equal(before[path], after[path])}
    assert not any(path.startswith("logits/") for path in moved)
    assert any(path.startswith("block3_unit0_conv1/") for path in moved)
    assert any(path.endswith("moving_mean") for path in moved)


def _student(wanted):
    return models.build(wanted.student, 3, input_shape=(8, 8, 3))


def _stage_weights(wanted, out):
    """The student's variables after the first stage."""
    train, recipe = _splits().train, recipes.get(wanted.method)
    teacher = models.build("tiny", 3, weights=wanted.teacher_weights, input_shape=(8, 8, 3))
    keras.utils.set_random_seed(wanted.seed)
    student = _student(wanted)
    trainable = [layer.trainable for layer in student.layers]
    out.mkdir()
    model = runner.first_stage(wanted, recipe, teacher, student, recipes.stage_loss(wanted), train)
    runner._train_first_stage(model, [], wanted, train, out, kept={}, verbose=0)
    assert [layer.trainable for layer in student.layers] == trainable
    return {v.path: np.array(v) for v in student.variables}


@pytest.mark.traced
def test_the_paraphraser_learns_first_and_then_stays(teacher, tmp_path):
    wanted = _run(teacher, method="ft", pretrain_epochs=8)
    train, recipe = _splits().train, recipes.get("ft")
    network = models.build("tiny", 3, weights=str(teacher), input_shape=(8, 8, 3))
    student = _student(wanted)
    before = [np.array(v) for v in student.variables]
    (main,) = recipes.main_losses(wanted, train)
    distiller = runner.distiller(wanted, recipe, network, student, [main], train)
    loss = recipes.stage_loss(wanted)
    model = runner.first_stage(wanted, recipe, network, student, loss, train)
    runner._train_first_stage(model, [main], wanted, train, tmp_path, kept={}, verbose=0)
    rows = artifacts.read_csv(tmp_path / "first_stage.csv")
    assert rows[-1]["paraphrase"] < rows[0]["paraphrase"]
    for one, other in zip(before, student.variables):
        np.testing.assert_array_equal(one, other)  # BatchNorm's statistics too.
    learned = loss.paraphraser.get_weights()
    for one, other in zip(learned, main.paraphraser.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    images, targets = next(iter(data.train_batches(train, seed=0, batch_size=32)))
    translator = [np.array(v) for v in main.translator.trainable_variables]
    distiller.train_on_batch(images, targets)
    for one, other in zip(learned, main.paraphraser.get_weights()):
        np.testing.assert_array_equal(one, other)
    assert all(not np.array_equal(a, b) for a, b in zip(translator, main.translator.trainable_variables))


class _Stop(Exception):
    pass


@pytest.mark.slow
def test_a_run_with_a_stage_goes_on_where_it_was(teacher, tmp_path, monkeypatch):
    wanted = _run(teacher, method="ft", backup_every_steps=1, pretrain_epochs=1, deterministic=True)
    runner.run(wanted, _splits(), tmp_path / "whole", verbose=0)
    save, saves = callbacks.Backup._save, {"first_stage": 0, "backups": 0}

    def stopping(self, *args, **kwargs):
        save(self, *args, **kwargs)
        saves[self.directory.name] += 1
        if saves[self.directory.name] == 2:
            raise _Stop

    monkeypatch.setattr(callbacks.Backup, "_save", stopping)
    for resume in (False, True):  # Once in each stage.
        with pytest.raises(_Stop):
            runner.run(wanted, _splits(), tmp_path / "stopped", resume=resume, verbose=0)
        assert (saves["backups"] > 0) is resume
    monkeypatch.undo()
    monkeypatch.setattr(runner.export, "saved_model", lambda *args, **kwargs: None)
    runner.run(wanted, _splits(), tmp_path / "stopped", resume=True, verbose=0)
    whole, stopped = (
        keras.saving.load_model(tmp_path / name / "student.keras", compile=False).get_weights()
        for name in ("whole", "stopped")
    )
    for one, other in zip(whole, stopped, strict=True):
        np.testing.assert_array_equal(one, other)
    for table in ("epochs.csv", "first_stage.csv"):
        assert (tmp_path / "whole" / table).read_text() == (tmp_path / "stopped" / table).read_text()


def test_contrast_knows_the_classes_of_a_part(teacher):
    train = _splits().train.take(30, seed=1)
    (loss,) = recipes.main_losses(_run(teacher, method="crd", loss_kwargs=("negatives=8",)), train)
    assert loss.num_members == 30 and loss.num_examples == train.index.max() + 1
    np.testing.assert_array_equal(loss.labels[train.index], train.labels)


def test_weightings_and_settings_reach_the_loss(teacher):
    wanted = _run(teacher, method="rkd", weighting="exclude_regularization_samples", keep_probability=0.25)
    (loss,) = recipes.main_losses(wanted, None)
    assert loss.weighting == {"name": "exclude_regularization_samples", "keep_probability": 0.25, "temperature": 4.0}
    both = _run(teacher, method="kd", weighting="wsl*exclude_regularization_samples", temperature=2.0)
    (loss,) = recipes.main_losses(both, None)
    assert loss.weighting == [{"name": "wsl"}, {"name": "exclude_regularization_samples", "temperature": 2.0}]
    (loss,) = recipes.main_losses(
        _run(teacher, method="dkd", weighting="wsl", loss_kwargs=("beta=3", "standardize=True"), alpha=2.0), None
    )
    assert (loss.beta, loss.standardize, loss.weight, loss.weighting) == (3.0, True, 2.0, {"name": "wsl"})
    loss = recipes.stage_loss(_run(teacher, method="ab", weighting="wsl"))
    assert loss.weighting == {"name": "wsl"}


def test_losses_of_other_methods_are_added(teacher, tmp_path):
    wanted = _run(teacher, method="crd", extra_losses=("wsl", "at"), alpha=0.5, loss_kwargs=("negatives=8",))
    contrast, soft, attention = recipes.main_losses(wanted, _splits().train)
    # The run's settings are the method's; the others are as they are alone.
    assert (contrast.weight, contrast.negatives) == (0.5, 8)
    alone = {name: recipes.main_losses(_run(teacher, method=name), None)[0] for name in ("wsl", "at")}
    assert soft.get_config() == alone["wsl"].get_config() and attention.get_config() == alone["at"].get_config()
    result = runner.run(wanted, _splits(), tmp_path / "run", verbose=0)
    (row,) = artifacts.read_csv(tmp_path / "run" / "epochs.csv")
    parts = 0.5 * row["crd"] + soft.weight * row["wsl"] + attention.weight * row["at"]
    assert row["distillation_loss"] == pytest.approx(parts, rel=1e-5)
    assert row["loss"] == pytest.approx(row["student_loss"] + parts, rel=1e-5) and result["extra_losses"] == "wsl,at"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"method": "at", "extra_losses": ("wls",)}, "no method 'wls'"),
        ({"method": "at", "extra_losses": ("dkd",)}, "--extra_losses=dkd is no loss alone"),
        ({"method": "none", "teacher": "", "teacher_weights": "", "extra_losses": ("wsl",)}, "no --extra_losses"),
        ({"method": "ab", "extra_losses": ("wsl",)}, "no --extra_losses"),
        ({"method": "at", "loss_kwargs": ("gamma=1",)}, r"no settings \['gamma'\]. It takes .*'layers'"),
        ({"method": "at", "temperature": 2.0}, r"no settings \['temperature'\]"),
        ({"method": "dkd", "loss_kwargs": ("beta",)}, "must be name=value"),
        ({"method": "kd", "weighting": "wls"}, "no weighting 'wls'"),
        ({"method": "none", "teacher": "", "teacher_weights": "", "weighting": "wsl"}, "has none"),
        ({"method": "none", "teacher": "", "teacher_weights": "", "alpha": 1.0}, "no --alpha"),
        ({"method": "tf_kd_reg"}, "has no teacher"),
        ({"method": "crd"}, "leaves 64 of 96 examples"),
        ({"method": "fsp", "student": "wrn_16_2"}, "needs equal channels"),
    ],
)
def test_bad_settings_write_nothing(changes, message, teacher, tmp_path):
    with pytest.raises(ValueError, match=message):
        runner.run(_run(teacher, **changes), _splits(), tmp_path / "run", verbose=0)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_weight_is_ramped_up(teacher, tmp_path):
    wanted = _run(teacher, method="dkd", epochs=2, warmup_epochs=4)
    runner.run(wanted, _splits(), tmp_path / "run", verbose=0)
    for row in artifacts.read_csv(tmp_path / "run" / "epochs.csv"):
        assert row["distillation_loss"] == pytest.approx(row["epoch"] / 4 * row["dkd"], rel=1e-5)


def test_a_method_without_a_teacher_trains(teacher, tmp_path):
    wanted = _run(teacher, method="tf_kd_reg", teacher="", teacher_weights="")
    result = runner.run(wanted, _splits(), tmp_path / "run", verbose=0)
    row = artifacts.read_csv(tmp_path / "run" / "epochs.csv")[0]
    assert row["loss"] == pytest.approx(0.05 * row["student_loss"] + 0.95 * row["tf_kd_reg"], rel=1e-4)
    assert "regularization_samples" not in row and "teacher_accuracy" not in result


def test_every_method_is_planned_with_its_twin():
    runs = methods.plan(recipes.METHODS)
    assert len(runs) == 2 * len(recipes.METHODS) - 3  # Not of labels alone, of WSL, and of what has no teacher.
    assert {method for method, _ in runs} == set(recipes.METHODS)


def test_the_report_of_methods(tmp_path):
    def finished(method, weighting, seed, accuracy):
        folder = tmp_path / "runs" / f"{method}-{weighting}-{seed}"
        folder.mkdir(parents=True)
        (folder / "epochs.csv").write_text(f"epoch,val_accuracy\n1,{accuracy}\n")
        (folder / "run.flags").write_text(f"--epochs=4\n--method={method}\n--seed={seed}\n")
        found = {"method": method, "weighting": weighting or None, "seed": seed, "final_accuracy": accuracy}
        (folder / "result.json").write_text(json.dumps({**found, "last_epoch": {"regularization_sample_rate": 0.25}}))

    finished("kd", "", 0, 0.30)
    finished("kd", "", 1, 0.32)
    finished("kd", "wsl", 0, 0.33)
    finished("none", "", 0, 0.25)
    results = tmp_path / "results"
    results.mkdir()
    (results / "methods_cost.csv").write_text(
        "method,stage,relative,peak_memory_mib,adapter_parameters\nkd,,1.0,900,0\n"
    )
    (results / "methods_notes.md").write_text("What is to be said.\n\nTABLE\n\nAnd after.\n")
    methods_report.write(tmp_path / "runs", results)
    text = (results / "methods.md").read_text()
    assert "| kd | 2 | 31.00 | 33.00 | +2.00 | 25.0 % | 1.0 | 900 | 0 |" in text
    assert text.index("| none | 1 | 25.00 |") < text.index("| kd |") < text.index("And after.")
    assert "all runs share: `--epochs=4`" in text
    assert len(artifacts.read_texts(results / "methods.csv")) == 4
    assert (results / "methods.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(FileNotFoundError, match="no finished run"):
        methods_report.write(tmp_path, results)


@pytest.mark.slow
def test_the_cost_of_a_step_is_measured():
    path = pathlib.Path(runner.__file__).parent / "benchmarks" / "methods.py"
    spec = importlib.util.spec_from_file_location("benchmark_of_methods", path)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    small = config.Config(method="vid", teacher="resnet8", student="resnet8", batch_size=4)
    row = benchmark.measure(small, steps=2)
    assert tuple(row) == benchmark.COLUMNS
    assert row["milliseconds"] > 0 and 0 < row["relative"] and row["peak_memory_mib"] > 100
    assert row["adapter_parameters"] == 3 * (16**2 + 32**2 + 64**2) + 16 + 32 + 64
    assert benchmark.measure(dataclasses.replace(small, method="ab"), stage="first", steps=1)["stage"] == "first"
