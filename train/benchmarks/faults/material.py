"""Small networks, data and stores for the attempts that need no run of their own."""

import dataclasses
import pathlib

import keras
import numpy as np

from keras_wsl import Distiller, data, losses, soft_labels
from keras_wsl.training import runner
from keras_wsl.training.config import Config

CLASSES = 5
FEATURES = 6


def network(name, width=8, classes=CLASSES):
    """Return a small classifier of vectors."""
    layers = keras.layers
    return keras.Sequential(
        [keras.Input((FEATURES,)), layers.Dense(width, "relu", name="hidden"), layers.Dense(classes, name="logits")],
        name=name,
    )


def image_network(name, classes=3):
    """Return a small classifier of images of 8 x 8 pixels."""
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(4, 3, name="convolution"),
            layers.ReLU(name="relu"),
            layers.GlobalAveragePooling2D(name="pooled"),
            layers.Dense(classes, name="logits"),
        ],
        name=name,
    )


def examples(count=20, seed=0):
    """Return random vectors, float32, and labels, int32."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(count, FEATURES)).astype("float32")
    return x, generator.integers(0, CLASSES, count).astype("int32")


def compiled(distiller, one_hot=False, rate=0.01):
    """Return a Distiller that is compiled for integer labels, or for distributions."""
    kind = keras.losses.CategoricalCrossentropy if one_hot else keras.losses.SparseCategoricalCrossentropy
    distiller.compile(keras.optimizers.SGD(rate), kind(from_logits=True), metrics=["accuracy"])
    return distiller


def distiller(one_hot=False, teacher=None, student=None):
    """Return a compiled Distiller of two small networks with WSL."""
    keras.utils.set_random_seed(0)
    pair = teacher or network("teacher"), student or network("student")
    return compiled(Distiller(*pair, losses.WSL(temperature=2.0)), one_hot)


def images(count=30, seed=0):
    """Return `data.Splits` of random images of 8 x 8 pixels and three classes that differ in brightness."""

    def part(number, generator):
        labels = np.arange(number) % 3
        pixels = generator.integers(0, 80, (number, 8, 8, 3)) + 80 * labels[:, None, None, None]
        return data.ImageArrays(pixels.astype("uint8"), labels, ("dark", "grey", "light"), (0.5,) * 3, (0.25,) * 3)

    generator = np.random.default_rng(seed)
    return data.Splits(part(count, generator), part(9, generator))


def store(folder):
    """Write soft labels of 20 of `images` in two views and several files, and return the `SoftLabels`."""
    keras.utils.set_random_seed(0)
    config = {"seed": 3, "num_views": 2, "rows_per_file": 8, "batch_size": 16, "verbose": 0}
    return soft_labels.write_soft_labels(image_network("teacher"), images(20).train, folder, **config)


SHORT_RUN = Config(student="resnet8", method="none", epochs=1, decay_epochs=(), batch_size=16, backup_every_steps=1)


def run(out, splits=None, *, resume=False, **changes):
    """Train `SHORT_RUN` with these settings changed in this process, and return the content of `result.json`."""
    config = dataclasses.replace(SHORT_RUN, **changes)
    return runner.run(config, splits or images(), pathlib.Path(out), resume=resume, verbose=0)
