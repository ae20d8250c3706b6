"""What Keras cannot do under a strategy is refused before the first step, and the step is one that XLA compiles."""

import types

import keras
import numpy as np
import pytest
from keras.src.backend.common.masking import get_keras_mask

from keras_wsl import Distiller, data, distribution, losses
from tests.common import bright_splits, examples, hard_loss, make_loss, network, networks

pytestmark = pytest.mark.tensorflow

# What a TPU leaves to its host, or cannot do.
ON_HOSTS = {"PyFunc", "PyFuncStateless", "EagerPyFunc", "PrintV2", "ReadFile", "Unique", "Where", "AsString"}


def _compiled(optimizer=None, **settings):
    with distribution.scope("mirrored"):
        distiller = Distiller(network("teacher", width=11), network("student"), losses.WSL())
        distiller.compile(optimizer or keras.optimizers.SGD(0.1), hard_loss(), **settings)
    return distiller


@pytest.mark.parametrize(
    "optimizer, settings, message",
    [
        ({}, {"steps_per_execution": 2}, "steps_per_execution=2 does not work under MirroredStrategy in Keras"),
        ({"gradient_accumulation_steps": 2}, {}, "gradient_accumulation_steps does not work under MirroredStrategy"),
        ({"use_ema": True, "ema_overwrite_frequency": 3}, {}, "ema_overwrite_frequency does not work under Mirrored"),
    ],
)
def test_what_fails_in_keras_is_refused(optimizer, settings, message):
    with distribution.scope("mirrored"):
        optimizer = keras.optimizers.SGD(0.1, **optimizer)
    distiller = _compiled(optimizer, **settings)
    before = distiller.student.get_weights()
    with pytest.raises(ValueError, match=message):
        distiller.fit(*examples(), verbose=0)
    assert all((a == b).all() for a, b in zip(before, distiller.student.get_weights()))


def test_xla_is_refused(monkeypatch):
    distiller = _compiled()
    monkeypatch.setattr(Distiller, "jit_compile", True)  # Keras drops it where operations are deterministic.
    with pytest.raises(ValueError, match="jit_compile=True does not work under MirroredStrategy"):
        distiller.fit(*examples(), verbose=0)


def test_an_average_of_weights_that_overwrites_nothing_is_none_of_it():
    with distribution.scope("mirrored"):
        optimizer = keras.optimizers.SGD(0.1, use_ema=True)
    _compiled(optimizer).fit(*examples(), verbose=0)


def test_a_strategy_is_made_once():
    assert distribution.get_strategy("mirrored") is distribution.get_strategy("mirrored")
    assert distribution.get_strategy() is None


def test_without_a_tpu():
    with pytest.raises(ValueError, match="requires a TPU, but none was found. Use 'mirrored' for GPUs"):
        distribution.get_strategy("tpu")


@pytest.mark.parametrize(
    "name", ["wsl", *(pytest.param(n, marks=pytest.mark.slow) for n in losses.REGISTRY if n != "wsl")]
)
def test_the_step_compiles_as_a_tpu_needs_it(name):
    """With static shapes, by XLA alone and nothing on the host; it computes the same. No TPU was at hand."""
    import tensorflow as tf

    student, teacher = networks(name)
    # As many negatives as there are, so that no draw makes a difference.
    loss = make_loss(name, **({"negatives": 32} if name == "crd" else {}))
    distiller = Distiller(teacher, student, loss)
    distiller.compile(keras.optimizers.SGD(0.0), hard_loss(), metrics=["accuracy"])
    distiller.optimizer.build(distiller.trainable_variables)
    generator = np.random.default_rng(0)
    x = tf.constant(generator.normal(size=(8, *student.input_shape[1:])), "float32")
    index = tf.constant(generator.permutation(40)[:8], "int32")
    batch = (x, {"labels": index % 5, "index": index})
    compiled = tf.function(distiller.train_step, jit_compile=True).get_concrete_function(batch)
    graphs = [compiled.graph, *(compiled.graph._get_function(name).graph for name in compiled.graph._functions)]
    operations = {operation.type for graph in graphs for operation in graph.get_operations()}
    assert operations and not operations & ON_HOSTS
    before = [variable.numpy() for variable in distiller.variables]
    found = {name: float(value) for name, value in compiled(batch).items()}
    for variable, value in zip(distiller.variables, before):  # A contrast's memories have moved.
        variable.assign(value)
    distiller.reset_metrics()
    assert found == pytest.approx(distiller.train_on_batch(*batch, return_dict=True), rel=1e-4, abs=1e-5)


def test_batches_of_one_size_say_so():
    """A TPU compiles the step once for a shape; and nothing is dropped where they are not of one size."""
    train = bright_splits(24).train
    for batch_size, known in ((8, 8), (7, None)):
        for batches in (data.train_batches(train, seed=0, batch_size=batch_size), data.eval_batches(train, batch_size)):
            x, y = batches.element_spec
            assert {spec.shape[0] for spec in (x, *y.values())} == {known}
    assert sum(len(x) for x, _ in data.eval_batches(train, 7)) == 24


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="must be one of .*'multi_worker', 'tpu'.*Received: 'magic'"):
        distribution.scope("magic")


def test_set_cpu_devices_is_refused_after_a_computation():
    keras.ops.zeros(())
    with pytest.raises(ValueError, match="must be set before the backend computes anything. Received: 3"):
        distribution.set_cpu_devices(3)


@pytest.mark.parametrize("timeout", [0, -1.0, float("nan"), float("inf")])
def test_strategy_refuses_timeouts_that_are_no_time(timeout):
    with pytest.raises(ValueError, match="`worker_timeout` must be a positive number of seconds"):
        distribution.get_strategy("multi_worker", worker_timeout=timeout)


@pytest.mark.parametrize("rows", [0, 3])
def test_call_with_rows_hides_an_empty_part_from_networks(rows, monkeypatch):
    import tensorflow as tf

    from keras_wsl.backend.tensorflow.replicas import call_with_rows

    monkeypatch.setattr(tf.distribute, "get_replica_context", lambda: types.SimpleNamespace(num_replicas_in_sync=2))
    seen = []

    def network(inputs):
        seen.append([int(tf.shape(tensor)[0]) for tensor in inputs.values()])
        return {"logits": keras.layers.Masking()(inputs["a"])}

    outputs = call_with_rows(network, {"a": tf.ones((rows, 4, 5)), "b": tf.fill((rows,), "text")})
    assert seen == [[max(rows, 1)] * 2]
    assert outputs["logits"].shape == (rows, 4, 5) and get_keras_mask(outputs["logits"]).shape == (rows, 4)
