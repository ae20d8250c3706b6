"""The same batches on one device, two and four: the same objective, logs and weights, for every loss."""

import functools
import json
import os
import pathlib
import sys

import keras
import numpy as np
import pytest

from tests.common import run_child

BACKEND = keras.backend.backend()
if BACKEND == "torch":
    pytest.skip("Keras has no distribution on Torch", allow_module_level=True)

# On TensorFlow `test_keras_defects.py` has two replicas in the default run.
FEW = pytest.param("few", marks=[pytest.mark.slow] if BACKEND == "tensorflow" else [])
WHICH = [FEW, pytest.param("every", marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A function of a number of devices and of which losses, that gives what a process of its own wrote."""

    @functools.cache
    def run(devices, which):
        path = tmp_path_factory.mktemp("replicas") / "result.json"
        ran = run_child(
            [sys.executable, "-m", "tests.replicas_child", str(path), str(devices), which],
            cwd=pathlib.Path(__file__).parents[1],
            env={**os.environ, "KERAS_BACKEND": BACKEND},
        )
        assert ran.returncode == 0, ran.stderr[-3000:]
        return json.loads(path.read_text())

    return run


def _devices(which):
    return (2,) if which == "few" else (2, 4)


def _assert_same(one, several):
    assert one["history"].keys() == several["history"].keys()
    for name, values in one["history"].items():
        assert np.isfinite(values).all(), name
        np.testing.assert_allclose(several["history"][name], values, rtol=1e-5, atol=1e-5, err_msg=name)
    for mine, other in zip(one["weights"], several["weights"], strict=True):
        np.testing.assert_allclose(other, mine, atol=1e-5)
    assert (several["steps"], several["learning_rate"]) == (one["steps"], pytest.approx(one["learning_rate"]))


@pytest.mark.parametrize("which", WHICH)
def test_losses_of_each_example(trained, which):
    one = trained(1, which)["each"]
    assert one["steps"] == 6 and 0 < one["learning_rate"] < 0.002
    for devices in _devices(which):
        _assert_same(one, trained(devices, which)["each"])


@pytest.mark.parametrize("which", WHICH)
def test_losses_between_examples(trained, which):
    """TensorFlow's replicas see their own parts of a batch, as a loss on one device can be shown them; JAX's all."""
    for devices in _devices(which):
        one = trained(1, which)["between" if BACKEND == "jax" else f"between in {devices}"]
        _assert_same(one, trained(devices, which)["between"])


@pytest.mark.parametrize("which", WHICH)
def test_memories_are_one(trained, which):
    """Every replica has the rows of all; what is drawn for a loss differs, and so does its value."""
    (one,) = trained(1, which)["crd"]["memories"]
    np.testing.assert_allclose(np.linalg.norm(one, axis=-1), 1, atol=1e-5)
    for devices in _devices(which):
        found = trained(devices, which)["crd"]
        assert len(found["memories"]) == (devices if BACKEND == "tensorflow" else 1)
        for memory in found["memories"]:
            np.testing.assert_allclose(memory, one, atol=1e-6)
        assert np.isfinite(found["history"]["crd"]).all()
