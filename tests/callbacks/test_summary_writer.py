"""SummaryWriter: event files that are removed, and full disks."""

import csv
import shutil

import keras
import numpy as np
import pytest

from keras_wsl import Distiller, losses
from keras_wsl.callbacks import RegularizationSamples, SummaryWriter, TensorBoardScalars
from tests.common import examples, hard_loss, largest_file, network


def _scalars(folder):
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    result = []
    for path in sorted(folder.glob("events.*")):
        for event in EventFileLoader(str(path)).Load():
            result += [(value.tag, event.step) for value in event.summary.value]
    return result


@pytest.mark.parametrize("what", [pytest.param("file", marks=pytest.mark.slow), "folder"])
def test_summary_writer_continues_if_file_is_removed(what, tmp_path):
    class Remove(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                for path in tmp_path.glob("log/events.*"):
                    path.unlink()
                if what == "folder":
                    shutil.rmtree(tmp_path / "log")

    distiller = Distiller(network("teacher"), network("student"), losses.WSL())
    distiller.compile("sgd", hard_loss())
    x, y = examples(16)
    observers = [RegularizationSamples(tmp_path / "log", (x, y)), TensorBoardScalars(tmp_path / "log"), Remove()]
    with pytest.warns(UserWarning, match="events.* was removed, and its events are lost"):
        history = distiller.fit(x, y, epochs=4, batch_size=8, verbose=0, callbacks=observers).history
    assert len(history["loss"]) == 4 and np.isfinite(history["loss"]).all()
    with open(tmp_path / "log" / "regularization_samples.csv", newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2", "3", "4"]
    assert [step for tag, step in _scalars(tmp_path / "log") if tag == "loss"] == [4]


def test_summary_writer_reports_full_disk(tmp_path):
    events = SummaryWriter(tmp_path / "log")
    events.scalar("loss", 1.0, 1)
    events.flush()
    with (
        largest_file(400),
        pytest.raises(OSError, match=r"File too large: .*log does not fit. .* bytes are free. Free space"),
    ):
        for step in range(2, 40):
            events.scalar("loss", 1.0, step)
            events.flush()
