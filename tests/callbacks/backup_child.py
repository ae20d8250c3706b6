"""Train a small model with ExactBackupAndRestore in a process that a test can kill, and write its state as JSON.

python -m tests.callbacks.backup_child DIRECTORY RESULT [EPOCHS] [KILL]: KILL is "before:N" or "after:N", which kills
this process in the N-th of its backups, before or after the file takes its name, or "torn:N", which then leaves half
of the file under that name.
"""

import functools
import hashlib
import json
import os
import pathlib
import signal
import sys

import keras
import numpy as np

from keras_wsl.callbacks import ExactBackupAndRestore

STEPS, EVERY, EPOCHS = 7, 2, 4


def batch(epoch, step):
    """Return a batch that depends only on epoch and step: images (8, 6, 6, 1) and labels that depend on them."""
    random = np.random.default_rng([epoch, step])
    images = random.normal(size=(8, 6, 6, 1)).astype("float32")
    return images, (images.mean(axis=(1, 2, 3)) > 0).astype("int32") + random.integers(0, 2, 8, dtype="int32")


@functools.cache
def arrays(epochs=60):
    """Return all batches of the first epochs: (epochs * STEPS, 8, 6, 6, 1) and (epochs * STEPS, 8)."""
    images, labels = zip(*(batch(epoch, step) for epoch in range(epochs) for step in range(STEPS)))
    return np.stack(images), np.stack(labels)


def batches(start):
    """Return endless batches, beginning with step start[1] of epoch start[0]."""
    if keras.backend.backend() == "tensorflow":
        # Not a generator: TensorFlow's threads would read it forever after each interrupted fit.
        import tensorflow as tf

        return tf.data.Dataset.from_tensor_slices(arrays()).repeat().skip(start[0] * STEPS + start[1])
    return generate(start)


def generate(start):
    """Yield the same batches from a generator."""
    epoch, step = start
    while True:
        yield batch(epoch, step)
        epoch, step = (epoch, step + 1) if step + 1 < STEPS else (epoch + 1, 0)


def build_model(*, width=4, learning_rate=0.05):
    """Return a compiled model with Conv, BatchNorm and Dropout, all named, with momentum and a metric."""
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            layers.Conv2D(width, 3, name="convolution"),
            layers.BatchNormalization(momentum=0.8, name="normalization"),
            layers.ReLU(name="relu"),
            layers.Flatten(name="flatten"),
            layers.Dropout(0.4, seed=1, name="dropout"),
            layers.Dense(3, name="logits"),
        ],
        name="student",
    )
    model.compile(
        keras.optimizers.SGD(learning_rate, momentum=0.9, name="sgd"),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def train(directory, *, epochs=EPOCHS, callbacks=(), patience=9, model=None, backup=None, **settings):
    """Train from the directory's backup to the end, and return all values that are equal in two equal runs."""
    keras.utils.set_random_seed(0)
    stopping = keras.callbacks.EarlyStopping(
        "val_loss", min_delta=0.001, patience=patience, mode="auto", restore_best_weights=True
    )
    plateau = keras.callbacks.ReduceLROnPlateau("loss", factor=0.7, patience=1, min_delta=0.05)
    settings = {"save_freq": EVERY, "stateful_callbacks": [stopping, plateau], **settings}
    backup = backup or ExactBackupAndRestore(directory, STEPS, **settings)
    model = model or build_model()
    model.fit(
        batches(start=backup.initial_position),
        validation_data=batch(10**6, 0),
        initial_epoch=backup.initial_position[0],
        steps_per_epoch=STEPS,
        epochs=epochs,
        verbose=0,
        shuffle=False,
        callbacks=[backup, stopping, plateau, *callbacks],
    )
    arrays = [keras.ops.convert_to_numpy(v) for v in [*model.variables, *model.optimizer.variables]]
    return {
        "variables": [hashlib.sha256(array.tobytes()).hexdigest() for array in arrays],
        "history": backup.history,
        "iterations": int(keras.ops.convert_to_numpy(model.optimizer.iterations)),
        "learning_rate": float(keras.ops.convert_to_numpy(model.optimizer.learning_rate)),
        "best": stopping.best,
        "wait": stopping.wait,
        "best_weights": [hashlib.sha256(weight.tobytes()).hexdigest() for weight in stopping.best_weights],
        "plateau": [plateau.best, plateau.wait],
        "position": backup.initial_position,
        "finished": backup.finished,
    }


def kill_in_write(when, number):
    """Make this process kill itself when the number-th backup is renamed."""
    replace, seen = os.replace, []

    def replace_and_kill(source, target):
        if not str(target).endswith(".backup"):
            return replace(source, target)
        seen.append(target)
        if len(seen) < number:
            return replace(source, target)
        if when == "torn":
            content = pathlib.Path(source).read_bytes()
            pathlib.Path(target).write_bytes(content[: len(content) // 2])
        elif when == "after":
            replace(source, target)
        os.kill(os.getpid(), signal.SIGKILL)

    os.replace = replace_and_kill


def make_deterministic():
    """Make each backend deterministic."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()
    elif keras.backend.backend() == "torch":
        import torch

        torch.use_deterministic_algorithms(True)


if __name__ == "__main__":
    directory, result, epochs, *kill = sys.argv[1:]
    make_deterministic()
    if kill:
        when, number = kill[0].split(":")
        kill_in_write(when, int(number))
    end = train(directory, epochs=int(epochs), patience=int(epochs))
    pathlib.Path(result).write_text(json.dumps(end))
