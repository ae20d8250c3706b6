"""Train the same on one device and on two replicas, and write the results: `python -m tests.mirrored_child PATH`.

A process of its own: TensorFlow's logical devices must be set before it starts, and two strategies in one process
collide.
"""

import json
import os
import pathlib
import sys
import tempfile

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

from keras_wsl import Distiller, export, losses, models
from tests.common import examples, hard_loss, network
from tests.test_distiller import Hint, KerasDistiller, LogitsDistillation, plain

ROWS, BATCH = 21, 8  # The last batch has five rows: three on the first replica, two on the second.


def _dataset(targets=lambda x, y: y, shape=(6,), batch=BATCH):
    x, y = examples(ROWS, inputs=int(np.prod(shape)))
    weight = np.linspace(0.2, 2.0, ROWS).astype("float32")
    return tf.data.Dataset.from_tensor_slices((x.reshape(-1, *shape), targets(x, y), weight)).batch(batch)


def _networks():
    keras.utils.set_random_seed(5)
    # Batch normalization in the teacher alone: each replica has statistics of its own.
    return network("teacher", width=11), plain("student", kernel_regularizer=keras.regularizers.L2(0.05))


def _vectors():
    return *_networks(), [losses.WSL(), Hint(weight=0.5)], _dataset()


def _given_logits():
    """The teacher's logits are in the batches, of which the first one is uneven too."""
    teacher, student = _networks()

    def targets(x, y):
        return {"labels": y, "teacher_logits": teacher(x).numpy()}

    return "teacher_logits", student, losses.WSL(), _dataset(targets, batch=BATCH + 1)


def _maps():
    """The teacher normalizes maps."""
    keras.utils.set_random_seed(5)
    teacher = models.build("resnet8", 5, input_shape=(8, 8, 3))
    student = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(5, name="logits")])
    return teacher, student, losses.WSL(), _dataset(shape=(8, 8, 3))


KINDS = {"vectors": _vectors, "given_logits": _given_logits, "maps": _maps}


def train(strategy, kind, *, afterwards=False):
    """Weights and history of a run in the strategy's scope, and what can be done afterwards."""
    with strategy.scope():
        teacher, student, terms, dataset = KINDS[kind]()
        distiller = Distiller(teacher, student, terms)
        distiller.compile(
            keras.optimizers.SGD(0.1, momentum=0.9), hard_loss(), metrics=["accuracy"], weighted_metrics=["accuracy"]
        )
    history = distiller.fit(dataset, epochs=3, validation_data=dataset, verbose=0).history
    result = {
        "replicas": strategy.num_replicas_in_sync,
        "weights": [variable.numpy().tolist() for variable in distiller.trainable_variables],
        "history": history,
    }
    return result | (_afterwards(distiller, dataset) if afterwards else {})


def _afterwards(distiller, dataset):
    """What `evaluate` and `predict` give, and a student that was saved and exported, in a folder of this worker."""
    inputs = dataset.map(lambda x, *others: x)
    x = np.concatenate([batch.numpy() for batch in inputs])
    with tempfile.TemporaryDirectory() as folder:
        saved, exported = pathlib.Path(folder, "student.keras"), pathlib.Path(folder, "served")
        export.save_keras(distiller.student, saved)
        export.export_saved_model(distiller.student, exported)
        served = tf.saved_model.load(exported)  # Its variables go with its name.
        return {
            "evaluated": distiller.evaluate(dataset, verbose=0, return_dict=True),
            "predicted": distiller.predict(inputs, verbose=0).tolist(),
            "saved": keras.ops.convert_to_numpy(keras.saving.load_model(saved, compile=False)(x)).tolist(),
            "exported": served.serve(x).numpy().tolist(),
        }


def statistics(strategy):
    """The first moving mean and variance of a student on every replica here, after an epoch without a change."""
    with strategy.scope():
        keras.utils.set_random_seed(5)
        distiller = Distiller(network("teacher", width=11), network("student"), losses.WSL())
        distiller.compile(keras.optimizers.SGD(0.0), hard_loss())
    x, y = examples(ROWS - ROWS % BATCH)
    distiller.fit(tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH), verbose=0)
    layer = distiller.student.get_layer("norm")
    return [
        [value.numpy().tolist() for value in strategy.experimental_local_results(variable.value)]
        for variable in (layer.moving_mean, layer.moving_variance)
    ]


def train_keras(strategy):
    """What Keras's Distiller logs of an epoch without a change, and the mean of the student's cross-entropy."""
    with strategy.scope():
        teacher, student = _networks()
        distiller = KerasDistiller(teacher, student, LogitsDistillation())
        distiller.compile(keras.optimizers.SGD(0.0), hard_loss())
    x, y = examples(ROWS)
    true = float(hard_loss()(y, student(x)))
    return distiller.fit(_dataset(), verbose=0).history, true


def main(path):
    """Writes the runs as JSON."""
    [device] = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(device, [tf.config.LogicalDeviceConfiguration()] * 2)
    one, two = tf.distribute.get_strategy(), tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    result = {"kinds": {kind: [train(strategy, kind) for strategy in (one, two)] for kind in KINDS}}
    result["statistics"] = [statistics(strategy) for strategy in (one, two)]
    result["keras_two"], result["keras_true_student_loss"] = train_keras(two)
    pathlib.Path(path).write_text(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1])
