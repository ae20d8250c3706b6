"""Objective and gradients of a step with each loss, of the same numbers: `... backends_child PATH LOSS [LOSS ...]`."""

import json
import os
import pathlib
import sys

os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

from keras_wsl import Distiller
from keras_wsl.models import registry
from tests.common import hard_loss, make_loss, networks

ROWS, RATE = 8, 1024.0  # A power of two, by which a float is divided without rounding.


def step(name):
    """The logs of one step and the gradients of all that trains, by the loss of that name; "zoo" for real networks."""
    if name == "zoo":
        student, teacher = (registry.build(each, 5, input_shape=(16, 16, 3)) for each in ("resnet8", "wrn_16_2"))
        terms = [make_loss("wsl"), make_loss("reviewkd")]
    else:
        student, teacher = networks(name)
        # As many negatives as there are, so that no draw makes a difference.
        terms = [make_loss(name, **({"negatives": 32} if name == "crd" else {}))]
    distiller = Distiller(teacher, student, terms)
    distiller.compile(keras.optimizers.SGD(RATE), hard_loss())
    generator = np.random.default_rng(0)
    for variable in [*teacher.variables, *student.variables, *(v for loss in terms for v in loss.variables)]:
        drawn = generator.normal(0.0, 0.3, variable.shape)
        if variable.name in ("moving_variance", "gamma"):
            variable.assign(np.exp(drawn))
        elif variable.name != "partition_constants" and keras.backend.is_float_dtype(variable.dtype):
            variable.assign(drawn)
    x = generator.normal(size=(ROWS, *student.input_shape[1:])).astype("float32")
    index = generator.permutation(40)[:ROWS].astype("int32")
    before = arrays_of(distiller)
    logs = distiller.train_on_batch(x, {"labels": index % 5, "index": index}, return_dict=True)
    gradients = [(old - new) / RATE for old, new in zip(before, arrays_of(distiller), strict=True)]
    return {
        "logs": {key: float(value) for key, value in logs.items()},
        "gradients": [value.tolist() for value in gradients],
    }


def arrays_of(distiller):
    """Copies of what trains."""
    return [np.array(keras.ops.convert_to_numpy(variable)) for variable in distiller.trainable_variables]


if __name__ == "__main__":
    pathlib.Path(sys.argv[1]).write_text(json.dumps({name: step(name) for name in sys.argv[2:]}))
