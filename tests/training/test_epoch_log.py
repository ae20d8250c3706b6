"""Rows, seconds and printed lines of epochs."""

import itertools
import os
import signal
import types

import pytest

from keras_wsl import callbacks
from keras_wsl.training import epoch_log, runner
from tests.training.conftest import splits_of_90, with_teacher


@pytest.mark.usefixtures("without_exports")
def test_epoch_log_measures_the_seconds_of_training(teacher, tmp_path, monkeypatch):
    def seconds(name, *, start, ends_at=None):
        calls = itertools.count(1)

        def perf_counter():
            call = next(calls)
            if call == ends_at:
                os.kill(os.getpid(), signal.SIGTERM)
            return start + call

        monkeypatch.setattr(epoch_log, "time", types.SimpleNamespace(perf_counter=perf_counter))
        return runner.run(with_teacher(teacher), splits_of_90(), tmp_path / name, resume=True, verbose=0)["seconds"]

    whole = seconds("whole", start=0)
    with pytest.raises(callbacks.PreemptedError, match="SIGTERM was received in epoch 1. The state after step 1 of"):
        seconds("in_two", start=1000, ends_at=3)
    assert seconds("in_two", start=5) == whole < 20


def test_epoch_printer_prints_one_line_of_at_most_100_characters(capsys):
    logs = dict.fromkeys([*epoch_log.PRINTED, "wsl", "student_loss", "distillation_loss"], 12.34567)
    printer = epoch_log.EpochPrinter(240)
    printer.on_epoch_end(8, logs | {"regularization_sample_rate": 0.125})
    printer.on_epoch_end(9, {"loss": 0.5})
    first, second = capsys.readouterr().out.splitlines()
    assert first == (
        "epoch   9/240  accuracy 12.3457  val_accuracy 12.3457  loss 12.3457  regularization samples 12.5%"
    )
    assert second == "epoch  10/240  loss  0.5000" and len(first) <= 100
