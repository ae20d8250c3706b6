"""Losses from settings, and their effect in a run."""

import numpy as np
import pytest

from keras_wsl.training import artifacts, build_losses, runner
from keras_wsl.training.build_losses import build_main_losses
from tests.common import bright_splits
from tests.training.conftest import tiny_config

pytestmark = pytest.mark.eager


def test_build_main_losses_gives_crd_the_classes(tiny_teacher):
    train = bright_splits(96).train.stratified_subset(30, seed=1)
    (loss,) = build_main_losses(tiny_config(tiny_teacher, method="crd", loss_kwargs=("negatives=8",)), train)
    assert loss.num_members == 30 and loss.num_examples == train.index.max() + 1
    np.testing.assert_array_equal(loss.labels[train.index], train.labels)


def test_build_main_losses_applies_settings(tiny_teacher):
    settings = tiny_config(
        tiny_teacher, method="rkd", weighting="exclude_regularization_samples", keep_probability=0.25
    )
    (loss,) = build_main_losses(settings, None)
    assert loss.weighting == {"name": "exclude_regularization_samples", "keep_probability": 0.25, "temperature": 4.0}
    both = tiny_config(tiny_teacher, method="kd", weighting="wsl*exclude_regularization_samples", temperature=2.0)
    (loss,) = build_main_losses(both, None)
    assert loss.weighting == [{"name": "wsl"}, {"name": "exclude_regularization_samples", "temperature": 2.0}]
    (loss,) = build_main_losses(
        tiny_config(tiny_teacher, method="dkd", weighting="wsl", loss_kwargs=("beta=3", "standardize=True"), alpha=2.0),
        None,
    )
    assert (loss.beta, loss.standardize, loss.weight, loss.weighting) == (3.0, True, 2.0, {"name": "wsl"})
    loss = build_losses.build_stage_loss(tiny_config(tiny_teacher, method="ab", weighting="wsl"))
    assert loss.weighting == {"name": "wsl"}


def test_build_main_losses_adds_extra_losses(tiny_teacher, tmp_path):
    settings = tiny_config(
        tiny_teacher, method="crd", extra_losses=("wsl", "at"), alpha=0.5, loss_kwargs=("negatives=8",)
    )
    contrast, soft, attention = build_main_losses(settings, bright_splits(96).train)
    # The settings of the run apply to the method's loss only.
    assert (contrast.weight, contrast.negatives) == (0.5, 8)
    alone = {name: build_main_losses(tiny_config(tiny_teacher, method=name), None)[0] for name in ("wsl", "at")}
    assert soft.get_config() == alone["wsl"].get_config() and attention.get_config() == alone["at"].get_config()
    result = runner.run(settings, bright_splits(96), tmp_path / "run", verbose=0)
    (row,) = artifacts.read_csv(tmp_path / "run" / "epochs.csv")
    parts = 0.5 * row["crd"] + soft.weight * row["wsl"] + attention.weight * row["at"]
    assert row["distillation_loss"] == pytest.approx(parts, rel=1e-5)
    assert row["loss"] == pytest.approx(row["student_loss"] + parts, rel=1e-5) and result["extra_losses"] == "wsl,at"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"method": "at", "extra_losses": ("wls",)}, "no method 'wls'"),
        (
            {"method": "at", "extra_losses": ("dkd",)},
            "`--extra_losses` must name methods .* --extra_losses=dkd",
        ),
        (
            {"method": "none", "teacher": "", "teacher_weights": "", "extra_losses": ("wsl",)},
            "`--extra_losses` needs a distillation loss",
        ),
        ({"method": "ab", "extra_losses": ("wsl",)}, "`--extra_losses` needs a distillation loss"),
        ({"method": "at", "loss_kwargs": ("gamma=1",)}, r"no arguments \['gamma'\]. Expected some of .*'layers'"),
        ({"method": "at", "temperature": 2.0}, r"no arguments \['temperature'\]"),
        ({"method": "dkd", "loss_kwargs": ("beta",)}, "must be name=value"),
        ({"method": "kd", "weighting": "wls"}, "no weighting 'wls'"),
        ({"method": "none", "teacher": "", "teacher_weights": "", "weighting": "wsl"}, "has no teacher"),
        ({"method": "none", "teacher": "", "teacher_weights": "", "alpha": 1.0}, "`--alpha` needs a distillation loss"),
        ({"method": "tf_kd_reg"}, "has no teacher"),
        ({"method": "crd"}, "must be in \[1, 64\]"),
        ({"method": "fsp", "student": "wrn_16_2"}, "needs the same channels"),
    ],
)
def test_run_with_invalid_loss_settings_writes_nothing(changes, message, tiny_teacher, tmp_path):
    with pytest.raises(ValueError, match=message):
        runner.run(tiny_config(tiny_teacher, **changes), bright_splits(96), tmp_path / "run", verbose=0)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_run_warms_up_the_distillation_loss(tiny_teacher, tmp_path):
    settings = tiny_config(tiny_teacher, method="dkd", epochs=2, warmup_epochs=4)
    runner.run(settings, bright_splits(96), tmp_path / "run", verbose=0)
    for row in artifacts.read_csv(tmp_path / "run" / "epochs.csv"):
        assert row["distillation_loss"] == pytest.approx(row["epoch"] / 4 * row["dkd"], rel=1e-5)


def test_run_of_a_method_without_a_teacher(tiny_teacher, tmp_path):
    settings = tiny_config(tiny_teacher, method="tf_kd_reg", teacher="", teacher_weights="")
    result = runner.run(settings, bright_splits(96), tmp_path / "run", verbose=0)
    row = artifacts.read_csv(tmp_path / "run" / "epochs.csv")[0]
    assert row["loss"] == pytest.approx(0.05 * row["student_loss"] + 0.95 * row["tf_kd_reg"], rel=1e-4)
    assert "regularization_samples" not in row and "teacher_accuracy" not in result
