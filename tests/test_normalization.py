"""Batch normalization by one kernel in the steps on TensorFlow, against Keras's own."""

import contextlib
import threading

import keras
import numpy as np
import pytest

from keras_wsl import Distiller, losses, models
from tests.common import hard_loss

if keras.backend.backend() != "tensorflow":
    pytest.skip("the kernel is TensorFlow's", allow_module_level=True)

import tensorflow as tf

from keras_wsl.backend.tensorflow import trainer as step
from keras_wsl.backend.tensorflow.batch_normalization import fused

MAPS = np.random.default_rng(0).normal(1.0, 3.0, (6, 5, 4, 3)).astype("float32")


def _normalization(inputs=MAPS, kind=keras.layers.BatchNormalization, trainable=True, **settings):
    layer = kind(momentum=0.7, **settings)
    layer.build(inputs.shape)
    generator = np.random.default_rng(1)
    layer.set_weights([generator.uniform(0.5, 2.0, w.shape) for w in layer.get_weights()])
    layer.trainable = trainable
    return layer


def _kernels(function):
    """How often the kernel is in the graph of a function of no arguments."""
    graph = tf.function(function).get_concrete_function().graph
    return sum(operation.type == "FusedBatchNormV3" for operation in graph.get_operations())


def _traced(layer, inputs=MAPS, **settings):
    with fused():
        return _kernels(lambda: layer(inputs, **settings))


def _results(layer, training, context, jit_compile):
    """Outputs, gradients by inputs, gamma and beta, and the moving statistics after one call."""
    direction = np.random.default_rng(2).normal(size=MAPS.shape).astype("float32")

    @tf.function(jit_compile=jit_compile)
    def call(inputs):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            with context():
                outputs = layer(inputs, training=training)
            total = tf.reduce_sum(tf.cast(outputs, "float32") * direction)
        return outputs, tape.gradient(total, [inputs, layer.gamma.value, layer.beta.value])

    outputs, gradients = call(tf.constant(MAPS))
    moving = [layer.moving_mean.numpy(), layer.moving_variance.numpy()]
    return outputs.dtype, [tf.cast(value, "float32").numpy() for value in (outputs, *gradients)] + moving


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "dtype, tolerance, jit_compile",
    [
        ("float32", 2e-5, False),
        ("float32", 2e-5, True),
        ("mixed_bfloat16", 3e-2, False),
        ("mixed_float16", 4e-3, False),
    ],
)
def test_a_layer_computes_the_same(dtype, tolerance, jit_compile, training):
    kept, ours = (
        _results(_normalization(dtype=dtype), training, context, jit_compile)
        for context in (contextlib.nullcontext, fused)
    )
    assert ours[0] == kept[0]
    for one, other in zip(ours[1], kept[1], strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance * np.abs(other).max())
    assert training == (not np.allclose(ours[1][-1], _normalization().moving_variance))


def test_the_moving_variance_is_that_of_n_examples():
    layer = _normalization()
    before = layer.moving_variance.numpy()
    with fused():
        layer(MAPS, training=True)
    expected = 0.7 * before + 0.3 * MAPS.var(axis=(0, 1, 2))
    np.testing.assert_allclose(layer.moving_variance, expected, rtol=1e-5)


class Own(keras.layers.BatchNormalization):
    """A subclass, which may compute something else."""


@pytest.mark.parametrize(
    "settings, call",
    [
        ({"kind": Own}, {}),
        ({"axis": 1}, {}),
        ({"scale": False}, {}),
        ({"center": False}, {}),
        ({"renorm": True}, {"training": True}),
        ({"synchronized": True}, {}),
        ({"dtype": "float64"}, {}),
        ({}, {"mask": np.ones(MAPS.shape[:-1], bool)}),
        ({"trainable": False}, {"training": True}),
    ],
)
def test_what_the_kernel_is_not_for(settings, call):
    assert _traced(_normalization(), **{"training": True, **call, "mask": None}) == 1
    layers = [_normalization(**settings) for _ in range(2)]
    assert _traced(layers[0], **call) == 0
    with fused():
        ours = layers[0](MAPS, **call)
    np.testing.assert_array_equal(ours, layers[1](MAPS, **call))


def test_rows_are_left_alone():
    rows = MAPS[:, 0, 0]
    assert _traced(_normalization(rows), rows, training=True) == 0


def test_outside_nothing_is_changed():
    layer = _normalization()
    of_another_thread = []

    def trace():
        of_another_thread.append(_kernels(lambda: layer(MAPS)))

    with pytest.raises(KeyError, match="inside"), fused(), fused():
        thread = threading.Thread(target=trace)
        thread.start()
        thread.join()
        raise KeyError("inside")
    assert of_another_thread == [0]
    assert _kernels(lambda: layer(MAPS)) == 0
    assert keras.layers.BatchNormalization.call.__module__.startswith("keras.")


def _distiller(**settings):
    keras.utils.set_random_seed(0)
    teacher, student = (models.build("resnet8", 10, input_shape=(16, 16, 3)) for _ in range(2))
    distiller = Distiller(teacher, student, losses.WSL(), **settings)
    distiller.compile(optimizer=keras.optimizers.SGD(0.05, momentum=0.9), loss=hard_loss(), jit_compile=False)
    return distiller


BATCH = np.random.default_rng(0).normal(size=(8, 16, 16, 3)).astype("float32"), np.arange(8) % 10


@pytest.mark.parametrize("teacher_batch_statistics", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_run_is_the_same(monkeypatch, teacher_batch_statistics):
    def trained():
        distiller = _distiller(teacher_batch_statistics=teacher_batch_statistics)
        distiller.fit(*BATCH, batch_size=4, epochs=2, shuffle=False, verbose=0)
        return [
            *distiller.student.get_weights(),
            *distiller.teacher.get_weights(),
            distiller.evaluate(*BATCH, verbose=0),
        ]

    ours = trained()
    monkeypatch.setattr(step, "fused", contextlib.nullcontext)
    for one, other in zip(ours, trained(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=2e-5)


def test_the_steps_have_it():
    distiller = _distiller()
    layers = sum(isinstance(layer, keras.layers.BatchNormalization) for layer in distiller.student.layers)
    batch = tuple(map(tf.constant, BATCH))
    distiller.train_on_batch(*BATCH)  # Makes the optimizer's variables.
    assert _kernels(lambda: distiller.train_step(batch)) == 2 * layers
    assert _kernels(lambda: distiller.test_step(batch)) == layers
