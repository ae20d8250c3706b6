"""Ensembles that are really trained, on a few small images: who draws what, what is kept, and what is written."""

import dataclasses
import json
import sys
import types

import keras
import numpy as np
import pytest
from absl import flags

from keras_wsl import data
from keras_wsl.analysis.bias_variance import Interval, standard_errors
from keras_wsl.analysis.bias_variance import bias_variance as decompose
from keras_wsl.training import artifacts, config, runner
from keras_wsl.training.inputs import split_dataset
from reproduction import bias_variance, launcher
from tests.common import bright_splits
from tests.train.reproduction.common import make_paths

SMALL = config.Config(
    teacher="tiny",
    student="tiny",
    method="none",
    epochs=1,
    batch_size=32,
    decay_epochs=(),
    max_train_examples=30,
    deterministic=False,
)


@pytest.fixture
def processes(monkeypatch):
    """Runs what would run in processes of its own in this one, and lists it: the names of the folders."""
    started = []

    def call(arguments, *others):
        assert arguments[:2] == [sys.executable, str(launcher.TRAIN / "cifar100.py")]
        values = flags.FlagValues()
        config.define_flags(values)
        flags.DEFINE_string("data_dir", None, "", flag_values=values)
        values(arguments[1:])
        started.append(values.output_dir.rpartition("/")[2])
        runner.run(
            config.from_flags(values),
            data.cifar100(values.data_dir),
            values.output_dir,
            resume=values.resume,
            verbose=0,
        )
        return 0, ""

    monkeypatch.setattr(launcher, "call", call)
    monkeypatch.setattr(runner.export, "export_saved_model", lambda *args, **kwargs: None)
    return started


def _values(tmp_path, **changes):
    return types.SimpleNamespace(**{**make_paths(tmp_path), "teacher_examples": 30, "members": 2, "jobs": 1, **changes})


def test_members_differ_in_the_seed_and_the_draw_alone():
    pool = bright_splits(90).train
    kd, labels = (bias_variance.make_member_configs(SMALL, method, 4, "teacher.keras") for method in ("kd", "none"))
    drawn = [split_dataset(data.Splits(pool, pool), member)[0].index for member in kd]
    assert len({tuple(index) for index in drawn}) == 4 and all(len(index) == 30 for index in drawn)
    for one, other, index in zip(kd, labels, drawn):
        assert dataclasses.replace(one, seed=0) == kd[0]
        assert (one.teacher, other.teacher, other.teacher_weights) == ("tiny", "", "")
        np.testing.assert_array_equal(split_dataset(data.Splits(pool, pool), other)[0].index, index)
    teacher = bias_variance.make_teacher_config(SMALL)
    assert (teacher.method, teacher.max_train_examples, teacher.teacher) == ("none", 0, "")


@pytest.mark.slow
def test_the_whole_path(tmp_path, processes):
    splits, values = bright_splits(120), _values(tmp_path)
    data.save_npz(splits, values.data_dir)
    bias_variance.run(SMALL, values)
    assert processes == ["teacher", *(f"{method}-0{i}" for method in ("none", "kd", "wsl") for i in range(2))]
    out, results = tmp_path / "runs", tmp_path / "results"
    own, pool = (data.load_npz(out / name).train.index for name in ("teacher.npz", "pool.npz"))
    assert len(own) == 30 and len(pool) == 90 and not set(own) & set(pool)

    # Again from the networks: what the files hold is what the networks say.
    saved, rows = np.load(out / "bias_variance.npz"), artifacts.read_texts(results / "bias_variance.csv")
    assert [row["method"] for row in rows] == ["labels", "KD", "WSL"]
    student = keras.saving.load_model(out / "kd-01" / "student.keras", compile=False)
    inputs = splits.test.inputs(np.arange(30))
    logits = keras.ops.convert_to_numpy(student(inputs, training=False)).astype("float64")
    expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    np.testing.assert_allclose(saved["KD"][1], expected, atol=1e-5)
    for row in rows:
        found = decompose(saved[row["method"]], splits.test.labels)
        assert float(row["variance"]) == pytest.approx(found.totals["variance"])
        assert float(row["error"]) == pytest.approx(float(row["bias"]) + float(row["variance"]), abs=1e-12)
        right = saved[row["method"]].argmax(-1) == splits.test.labels
        assert float(row["accuracy_mean"]) == pytest.approx(right.mean())
        assert float(row["accuracy_std"]) == pytest.approx(right.mean(-1).std(ddof=1))
        assert row["n"] == "2" and row["train_examples"] == "30" and "--seed" not in row["flags"]
    accuracies = [json.loads((out / f"wsl-0{i}" / "result.json").read_text())["test_accuracy"] for i in range(2)]
    assert float(rows[2]["accuracy_mean"]) == pytest.approx(np.mean(accuracies))
    differences = artifacts.read_texts(results / "bias_variance_compared.csv")
    (change,) = (row for row in differences if (row["term"], row["of"], row["minus"]) == ("variance", "KD", "labels"))
    assert float(change["mean"]) == pytest.approx(float(rows[1]["variance"]) - float(rows[0]["variance"]))
    assert change["standard_error_over_draws"] == ""  # Of two members, none can be left out.
    verdict = {"lower": "holds", "higher": "does not hold", "not significantly different": "is not decided"}[
        change["is"]
    ]
    assert f"- KD: variance {change['is']}" in (text := (results / "bias_variance.md").read_text())
    assert f"assumption 1 {verdict}" in text and "pool of 90 training examples" in text
    assert (results / "bias_variance.png").read_bytes()[:4] == b"\x89PNG"

    # A member that is missing is trained, the others are kept; other settings or data are refused.
    (out / "kd-01" / "result.json").unlink()
    bias_variance.run(SMALL, values)
    assert processes[7:] == ["kd-01"]
    again = artifacts.read_texts(results / "bias_variance.csv")
    assert [row["bias"] for row in again] == [row["bias"] for row in rows]
    with pytest.raises(ValueError, match="holds another run. --epochs: 1 in run.flags, 2 now"):
        bias_variance.run(dataclasses.replace(SMALL, epochs=2), values)
    with pytest.raises(ValueError, match="holds ensembles of .*'teacher_examples': 30"):
        bias_variance.run(SMALL, _values(tmp_path, teacher_examples=40))


def test_differences_have_an_error_over_the_draws():
    generator, labels, said = np.random.default_rng(0), np.arange(40) % 3, {}
    for name in ("labels", "KD", "WSL"):
        logits = generator.normal(0, 2, (4, 40, 3))
        said[name] = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    found = {name: decompose(labels, runs) for name, runs in said.items()}
    rows = bias_variance.compare_methods(found, said, labels)
    assert [row["term"] for row in rows] == ["error", "bias", "variance"] * 3
    assert (rows[0]["of"], rows[0]["minus"]) == ("KD", "labels")
    expected = standard_errors(labels, labels_only=said["KD"], distilled=said["WSL"])
    assert [row["standard_error_over_draws"] for row in rows[6:]] == [expected[row["term"]] for row in rows[6:]]
    assert rows[-1]["mean"] == pytest.approx(found["WSL"].variance.mean() - found["KD"].variance.mean())


def test_side_of_zero():
    sides = [bias_variance._side(Interval(0.0, low, high)) for low, high in ((-2, -1), (1, 2), (-1, 1), (0, 0))]
    assert sides == ["lower", "higher", "not significantly different", "not significantly different"]


def test_bad_settings_are_refused_before_a_run(tmp_path, processes):
    values = _values(tmp_path)
    data.save_npz(bright_splits(60), values.data_dir)
    for changes, message in (
        ({"max_train_examples": 0}, "must be positive and below the 30"),
        ({"max_train_examples": 30}, "each would have the same training set"),
        ({"teacher": ""}, "--output_dir and --teacher are needed"),
    ):
        with pytest.raises(ValueError, match=message):
            bias_variance.run(dataclasses.replace(SMALL, **changes), values)
    with pytest.raises(ValueError, match="must be an integer from 1 to 59. Received: 60 of 60"):
        bias_variance.run(SMALL, _values(tmp_path, output_dir=str(tmp_path / "other"), teacher_examples=60))
    assert not processes
