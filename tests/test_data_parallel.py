"""`distribute` on JAX: what goes by which name, batches that cannot be shared out, and networks made elsewhere.

In processes of their own: the number of a processor's devices must be said before JAX starts.
"""

import os
import pathlib
import sys

import keras
import pytest

from keras_wsl import distribution
from tests.common import run_child

if keras.backend.backend() == "tensorflow":
    pytest.skip("strategies of JAX, and none of Torch", allow_module_level=True)

START = """
import keras, numpy as np
from keras.src.backend.jax import distribution_lib
from keras_wsl import Distiller, distribution, losses
from tests.common import examples, hard_loss, network

def made():
    distiller = Distiller(network("teacher"), network("student"), losses.WSL())
    distiller.compile(keras.optimizers.SGD(0.1), hard_loss())
    return distiller

x, y = examples(5)
original = distribution_lib.distribute_data_input
"""


def _run(code):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    return run_child(
        [sys.executable, "-c", START + code],
        cwd=pathlib.Path(__file__).parents[1],
        env={**os.environ, "XLA_FLAGS": flags},
    )


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="JAX's")
def test_batches_that_cannot_be_shared_out():
    """By `fit`, `evaluate`, `predict` and of single batches; and outside of the scope, Keras is as it was."""
    ran = _run("""
strategy = distribution.get_strategy("mirrored")
assert strategy is distribution.get_strategy("mirrored") and strategy.num_model_replicas == 2
with distribution.scope("mirrored"):
    distiller = made()
    distiller.fit(x, y, batch_size=3, verbose=0)
    for variable in distiller.variables:
        assert len(variable.value.sharding.device_set) == 2, variable.path
    logs = distiller.evaluate(x, y, batch_size=3, verbose=0, return_dict=True)
    assert np.isclose(logs["loss"], distiller.test_on_batch(x, y, return_dict=True)["loss"]), logs
    assert np.isfinite(distiller.train_on_batch(x, y, return_dict=True)["loss"])
    one = np.asarray(distiller.predict_on_batch(x))
    np.testing.assert_allclose(distiller.predict(x, batch_size=2, verbose=0), one, atol=1e-6)
    assert distribution_lib.distribute_data_input is not original
assert distribution_lib.distribute_data_input is original and keras.distribution.distribution() is None
""")
    assert ran.returncode == 0, ran.stderr[-3000:]


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="JAX's")
def test_networks_made_outside_are_refused():
    ran = _run("""
distiller = made()
with distribution.scope("mirrored"):
    distiller.fit(x, y, verbose=0)
""")
    assert "was made outside of the DataParallel in which the Distiller trains. Make both networks" in ran.stderr


def test_names_of_other_backends_are_refused():
    backend = keras.backend.backend()
    with pytest.raises(ValueError, match=f"must be one of .* on the {backend} backend. Received: 'multi_worker'"):
        distribution.get_strategy("multi_worker")
    assert distribution.get_strategy("none") is None


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="JAX's")
def test_without_a_tpu():
    with pytest.raises(ValueError, match="requires a TPU, but none was found"):
        distribution.get_strategy("tpu")
