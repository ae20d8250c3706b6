"""cache_soft_labels.py, and runs with its soft labels in place of a teacher."""

import dataclasses
import json

import keras
import numpy as np
import pytest
from absl import flags

import cache_soft_labels
from keras_wsl import data, soft_labels
from keras_wsl.training import artifacts, config, runner
from tests.common import bright_splits, run_script

pytestmark = pytest.mark.eager


SMALL = config.Config(student="tiny", method="none", epochs=2, batch_size=32, decay_epochs=(1,))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A teacher, a student trained with it, and its soft labels for 60 of 90 examples."""
    folder = tmp_path_factory.mktemp("runs")
    data.save_npz(bright_splits(90), folder / "images.npz")
    runner.run(SMALL, bright_splits(90), folder / "teacher", verbose=0)
    runner.run(_with_teacher(folder), bright_splits(90), folder / "live", verbose=0)
    _write(folder, "soft", "--num_views=2")
    return folder


def _with_teacher(folder, **changes):
    weights = str(folder / "teacher" / "student.keras")
    teacher = {"method": "wsl", "teacher": "tiny", "teacher_weights": weights, "max_train_examples": 60}
    return dataclasses.replace(SMALL, **{**teacher, **changes})


def _with_soft_labels(folder, **changes):
    stored = {"soft_labels": str(folder / "soft"), "teacher": "", "teacher_weights": ""}
    return _with_teacher(folder, **{**stored, **changes})


def _arguments(folder, name, *others):
    return [
        "--data=cifar100",
        f"--data_dir={folder / 'images.npz'}",
        "--teacher=tiny",
        f"--teacher_weights={folder / 'teacher' / 'student.keras'}",
        "--max_train_examples=60",
        f"--output_dir={folder / name}",
        *others,
    ]


def _write(folder, name, *others):
    values = flags.FlagValues()
    cache_soft_labels.define_flags(values)
    values(["cache_soft_labels", *_arguments(folder, name, *others)])
    return cache_soft_labels.write(values)


def test_run_with_soft_labels_matches_the_run_with_the_teacher(runs):
    result = runner.run(_with_soft_labels(runs), bright_splits(90), runs / "replayed", verbose=0)
    live = json.loads((runs / "live" / "result.json").read_text())
    for name in ("teacher", "teacher_sha256", "test_accuracy", "train_examples"):
        assert result[name] == live[name], name
    for one, other in zip(
        *(artifacts.read_csv(runs / name / "epochs.csv") for name in ("live", "replayed")), strict=True
    ):
        assert one.keys() == other.keys() and "clean_regularization_samples" in one
        np.testing.assert_allclose([*other.values()], [*one.values()], rtol=1e-3, atol=1e-5)
    lines = (runs / "replayed" / "run.flags").read_text().splitlines()
    assert f"--soft_labels={runs / 'soft'}" in lines
    weights = [
        keras.saving.load_model(runs / n / "student.keras", compile=False).get_weights() for n in ("live", "replayed")
    ]
    for one, other in zip(*weights, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_run_without_clean_logits_has_no_clean_counts(runs):
    _write(runs, "no_clean", "--num_views=1", "--noclean", "--dtype=float16")
    wanted = _with_soft_labels(runs, soft_labels=str(runs / "no_clean"), epochs=1)
    runner.run(wanted, bright_splits(90), runs / "without", verbose=0)
    (row,) = artifacts.read_csv(runs / "without" / "epochs.csv")
    assert "regularization_samples" in row and "clean_regularization_samples" not in row


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"soft_labels": "nowhere"}, "nowhere has no soft labels"),
        ({"teacher": "resnet8"}, "soft labels with --teacher 'tiny', and a run with 'resnet8'"),
        ({"teacher_weights": "IMAGES"}, "soft labels with --teacher_weights"),
        ({"seed": 1}, "no soft labels of"),
        ({"method": "fitnet"}, "fitnet needs the layers .* logits alone are cached"),
        ({"method": "ab"}, "--method=ab, which has a pretraining stage, needs a teacher network"),
        ({"method": "none"}, "has no teacher: leave --teacher, --teacher_weights and --soft_labels out"),
        ({"teacher_batch_statistics": True}, "--teacher_batch_statistics needs a teacher network"),
        ({"online": True}, "--online needs a teacher network"),
        ({"num_views": 3}, "number of views of the soft labels, 2. Received: num_views=3"),
        (
            {"padding_mode": "reflect"},
            "augmentation must be that of the soft labels .*'constant'.* Received: .*'reflect'",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_run_refuses_soft_labels_that_do_not_fit(runs, changes, message, tmp_path):
    if changes.get("teacher_weights"):
        changes = {"teacher_weights": str(runs / "images.npz")}
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        runner.run(_with_soft_labels(runs, **changes), bright_splits(90), tmp_path / "run", verbose=0)


def test_run_resumes_only_with_the_same_soft_labels(runs, tmp_path):
    runner.run(_with_soft_labels(runs, epochs=1), bright_splits(90), tmp_path / "run", verbose=0)
    other = soft_labels.SoftLabels(runs / "soft").manifest
    assert other.sha256 != dataclasses.replace(other, seed=1).sha256
    _write(runs, "half", "--num_views=2", "--dtype=float16")
    path = tmp_path / "run" / "run.flags"
    path.write_text(path.read_text().replace(str(runs / "soft"), str(runs / "half")))
    with pytest.raises(ValueError, match="soft_labels"):
        wanted = _with_soft_labels(runs, epochs=1, soft_labels=str(runs / "half"))
        runner.run(wanted, bright_splits(90), tmp_path / "run", resume=True, verbose=0)


@pytest.mark.parametrize(
    "others, message",
    [
        (["--teacher="], "--teacher, --teacher_weights and --output_dir are required"),
        (["--data=mnist"], "--data must be one of .* Received: --data=mnist"),
        (["--top_k=4"], "`top_k` must be at most the number of classes, 3.*Received: top_k=4"),
        (["--seed=1"], "must be that of the existing soft labels"),
        (["--image_size=32"], "--image_size does not apply to this data set"),
    ],
)
def test_write_refuses_invalid_flags(runs, others, message):
    with pytest.raises(ValueError, match=message):
        _write(runs, "soft", "--num_views=2", *others)


def test_script_writes_soft_labels(runs):
    arguments = _arguments(runs, "command", "--top_k=2", "--temperatures=4")
    done = run_script("cache_soft_labels.py", *arguments)
    assert done.returncode == 0, done.stderr
    assert "the 2 highest of 3 logits" in done.stdout and "1 views of 60 examples: --soft_labels=" in done.stdout
    done = run_script("cache_soft_labels.py", *arguments, "--dtype=float16", "--top_k=0")
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith(
        "ValueError: The dtype must be that of the existing soft labels"
    )
