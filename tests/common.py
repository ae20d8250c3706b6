"""What tests of several files share: golden files, gradients on any backend, small networks."""

import json
import pathlib

import keras
import numpy as np

GOLDEN = pathlib.Path(__file__).parent / "golden"


def golden(name):
    """The content of a golden file; a missing one fails the test that asks."""
    return json.loads((GOLDEN / f"{name}.json").read_text())


def gradient(function, value):
    """The gradient of a scalar function of one float32 array, on any backend: a NumPy array."""
    value = np.asarray(value, "float32")
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        value = tf.constant(value)
        with tf.GradientTape() as tape:
            tape.watch(value)
            result = function(value)
        return tape.gradient(result, value).numpy()
    if backend == "jax":
        import jax

        return np.asarray(jax.grad(function)(value))
    import torch

    value = torch.tensor(value, requires_grad=True)
    function(value).backward()
    return value.grad.numpy()


def network(name, width=8, classes=5, inputs=6, **dense):
    """A small classifier with batch normalization; its hidden layer is the endpoint `hidden`."""
    return keras.Sequential(
        [
            keras.Input((inputs,)),
            keras.layers.Dense(width, name="hidden"),
            keras.layers.BatchNormalization(momentum=0.5, name="norm"),
            keras.layers.ReLU(name="relu"),
            keras.layers.Dense(classes, name="logits", **dense),
        ],
        name=name,
    )


def examples(count=32, classes=5, inputs=6, seed=0):
    """Random inputs and integer labels."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(count, inputs)).astype("float32")
    return x, generator.integers(0, classes, count).astype("int32")


def hard_loss():
    """The cross-entropy with integer labels, of logits."""
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def arrays(model):
    """Copies of all variables of a model."""
    return [np.array(keras.ops.convert_to_numpy(variable)) for variable in model.variables]
