"""The same weights and the same batch give the same objective and the same gradients on every backend."""

import functools
import importlib.util
import json
import os
import pathlib
import sys

import numpy as np
import pytest

from keras_wsl import losses
from tests.common import run_child

pytestmark = pytest.mark.tensorflow  # Once is enough: each process has a backend of its own.

FEW = ("wsl",)  # What a network costs, JAX's is the dearest: it compiles operations one by one to build it.
REST = tuple(sorted({*losses.REGISTRY, "zoo"} - {*FEW}))
OTHERS = [
    pytest.param(name, marks=pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"needs {name}"))
    for name in ("jax", "torch")
]


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    """A function of a backend and names of losses, that gives what a process of its own wrote."""

    @functools.cache
    def run(backend, names):
        path = tmp_path_factory.mktemp("backends") / f"{backend}.json"
        ran = run_child(
            [sys.executable, "-m", "tests.backends_child", str(path), *names],
            cwd=pathlib.Path(__file__).parents[1],
            env={**os.environ, "KERAS_BACKEND": backend},
        )
        assert ran.returncode == 0, ran.stderr[-3000:]
        return json.loads(path.read_text())

    return run


@pytest.mark.parametrize("names", [FEW, pytest.param(REST, marks=pytest.mark.slow)], ids=["few", "the rest"])
@pytest.mark.parametrize("backend", OTHERS)
def test_backends_agree(steps, backend, names):
    ours, theirs = steps("tensorflow", names), steps(backend, names)
    assert ours.keys() == theirs.keys() == {*names}
    for name in names:
        assert ours[name]["logs"] == pytest.approx(theirs[name]["logs"], rel=1e-4, abs=1e-6), name
        largest = max(np.max(np.abs(one)) for one in ours[name]["gradients"])
        assert 0 < largest < np.inf
        for one, other in zip(ours[name]["gradients"], theirs[name]["gradients"], strict=True):
            # Some are nothing but rounding, such as a bias's before batch normalization.
            np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-5 * largest, err_msg=name)
