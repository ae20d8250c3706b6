"""Two workers of MultiWorkerMirroredStrategy, in processes of their own, against one device."""

import json
import sys

import keras
import numpy as np
import pytest

from benchmarks.workers import WORKERS, start
from keras_wsl import distribute

if keras.backend.backend() != "tensorflow":
    pytest.skip("the strategy is TensorFlow's", allow_module_level=True)

import tensorflow as tf

from tests import mirrored_child
from tests.common import CHILD_SECONDS


@pytest.fixture(
    scope="module",
    params=[pytest.param(kind, marks=[pytest.mark.slow] if kind != "vectors" else []) for kind in mirrored_child.KINDS],
)
def results(request, tmp_path_factory):
    """What each worker wrote, after the kind that it trained."""
    folder = tmp_path_factory.mktemp("workers")
    paths = [folder / f"{index}.json" for index in range(WORKERS)]
    processes = start(
        lambda index: [sys.executable, "-m", "tests.multi_worker_child", str(paths[index]), request.param],
        lambda index: folder / f"{index}.log",
    )
    for index, process in enumerate(processes):
        assert process.wait(CHILD_SECONDS) == 0, (folder / f"{index}.log").read_text()[-3000:]
    return request.param, [json.loads(path.read_text()) for path in paths]


def test_two_workers_are_one(results):
    kind, workers = results
    one = mirrored_child.train(tf.distribute.get_strategy(), kind, afterwards=True)
    for two in workers:
        assert two["replicas"] == WORKERS and one["replicas"] == 1
        for mine, other in zip(one["weights"], two["weights"], strict=True):
            np.testing.assert_allclose(other, mine, atol=1e-5)
        assert one["history"].keys() == two["history"].keys()
        for name, values in one["history"].items():
            np.testing.assert_allclose(two["history"][name], values, rtol=1e-4, atol=1e-6, err_msg=name)
        assert two["evaluated"] == pytest.approx(one["evaluated"], rel=1e-4)
        for name in ("predicted", "saved", "exported"):
            np.testing.assert_allclose(two[name], one[name], atol=1e-4, err_msg=name)


def test_one_worker_is_the_chief(results):
    assert [result["chief"] for result in results[1]] == [True, False]
    assert distribute.is_chief("none") and distribute.is_chief("mirrored")


def test_workers_that_disagree_are_refused(results):
    for result in results[1]:
        assert "have different places: [[0], [1]]" in result["disagreement"]


@pytest.mark.parametrize(
    "config, message",
    [
        (None, "must name all workers.*Received: None"),
        ("{", "must name all workers"),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}', "IndexError"),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "chief", "index": 0}}', "KeyError"),
        ('{"cluster": {"ps": ["a:1"]}, "task": {"type": "ps", "index": 0}}', "makes this process the 'ps' 'a:1'"),
    ],
)
def test_bad_clusters_are_refused(config, message, monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    if config is not None:
        monkeypatch.setenv("TF_CONFIG", config)
    with pytest.raises(ValueError, match=message):
        distribute.strategy("multi_worker")


def test_it_must_come_first(monkeypatch):
    keras.ops.zeros(())
    config = {"cluster": {"worker": ["localhost:1"]}, "task": {"type": "worker", "index": 0}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(config))
    with pytest.raises(ValueError, match="before TensorFlow computes anything"):
        distribute.strategy("multi_worker")
