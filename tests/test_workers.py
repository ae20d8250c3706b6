"""Two workers of MultiWorkerMirroredStrategy in separate processes, against one device."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest

from benchmarks.workers import ROOT, WORKERS, start
from keras_wsl import distribution

if keras.backend.backend() != "tensorflow":
    pytest.skip("the strategy is TensorFlow's", allow_module_level=True)

import tensorflow as tf

from tests import mirrored_child
from tests.common import CHILD_SECONDS
from tests.test_waiting import free_addresses

pytestmark = pytest.mark.usefixtures("default_signals")


@pytest.fixture(
    scope="module",
    params=[pytest.param(kind, marks=[pytest.mark.slow] if kind != "vectors" else []) for kind in mirrored_child.KINDS],
)
def results(request, tmp_path_factory):
    """Return what each worker wrote, by the kind that it trained."""
    folder = tmp_path_factory.mktemp("workers")
    paths = [folder / f"{index}.json" for index in range(WORKERS)]
    processes = start(
        lambda index: [sys.executable, "-m", "tests.multi_worker_child", str(paths[index]), request.param],
        lambda index: folder / f"{index}.log",
    )
    for index, process in enumerate(processes):
        assert process.wait(CHILD_SECONDS) == 0, (folder / f"{index}.log").read_text()[-3000:]
    return request.param, [json.loads(path.read_text()) for path in paths]


def test_two_workers_match_one_device(results):
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


def test_is_chief_is_true_for_one_worker(results):
    assert [result["chief"] for result in results[1]] == [True, False]
    assert distribution.is_chief("none") and distribution.is_chief("mirrored")


def test_strategy_keeps_sigterm_handler(results):
    """TensorFlow replaces the handler of SIGTERM when it connects the workers, and then ignores the signal."""
    for result in results[1]:
        assert signal.SIGTERM not in result["caught"]
        # A shell starts background processes with SIGINT ignored.
        assert signal.SIGINT in result["caught"] or signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_check_workers_agree_refuses_different_numbers(results):
    for result in results[1]:
        assert "must have the same places. Received: [[0], [1]]" in result["disagreement"]


@pytest.mark.parametrize(
    "config, message",
    [
        (None, "must name all workers.*Received: None"),
        ("{", "must name all workers"),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}', "IndexError"),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "chief", "index": 0}}', "KeyError"),
        ('{"cluster": {"ps": ["a:1"]}, "task": {"type": "ps", "index": 0}}', "Received: the 'ps' 'a:1'"),
    ],
)
def test_strategy_refuses_invalid_clusters(config, message, monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    if config is not None:
        monkeypatch.setenv("TF_CONFIG", config)
    with pytest.raises(ValueError, match=message):
        distribution.get_strategy("multi_worker")


def test_strategy_must_be_created_first(monkeypatch):
    keras.ops.zeros(())
    config = {"cluster": {"worker": ["localhost:1"]}, "task": {"type": "worker", "index": 0}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(config))
    with pytest.raises(ValueError, match="before TensorFlow computes anything"):
        distribution.get_strategy("multi_worker")


@pytest.fixture
def start_worker(tmp_path):
    """Return a function that starts a worker of a cluster of two: `(process, path of its output)`."""
    addresses, started = free_addresses(2), []

    def start_one(index, *command):
        config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        path = tmp_path / f"{index}.log"
        with open(path, "w") as log:
            process = subprocess.Popen(
                [sys.executable, *command],
                cwd=ROOT,
                env={**os.environ, "TF_CONFIG": json.dumps(config)},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        started.append(process)
        return process, path

    yield start_one
    for process in started:
        process.kill()
        process.wait()


def _wait_for_line(process, path, text):
    end = time.monotonic() + CHILD_SECONDS
    while text not in path.read_text():
        assert process.poll() is None and time.monotonic() < end, path.read_text()[-3000:]
        time.sleep(0.1)


def _script(tmp_path, timeout):
    flags = ["--method=none", "--student=resnet8", "--strategy=multi_worker", f"--worker_timeout={timeout}"]
    return [str(pathlib.Path("train", "cifar100.py")), *flags, f"--output_dir={tmp_path / 'run'}"]


def test_script_ends_with_one_line_if_workers_are_missing(start_worker, tmp_path):
    process, path = start_worker(0, *_script(tmp_path, 1))
    assert process.wait(CHILD_SECONDS) == 2
    *_, waiting, error = path.read_text().splitlines()
    assert waiting.startswith("waiting for workers localhost:") and waiting.endswith(", at most 1 s")
    assert error.startswith("TimeoutError: Workers are missing after 1 s: localhost:")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))])
def test_signals_end_a_script_that_waits_for_workers(number, start_worker, tmp_path):
    process, path = start_worker(1, *_script(tmp_path, 600))
    _wait_for_line(process, path, "waiting for workers localhost:")
    process.send_signal(number)
    assert process.wait(30) == -number
    assert "Traceback" not in path.read_text()


IN_TENSORFLOW = """
import sys, time
from keras_wsl import distribution
from keras_wsl.backend.tensorflow import multi_worker
if sys.argv[1] == "alone":
    multi_worker.wait = lambda *args: None
distribution.get_strategy("multi_worker", worker_timeout=5 if sys.argv[1] == "alone" else 600)
if sys.argv[1] == "late":
    time.sleep(1200)
distribution.check_workers_agree("multi_worker", "numbers", [1])
"""


@pytest.mark.slow
def test_timeout_ends_a_worker_inside_tensorflow(start_worker):
    """The other worker ends after both are connected."""
    process, _ = start_worker(0, "-c", IN_TENSORFLOW, "alone")
    assert process.wait(CHILD_SECONDS) == 1


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_a_worker_that_compares_numbers(number, start_worker):
    start_worker(1, "-c", IN_TENSORFLOW, "late")
    process, path = start_worker(0, "-c", IN_TENSORFLOW, "early")
    _wait_for_line(process, path, "waiting for all workers to compare their numbers")
    process.send_signal(number)
    assert process.wait(30) == -number
