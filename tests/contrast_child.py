"""CRD on two replicas, and what each one remembers: `python -m tests.contrast_child PATH`.

A process of its own: TensorFlow's logical devices must be set before it starts.
"""

import json
import os
import pathlib
import sys

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

from keras_wsl import Distiller, losses
from tests.common import examples, hard_loss, network

EXAMPLES, SEEN, BATCH = 24, 16, 8


def train(strategy):
    """One epoch over some of the examples: each replica's memories of the student, before and after, and the logs."""
    keras.utils.set_random_seed(5)
    x, y = examples(EXAMPLES)
    with strategy.scope():
        crd = losses.CRD(y, layers=["hidden"], negatives=6, dimensions=4)
        distiller = Distiller(network("teacher", width=11), network("student"), [losses.KD(), crd])
        distiller.compile(keras.optimizers.SGD(0.05), hard_loss())

    def memories():
        values = strategy.experimental_local_results(crd.student_memory.rows.value)
        return [value.numpy().tolist() for value in values]

    before = memories()
    targets = {"labels": y[:SEEN], "index": np.arange(SEEN)}
    dataset = tf.data.Dataset.from_tensor_slices((x[:SEEN], targets)).batch(BATCH)
    history = distiller.fit(dataset, epochs=1, verbose=0).history
    return {"before": before, "after": memories(), "history": history}


def main(path):
    """Writes the run as JSON."""
    [device] = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(device, [tf.config.LogicalDeviceConfiguration()] * 2)
    pathlib.Path(path).write_text(json.dumps(train(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]))))


if __name__ == "__main__":
    main(sys.argv[1])
