"""Evaluation in and after training."""

import dataclasses

import pytest

from keras_wsl.training import artifacts, runner
from tests.training.conftest import SMALL, splits_of_90


@pytest.mark.usefixtures("without_exports")
def test_eval_every_does_not_change_training(tmp_path):
    settings = dataclasses.replace(SMALL, epochs=3)
    every = runner.run(settings, splits_of_90(), tmp_path / "every", verbose=0)
    result = runner.run(dataclasses.replace(settings, eval_every=2), splits_of_90(), tmp_path / "some", verbose=0)
    epochs, all_epochs = (artifacts.read_csv(tmp_path / name / "epochs.csv") for name in ("some", "every"))
    assert ["val_accuracy" in row for row in epochs] == [False, True, True]  # The last epoch is always evaluated.
    assert epochs == [{name: row[name] for name in own} for own, row in zip(epochs, all_epochs)]
    best = max(epochs[1:], key=lambda row: row["val_accuracy"])
    assert (result["best_epoch"], result["best_accuracy"]) == (best["epoch"], best["val_accuracy"])
    assert result["test_accuracy"] == every["test_accuracy"] == epochs[2]["val_accuracy"]
