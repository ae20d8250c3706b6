"""Many short calls of `fit` in one process, and what of memory, threads and open files is left behind.

    python -m benchmarks.soak "one distiller" 2000

prints lines of JSON: after every tenth of the calls how many there were, MiB that the process holds, Python objects,
threads, and open files. Kinds are those of `KINDS`; the one of Keras alone is what new distillers are held against.
"""

import contextlib
import functools
import gc
import json
import os
import subprocess
import sys
import tempfile
import threading

import keras

from benchmarks import child
from keras_wsl import Distiller, callbacks, data, losses
from keras_wsl.training.process_memory import held_mib

STEPS, BATCH = 2, 8


def network(name):
    """A small convolution network for digits."""
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(4, 3, name="convolution"),
            layers.BatchNormalization(name="normalization"),
            layers.ReLU(name="relu"),
            layers.GlobalAveragePooling2D(name="pooled"),
            layers.Dense(10, name="logits"),
        ],
        name=name,
    )


def compiled(model):
    """The model, ready for `fit`."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), loss, metrics=["accuracy"])
    return model


def distiller():
    """A new Distiller with two new networks, ready for `fit`."""
    return compiled(Distiller(network("teacher"), network("student"), losses.WSL(temperature=2.0)))


class Material:
    """What every call is given: on TensorFlow the same data sets, which take longer to make than a call to run."""

    def __init__(self):
        part = data.digits().train.stratified_subset(STEPS * BATCH)
        self._endless = functools.partial(data.train_batches, part, seed=0, batch_size=BATCH)
        self.arrays = part.images.astype("float32"), part.labels
        self.once = data.eval_batches(part, BATCH)
        self.probe = data.eval_batches(part, BATCH, pipeline="numpy")
        self._made = self._endless() if keras.backend.backend() == "tensorflow" else None

    def endless(self):
        """Endless batches from the first one on; those of NumPy can be gone through but once."""
        return self._endless() if self._made is None else self._made


def fit_distiller(model, material):
    """A short call with all the callbacks of a run, which write into a folder that is then removed."""
    with tempfile.TemporaryDirectory() as folder:
        model.fit(
            material.endless(),
            steps_per_epoch=STEPS,
            verbose=0,
            shuffle=False,
            validation_data=material.once,
            callbacks=[
                callbacks.ExactBackupAndRestore(os.path.join(folder, "backups"), STEPS, save_freq=1),
                callbacks.RaiseOnNonFinite(),
                callbacks.RegularizationSamples(folder, material.probe),
                callbacks.TensorBoardScalars(folder),
            ],
        )


def plain():
    """A new Keras model of the same size, ready for `fit`."""
    return compiled(network("student"))


def fit_plain(model, material):
    """A short call of Keras alone, on the same images and labels as arrays."""
    model.fit(*material.arrays, batch_size=BATCH, verbose=0, shuffle=False)


# What is created, what it does, and whether it is created again for every call.
KINDS = {
    "one distiller": (distiller, fit_distiller, False),
    "new distillers": (distiller, fit_distiller, True),
    "new Keras models": (plain, fit_plain, True),
}


def soak(kind, calls, say):
    """Call `fit` repeatedly, and report the memory, threads and files of the process once before and ten times.

    Args:
        kind: A key of `KINDS`.
        calls: Integer, a multiple of ten.
        say: Function of a dict.
    """
    make, fit, anew = KINDS[kind]
    material, model = Material(), None
    for call in range(calls):
        if model is None or anew:
            model = None
            keras.backend.clear_session()
            keras.utils.set_random_seed(0)
            model = make()
        fit(model, material)
        if (call + 1) % (calls // 10) == 0:
            say({"calls": call + 1, **held()})


def held():
    """What this process holds: MiB, Python objects, threads, open files."""
    gc.collect()
    files = "/proc/self/fd"
    return {
        "mib": round(held_mib(), 2),
        "objects": len(gc.get_objects()),
        "threads": threading.active_count(),
        "files": len(os.listdir(files)) if os.path.isdir(files) else None,
    }


def measure(kind, calls, **config):
    """Soaks in a process of its own.

    Args:
        kind: A key of `KINDS`.
        calls: Integer, a multiple of ten.
        **settings: Environment variables.

    Returns:
        List of dicts, as `soak` says them.

    Raises:
        RuntimeError: The process did not end as it should.
    """
    done = subprocess.run(**child("benchmarks.soak", kind, str(calls), **config), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"The soak of {kind} ended with status {done.returncode}:\n{done.stderr[-3000:]}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def growth(samples, what="mib"):
    """By which share of what was held after the warm-up more was held at the end."""
    return samples[-1][what] / samples[0][what] - 1


if __name__ == "__main__":
    answer = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # What else is printed.
        soak(sys.argv[1], int(sys.argv[2]), lambda sample: print(json.dumps(sample), file=answer, flush=True))
