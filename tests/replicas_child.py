"""Train with many losses on a number of devices, and write the results: `... replicas_child PATH DEVICES WHICH`.

A process of its own: the number of a processor's devices must be said before TensorFlow, or JAX, starts.
"""

import json
import os
import pathlib
import sys

os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={sys.argv[2]}"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from keras import ops

from keras_wsl import Distiller, data, distribution, losses, optimizers
from tests.common import hard_loss, image_network

PATH, DEVICES = sys.argv[1], int(sys.argv[2])
WHICH = sys.argv[3]  # "few" or "every".
STRATEGY = "mirrored" if DEVICES > 1 else "none"
# Rows and batch: in the last batch the last of four replicas has no row. Losses between examples need three: of two,
# all correlations are 1 and all distances alike, so that gradients are of rounding alone.
EPOCHS, SIZES, SIZES_BETWEEN = 2, (21, 8), (41, 16)
ALONE = {"crd", "pkd"}  # Draws at random; is for transformers.
BETWEEN = {name for name, kind in losses.REGISTRY.items() if issubclass(kind, losses.RelationLoss)}
BETWEEN = (BETWEEN | {"cc", "dist", "mlkd"}) - ALONE
EACH = set(losses.REGISTRY) - BETWEEN - ALONE
if WHICH == "few":
    EACH, BETWEEN = {"wsl", "fitnet"}, {"rkd"}
PARTS = keras.backend.backend() == "tensorflow"  # Whether each replica sees a part alone; on JAX none does.


class InParts(losses.DistillationLoss):
    """A loss that sees the examples of a batch in parts, as replicas do."""

    def __init__(self, inner, parts):
        super().__init__(weight=inner.weight, name=inner.name)
        self.inner, self.parts, self.temperature = inner, parts, inner.temperature
        self.student_layers, self.teacher_layers = inner.student_layers, inner.teacher_layers

    def build(self, *shapes):
        self.inner.build(*shapes)
        self.inner.built = True

    def call(self, labels, student, teacher, index=None, **kwargs):
        size = -(-ops.shape(labels)[0] // self.parts)
        parts = []
        for i in range(self.parts):
            part = slice(i * size, (i + 1) * size)
            ends = ({name: values[part] for name, values in end.items()} for end in (student, teacher))
            parts.append(self.inner(labels[part], *ends, **kwargs))
        return ops.concatenate(parts)


def examples(rows):
    """Return a data set of images of different colors, the same at every call."""
    generator = np.random.default_rng(3)
    # Correlations of logits that are almost alike would make much of rounding.
    images = generator.integers(0, 200, (rows, 1, 1, 3)) + generator.integers(0, 56, (rows, 8, 8, 3))
    return data.ImageArrays(images.astype("uint8"), np.arange(rows) % 5, tuple("abcde"), (0.5,) * 3, (0.25,) * 3)


def made(distillation_losses, rate):
    """A compiled distiller, the same at every call; without batch normalization where that sees a part alone."""
    keras.utils.set_random_seed(5)
    with distribution.scope(STRATEGY):
        networks = image_network("teacher"), image_network("student")
        distiller = Distiller(*networks, distillation_losses())
        for layer in distiller._flatten_layers():
            if PARTS and isinstance(layer, keras.layers.BatchNormalization):
                layer.trainable = False
        optimizer = optimizers.SGD(rate, momentum=0.9, weight_decay=0.01)
        distiller.compile(optimizer, hard_loss(), metrics=["accuracy"])
    return distiller


def fit(distiller, rows, batch, epochs=EPOCHS):
    """The logs of a training with validation."""
    with distribution.scope(STRATEGY):
        found = examples(rows)
        return distiller.fit(
            data.train_batches(found, seed=0, batch_size=batch),
            steps_per_epoch=found.steps_per_epoch(batch),
            epochs=epochs,
            validation_data=data.eval_batches(found, batch),
            shuffle=False,
            verbose=0,
        ).history


def train(names, rows, batch, parts=1):
    """Weights, logs and learning rate after a training with losses of these names."""

    def chosen():
        found = [losses.get(name, weight=0.02) for name in sorted(names)]
        return [InParts(loss, parts) for loss in found] if parts > 1 else found

    distiller = made(chosen, optimizers.LinearWarmupDecay(0.002, warmup_steps=2, steps=2 * 3 * EPOCHS))
    history = fit(distiller, rows, batch)
    return {
        "weights": [np.asarray(ops.convert_to_numpy(value)).tolist() for value in distiller.trainable_variables],
        "history": history,
        "steps": int(ops.convert_to_numpy(distiller.optimizer.iterations)),
        "learning_rate": float(ops.convert_to_numpy(distiller.optimizer.learning_rate)),
    }


def memories():
    """CRD's memory of the student on every replica, after an epoch in which no weight moves, and the logs."""
    labels = examples(SIZES[0]).labels
    distiller = made(lambda: [losses.CRD(labels, negatives=6, dimensions=4)], 0.0)
    history = fit(distiller, *SIZES, epochs=1)
    (crd,) = distiller.distillation_losses
    values = [crd.student_memory.features.value]
    if PARTS and STRATEGY != "none":
        values = distribution.get_strategy(STRATEGY).experimental_local_results(values[0])
    return {"memories": [np.asarray(value).tolist() for value in values], "history": history}


def main():
    """Writes the runs as JSON."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        [device] = tf.config.list_physical_devices("CPU")
        tf.config.set_logical_device_configuration(device, [tf.config.LogicalDeviceConfiguration()] * DEVICES)
    result = {"each": train(EACH, *SIZES), "between": train(BETWEEN, *SIZES_BETWEEN), "crd": memories()}
    if PARTS and DEVICES == 1:
        result |= {f"between in {parts}": train(BETWEEN, *SIZES_BETWEEN, parts) for parts in (2, 4)}
    pathlib.Path(PATH).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
