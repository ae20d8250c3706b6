"""Estimates of durations."""

import dataclasses

import pytest

from keras_wsl.training import config
from reproduction import presets
from reproduction.estimates import Estimator, format_seconds
from reproduction.run_store import RunStore
from reproduction.variants import CIFAR100, IMAGENET
from tests.train.reproduction.common import CPU, record_run


def test_estimates_are_of_runs_alike_and_else_of_multiplications(tmp_path):
    store = RunStore(tmp_path / "records")
    record_run(tmp_path, "done")
    estimator = Estimator(store.rows(), 1000)
    wanted = dataclasses.replace(CPU[CIFAR100].recipe, student="resnet8", epochs=4, max_train_examples=0, method="none")
    # 20 s for 100 examples in 2 epochs.
    assert estimator.estimate(presets.Run("a", wanted)) == pytest.approx(400)
    larger = dataclasses.replace(wanted, student="resnet20", max_train_examples=500)
    assert estimator.estimate(presets.Run("b", larger)) == pytest.approx(200 * 40_818_944 / 12_507_392)
    taught = dataclasses.replace(wanted, teacher="resnet20", method="kd")
    live = estimator.estimate(presets.Run("c", taught, teacher="t"))
    assert live == pytest.approx(400 * (1 + 40_818_944 / (3 * 12_507_392)))
    assert estimator.estimate(presets.Run("d", taught, teacher="t", uses_cached_logits=True)) == pytest.approx(400)
    assert Estimator([], 1000).estimate(presets.Run("a", wanted)) is None
    other = Estimator([{**row, "device": "another"} for row in store.rows()], 1000)
    assert other.from_other_devices and not estimator.from_other_devices
    assert other.estimate(presets.Run("a", wanted)) == pytest.approx(400)
    assert [format_seconds(seconds) for seconds in (29, 61, 3660, 7500)] == [
        "0 min",
        "1 min",
        "1 h 01 min",
        "2 h 05 min",
    ]


def test_estimates_of_other_data_are_of_examples_of_their_size(tmp_path):
    """Another image size, or another part of the network, says nothing; neither does CIFAR-100."""
    wanted = CPU[IMAGENET].recipe
    record_run(tmp_path, "small")
    flags = "\n".join(config.to_lines(wanted)) + "\n"
    record_run(tmp_path, "images", flags, student=wanted.student, train_examples=40)
    estimator = Estimator(RunStore(tmp_path / "records").rows(), 50_000)
    # 20 s for 2 epochs of what it had: the data set is that large.
    assert estimator.estimate(presets.Run("a", wanted)) == pytest.approx(10 * wanted.epochs)
    larger = dataclasses.replace(wanted, image_size=224)
    other = dataclasses.replace(wanted, student="imagenet_mobilenet_v1")
    assert [estimator.estimate(presets.Run("b", one)) for one in (larger, other)] == [None, None]
