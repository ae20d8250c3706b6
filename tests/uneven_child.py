"""Trains on batches that do not divide by the devices, on one device and on several.

`python -m tests.uneven_child PATH DEVICES WHICH`, a process of its own: the number of a processor's devices must be set
before TensorFlow, or JAX, starts.
"""

import json
import os
import pathlib
import sys

os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

from keras_wsl import Distiller, data, distribution, losses
from tests.common import bright_splits, examples, hard_loss, image_network, keras_cv_classifier, network

PATH, DEVICES, WHICH = sys.argv[1], int(sys.argv[2]), sys.argv[3]  # "few" or "every".
CASES = {}


def _case(function, name=None):
    CASES[name or function.__name__] = function
    return function


def _plain(name):
    """A network without batch normalization, which sees a replica's part of a batch alone."""
    layers = [keras.layers.Dense(8, activation="tanh"), keras.layers.Dense(5, name="logits")]
    return keras.Sequential([keras.Input((6,)), *layers], name=name)


def _made(teacher=network, student=_plain, terms=("wsl",), **settings):
    keras.utils.set_random_seed(5)
    distiller = Distiller(teacher("teacher"), student("student"), [losses.get(term) for term in terms], **settings)
    distiller.compile(
        keras.optimizers.SGD(0.1, momentum=0.9),
        hard_loss(),
        metrics=["accuracy"],
        weighted_metrics=["accuracy", keras.metrics.SparseTopKCategoricalAccuracy(2, name="top_2")],
    )
    return distiller


def _trained(distiller, batches, inputs, **settings):
    """The results of `fit` with validation, `evaluate` and `predict`, and all variables afterwards."""
    settings = {"epochs": 2, "validation_data": batches, **settings}
    history = distiller.fit(batches, verbose=0, shuffle=False, **settings).history
    return {
        **history,
        "evaluated": distiller.evaluate(settings["validation_data"], verbose=0),
        "predicted": distiller.predict(inputs, verbose=0),
        **{f"variable {i}": keras.ops.convert_to_numpy(variable) for i, variable in enumerate(_variables(distiller))},
    }


def _variables(distiller):
    return [*distiller.student.variables, *distiller.optimizer.variables]


def _batches(rows, size, **settings):
    x, y = examples(rows)
    weight = np.linspace(0.2, 2.0, rows).astype("float32")
    return tf.data.Dataset.from_tensor_slices((x, y, weight)).batch(size, **settings)


def _inputs(batches):
    return batches.map(lambda x, *others: x)


def _sizes(rows, size, **settings):
    """Return the training on `rows` rows in batches of this size."""
    batches = _batches(rows, size, **settings)
    return _trained(_made(), batches, _inputs(batches))


for rows, size in ((5, 5), (1, 1), (11, 4), (17, 8)):
    _case(lambda rows=rows, size=size: _sizes(rows, size), f"{rows} rows in batches of {size}")


@_case
def drop_remainder():
    return _sizes(13, 5, drop_remainder=True)


@_case
def short_batch_first():
    batches = _batches(3, 3).concatenate(_batches(8, 8))
    return _trained(_made(), batches, _inputs(batches))


@_case
def arrays():
    """Class weights, a validation split, and single batches."""
    x, y = examples(13)
    distiller = _made()
    weights = {label: 1.0 + label for label in range(5)}
    settings = {"validation_split": 0.3, "class_weight": weights, "batch_size": 4, "shuffle": False}
    history = distiller.fit(x, y, verbose=0, **settings).history
    first, last = distiller.train_on_batch(x[:3], y[:3], return_dict=True), distiller.test_on_batch(x[:3], y[:3])
    predicted = distiller.predict(x, batch_size=3, verbose=0)
    return {**history, **{f"step {name}": value for name, value in first.items()}, "last": last, "predicted": predicted}


@_case
def python_generator():
    x, y = examples(13)
    parts = ((x[i : i + 5], y[i : i + 5]) for i in range(0, 13, 5))
    return _trained(_made(), parts, x, epochs=1, validation_data=_batches(13, 5))


@_case
def dict_inputs():
    """Inputs in a dict, of which teacher and student are given different ones, and labels in a dict."""
    x, y = examples(11)
    inputs = {"student": x, "teacher": {"flipped": x[:, ::-1].copy()}}
    rows = (inputs, {"labels": y, "index": np.arange(11)}, np.linspace(0.5, 1.5, 11))
    batches = tf.data.Dataset.from_tensor_slices(rows).batch(5)
    distiller = _made(student_inputs="student", teacher_inputs=lambda inputs: inputs["teacher"]["flipped"])
    return _trained(distiller, batches, _inputs(batches))


@_case
def resumed_before_the_short_batch():
    train = bright_splits(11).train
    distiller = _made(image_network, lambda name: _frozen(image_network(name, classes=3)), ("at",))
    batches = data.train_batches(train, seed=0, batch_size=4, initial_position=(0, 2))
    validation = data.eval_batches(train, 5)
    settings = {"steps_per_epoch": 1, "epochs": 1, "validation_data": validation}
    return _trained(distiller, batches, train.images.astype("float32") / 255, **settings)


def _frozen(model):
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False
    return model


def _normalized(teacher, student, size, terms=("wsl",), **settings):
    """The shapes of results, all finite: every replica normalizes its own rows, and few rows make gradients steep."""
    generator = np.random.default_rng(0)
    for rows in (1, 3):
        x, y = generator.normal(size=(rows, size, size, 3)).astype("float32"), np.arange(rows) % 3
        distiller = _made(teacher, student, terms, **settings)
        result = _trained(distiller, tf.data.Dataset.from_tensor_slices((x, y)).batch(rows), x)
        assert all(np.isfinite(values).all() for values in result.values())
    return {name: np.shape(values) for name, values in result.items()}


@_case
def normalization_without_rows():
    terms = ("wsl", "rkd", "sp", "dist", "cc", "pkt")
    return _normalized(image_network, image_network, 8, terms, teacher_batch_statistics=True)


@_case
def keras_cv_without_rows():
    return _normalized(
        lambda name: keras_cv_classifier([1, 1], nested=True), lambda name: keras_cv_classifier([1, 1]), 32
    )


FEW = ("5 rows in batches of 5", "11 rows in batches of 4", "python_generator", "resumed_before_the_short_batch")


def main():
    """Writes the results of every case on one device and on several."""
    distribution.set_cpu_devices(DEVICES)
    results = {}
    for name in FEW if WHICH == "few" else CASES:
        for strategy in ("none", "mirrored"):
            with distribution.scope(strategy):
                values = CASES[name]()
            results.setdefault(name, []).append({key: np.asarray(value).tolist() for key, value in values.items()})
    pathlib.Path(PATH).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
