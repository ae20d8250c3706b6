"""complexity.py from the command line: its rows against the library, its curve, its errors."""

import csv
import dataclasses
import types

import keras
import numpy as np
import pytest

from keras_wsl import analysis, data, models, teacher_checkpoints
from keras_wsl.training import config, runner
from reproduction import supervision_complexity
from tests.common import bright_splits, run_script

pytestmark = pytest.mark.eager


SMALL = config.Config(
    student="tiny", method="none", epochs=2, batch_size=16, decay_epochs=(1,), checkpoint_every=1, learning_rate=0.02
)


@pytest.fixture(
    scope="module", params=[2, pytest.param(3, marks=pytest.mark.slow)], ids=["two classes", "three classes"]
)
def runs(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("complexity")
    splits = bright_splits(48, 30)
    if request.param == 2:
        splits = data.binarize_classes(splits)
    data.save_npz(splits, folder / "images.npz")
    runner.run(SMALL, splits, folder / "teacher", verbose=0)
    runner.run(dataclasses.replace(SMALL, seed=1), splits, folder / "student", verbose=0)
    return folder, splits


def _values(folder, **changes):
    checkpoints = folder / "teacher" / "checkpoints"
    given = {"data_dir": folder / "images.npz", "teacher": "tiny", "student": "tiny", "checkpoints": checkpoints}
    return {**given, "examples": 12, "output_dir": folder / "out", **changes}


def _run(folder, **changes):
    defaults = {"split": "test", "every": 1, "student_weights": None, "student_checkpoints": None, "seed": 0}
    return supervision_complexity.run(
        types.SimpleNamespace(**{**defaults, "temperatures": ["1"], "verbose": 0, **_values(folder, **changes)})
    )


def _rows(path):
    with open(path, newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def test_the_whole_path(runs):
    folder, splits = runs
    best = _run(folder, temperatures=["2", "4"], student_checkpoints=folder / "student" / "checkpoints")
    rows = _rows(folder / "out" / "complexity.csv")
    assert sorted((row["epoch"], row["temperature"]) for row in rows) == [(e, t) for e in (0, 1, 2) for t in (2, 4)]
    promised = [row["promised_accuracy"] for row in rows]
    assert promised == sorted(promised, reverse=True)
    assert (best["epoch"], best["temperature"]) == (rows[0]["epoch"], rows[0]["temperature"])
    # One row by hand: the last checkpoint at temperature 4, for the student as seed 0 starts it.
    (row,) = [row for row in rows if (row["epoch"], row["temperature"]) == (2, 4)]
    examples = splits.test.stratified_subset(12, seed=0)
    x = examples.inputs(np.arange(12))
    shape = {"classes": len(examples.classes), "input_shape": (8, 8, 3)}
    last = teacher_checkpoints.Checkpoints(folder / "teacher" / "checkpoints").latest
    logits = keras.ops.convert_to_numpy(models.build("tiny", weights=last, **shape)(x, training=False))
    keras.utils.set_random_seed(0)
    kernel = analysis.empirical_ntk(models.build("tiny", **shape), x, "trace")
    if len(examples.classes) == 2:
        wanted = 2 / (1 + np.exp((logits[:, 0] - logits[:, 1]) / 4.0)) - 1
        right = (wanted > 0) == examples.labels
    else:
        wanted = np.exp(logits / 4) / np.exp(logits / 4).sum(1, keepdims=True) - 1 / 3
        right = wanted.argmax(1) == examples.labels
    found = analysis.supervision_complexity(kernel, wanted)
    assert row["adjusted"] == pytest.approx(found.adjusted, rel=1e-3)
    assert row["teacher_accuracy"] == pytest.approx(right.mean())
    assert row["adjusted_ridge_0.01"] == pytest.approx(found.ridges[1e-2], rel=1e-3)
    points = _rows(folder / "out" / "curve.csv")
    assert [point["epoch"] for point in points] == [0, 1, 2]
    assert points[-1]["last teacher"] == points[-1]["teacher of the epoch"]
    assert points[0]["last teacher"] != points[0]["teacher of the epoch"]
    for name in ("complexity.png", "curve.png"):
        assert (folder / "out" / name).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_some_checkpoints_of_a_trained_student(runs):
    folder, _ = runs
    _run(folder, every=2, student_weights=folder / "student" / "student.keras", split="train")
    assert sorted(row["epoch"] for row in _rows(folder / "out" / "complexity.csv")) == [0, 2]


def test_errors(runs):
    folder, _ = runs
    with pytest.raises(FileNotFoundError, match="has no checkpoints such as epoch-000001.weights.h5"):
        _run(folder, checkpoints=folder)
    with pytest.raises(ValueError, match="does not match"):
        _run(folder, teacher="resnet14")
    with pytest.raises(ValueError, match="31 of 30"):
        _run(folder, examples=31)


def test_the_command(runs):
    folder, splits = runs
    if len(splits.train.classes) > 2:
        pytest.skip("once is enough")
    arguments = [f"--{name}={value}" for name, value in _values(folder, every=2).items()]
    done = run_script("reproduce.py", "--study=supervision_complexity", *arguments)
    assert done.returncode == 0 and "best: the teacher after " in done.stdout, done.stderr[-2000:]
    done = run_script("reproduce.py", "--study=supervision_complexity", *arguments, "--student=resnet9")
    assert done.returncode == 2 and "resnet9" in done.stderr.splitlines()[-1]
