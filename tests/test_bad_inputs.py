"""Invalid arguments of the whole library: one row per input, each with its own error.

An error has the received value, the expectation and the remedy: the three patterns of a row, in any order. Inputs whose
errors are tested where they belong, such as those of the losses in `losses/test_misuse.py`, are not repeated here.
"""

import functools
import re
from typing import Any, NamedTuple

import keras
import numpy as np
import pytest
from keras import ops

from keras_wsl import (
    Distiller,
    analysis,
    callbacks,
    data,
    distribution,
    export,
    losses,
    models,
    optimizers,
    soft_labels,
    teacher_checkpoints,
    weighting,
)
from keras_wsl.targets import Targets
from tests.common import bright_splits, examples, hard_loss, image_network, network


class Row(NamedTuple):
    """`do` takes a directory of files and must raise `error` with a message that matches the three patterns."""

    do: Any
    received: str
    expected: str
    remedy: str = ""
    error: type = ValueError
    tensorflow: bool = False  # Whether it requires TensorFlow.


X, Y = examples(8)
LOGITS = np.random.default_rng(0).normal(size=(8, 5)).astype("float32")
ONE_HOT = np.eye(5, dtype="float32")[Y]
KERNEL, SIGNS = np.eye(4) + 0.1, np.array([1.0, -1.0, 1.0, -1.0])
PIXELS, CLASSES = np.zeros((4, 8, 8, 3), "uint8"), ("cat", "dog")
HALF, FIFTH = (0.5,) * 3, (0.2,) * 3
teacher = functools.cache(lambda: network("teacher", width=11))
student = functools.cache(lambda: network("student"))
images = functools.cache(lambda: image_network("images", classes=3))
splits = functools.cache(lambda: bright_splits(40))
unbuilt = functools.cache(lambda: keras.Sequential([keras.layers.Dense(5)], name="unbuilt"))


def fit(y=Y, x=X, loss="kd", compiled=None, optimizer="sgd", eagerly=True, fitting=None, **settings):
    """Fit a Distiller for one epoch with an invalid argument."""
    distiller = Distiller(teacher(), student(), loss, **settings)
    distiller.compile(optimizer, compiled or hard_loss(), run_eagerly=eagerly)
    distiller.fit(x, y, verbose=0, **(fitting or {}))


def fit_with_callback(callback):
    """Fit with a callback that checks its arguments before the first step."""
    fit(fitting={"callbacks": [callback], "epochs": 1})


def batches(part=None, **settings):
    """Create batches without reading them."""
    return data.train_batches(splits().train if part is None else part, **{"seed": 0, "batch_size": 4, **settings})


def pixels(**changes):
    """Create a data set with an invalid argument."""
    fields = {"images": PIXELS, "labels": np.zeros(4, int), "classes": CLASSES, "mean": HALF, "std": FIFTH}
    return data.ImageArrays(**{**fields, **changes})


def build(**settings):
    """Build a small network with an invalid argument."""
    return models.build(**{"name": "resnet8", "classes": 3, "input_shape": (8, 8, 3), **settings})


def write(here, **settings):
    """Soft labels with something wrong."""
    given = {"teacher": images(), "examples": splits().train, "directory": here / "new", "verbose": 0, **settings}
    return soft_labels.write_soft_labels(given.pop("teacher"), given.pop("examples"), given.pop("directory"), **given)


def npz(here, **changes):
    """Load a file with changed arrays."""
    with np.load(here / "images.npz") as arrays:
        fields = {**arrays, **changes}
    np.savez(here / "changed.npz", **{name: array for name, array in fields.items() if array is not None})
    return data.load_npz(here / "changed.npz")


def with_config(text):
    """Create the strategy of a worker with this `TF_CONFIG`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TF_CONFIG", text)
        distribution.get_strategy("multi_worker")


class Scalar(losses.DistillationLoss):
    def per_example(self, labels, student, teacher):
        return ops.mean(student["logits"])


class Nothing(losses.DistillationLoss):
    def per_example(self, labels, student, teacher):
        pass


def fit_with_clean_data(clean_data, **settings):
    """Return a function that fits with RegularizationSamples and invalid clean data."""
    return lambda here: fit_with_callback(callbacks.RegularizationSamples(here / "log", clean_data, **settings))


ROWS = {
    # The Distiller's networks.
    "teacher is not built": Row(
        lambda here: Distiller(unbuilt(), student(), "kd"), "unbuilt", "is not built", "Call it on a batch once"
    ),
    "teacher is a list": Row(
        lambda here: Distiller([teacher()], student(), "kd"),
        r"Received: \[<Sequential name=teacher",
        "teacher must be a keras.Model",
        "Build or load one",
    ),
    "teacher is a file": Row(
        lambda here: Distiller("runs/teacher.keras", student(), "kd"),
        "Received: the file 'runs/teacher.keras'",
        "must be a network, or the key of cached logits",
        r"Load it first: keras_wsl.models.build\(",
    ),
    "student is a name": Row(
        lambda here: Distiller(teacher(), "resnet8", "kd"),
        "Received: 'resnet8'",
        "student must be a keras.Model",
        "Build or load one",
    ),
    "student and teacher have other inputs": Row(
        lambda here: Distiller(network("wide", inputs=9), student(), "kd"),
        r"a student of inputs \[\(None, 6\)\] and a teacher of \[\(None, 9\)\]",
        "must take the same inputs",
        "with `student_inputs` and `teacher_inputs`",
    ),
    "student_inputs is a number": Row(
        lambda here: Distiller(teacher(), student(), "kd", student_inputs=3),
        "Received: student_inputs=3",
        "`student_inputs` must be a key of the inputs, a function or a layer",
        "Pass None",
    ),
    "teacher_inputs has a number": Row(
        lambda here: Distiller({"a": teacher()}, student(), "kd", teacher_inputs={"a": 0.5}),
        r"Received: teacher_inputs=\{'a': 0.5\}",
        "`teacher_inputs` must be a key of the inputs, a function or a layer",
        "Pass None",
    ),
    "student_loss_weight is text": Row(
        lambda here: Distiller(teacher(), student(), "kd", student_loss_weight="1"),
        "Received: student_loss_weight='1'",
        "must be a non-negative number",
    ),
    # Its losses.
    "loss is misspelt": Row(
        lambda here: Distiller(teacher(), student(), "reviewdk"),
        "no distillation loss 'reviewdk'",
        "Expected one of",
        "Did you mean 'reviewkd'",
    ),
    "loss is a class": Row(
        lambda here: Distiller(teacher(), student(), losses.KD),
        "no distillation loss <class 'keras_wsl.losses.logit.kd.KD'>",
        "Expected one of",
        r"a loss such as losses.KD\(",
    ),
    "setting of a loss is misspelt": Row(
        lambda here: losses.get("kd", temprature=2.0),
        r"no arguments \['temprature'\]",
        "The loss 'kd'",
        "It takes .*'temperature'",
    ),
    "temperature is True": Row(
        lambda here: losses.KD(temperature=True), "temperature=True", "must be a positive number"
    ),
    "switch is text": Row(
        lambda here: losses.KD(standardize="false"),
        "standardize='false'",
        "must be True or False",
    ),
    "weighting is misspelt": Row(
        lambda here: losses.KD(weighting="hard_to_mimick"),
        "no weighting 'hard_to_mimick'",
        "Expected a function or one of",
        "Did you mean 'hard_to_mimic'",
    ),
    "weighting is an empty list": Row(
        lambda here: losses.KD(weighting=[]),
        r"Received: weighting=\[\]",
        "`weighting` must be a name",
        r"a dict such as \{'name': 'wsl'\}, a function, or a list of these",
    ),
    "probability of a weighting is 2": Row(
        lambda here: losses.KD(weighting={"name": "exclude_regularization_samples", "keep_probability": 2.0}),
        "keep_probability=2.0",
        r"must be a number in \[0, 1\]",
    ),
    "temperature of a weighting is 0": Row(
        lambda here: weighting.get({"name": "only_regularization_samples", "temperature": 0}),
        "temperature=0",
        "must be a positive number",
    ),
    "gamma of a weighting is text": Row(
        lambda here: losses.AT(weighting={"name": "hard_to_mimic", "gamma": "2"}),
        "gamma='2'",
        "must be a non-negative number",
    ),
    "weighting gives a row of classes": Row(
        lambda here: fit(loss=losses.KD(weighting=lambda labels, student, teacher: student)),
        r"Received: shape \(8, 5\)",
        r"weighting of kd must return one number per example, of shape \(8,\)",
        "Reduce all other axes",
    ),
    "weighting gives one number": Row(
        lambda here: fit(loss=losses.KD(weighting=lambda labels, student, teacher: ops.mean(student))),
        r"Received: shape \(\)",
        "weighting of kd must return one number per example",
        "Reduce all other axes",
    ),
    "weighting gives fewer numbers": Row(
        lambda here: fit(loss=losses.WSL(weighting=lambda labels, student, teacher: ops.ones((3,)))),
        r"Received: shape \(3,\)",
        r"weighting of wsl must return one number per example, of shape \(8,\)",
        "Reduce all other axes",
    ),
    "own loss gives one number": Row(
        lambda here: fit(loss=Scalar()),
        r"Received: shape \(\)",
        "`per_example` of scalar must return one number per example",
        "Reduce all other axes",
    ),
    "own loss gives nothing": Row(
        lambda here: fit(loss=Nothing()),
        "Received: NoneType",
        "`per_example` of nothing must return one number per example",
        "Reduce all other axes",
    ),
    "labels and logits are of other lengths": Row(
        lambda here: weighting.wsl(Y[:4], LOGITS, LOGITS),
        r"Labels of shape \(4,\) do not fit logits of shape \(8, 5\)",
        r"Expected integers of shape \(8,\)",
        "or one probability for each of the 5 classes",
    ),
    # compile.
    "compiled loss of one-hot labels, with integers": Row(
        lambda here: fit(compiled=keras.losses.CategoricalCrossentropy(from_logits=True)),
        r"Received: integer labels, of shape \(8,\)",
        "'categorical_crossentropy' takes labels that are distributions",
        "with keras.losses.SparseCategoricalCrossentropy",
    ),
    "compiled loss of integers, with one-hot labels": Row(
        lambda here: fit(ONE_HOT),
        r"Received: labels that are distributions, of shape \(8, 5\)",
        "'sparse_categorical_crossentropy' takes integer labels",
        "with keras.losses.CategoricalCrossentropy",
    ),
    "compiled loss is a distance": Row(  # As wide as classes: five labels would be taken for five classes.
        lambda here: fit(Y[:5], X[:5], compiled="mse"),
        r"Received: integer labels, of shape \(5,\)",
        "'mean_squared_error' takes labels that are distributions",
        "with keras.losses.SparseCategoricalCrossentropy",
    ),
    "compiled loss gives one number": Row(
        lambda here: fit(compiled=lambda labels, logits: ops.mean(logits)),
        "Received: one number for the batch",
        "must return one number per example",
        "Take the mean over the last axis alone",
    ),
    "compiled loss expects probabilities": Row(
        lambda here: fit(compiled="sparse_categorical_crossentropy"),
        "Received: from_logits=False",
        "compiled loss 'sparse_categorical_crossentropy' must take logits",
        "Compile it with from_logits=True",
    ),
    "no optimizer": Row(
        lambda here: fit(optimizer=None), "Received: optimizer=None", "must be compiled with an optimizer"
    ),
    # fit.
    "labels are text": Row(
        lambda here: fit(np.array(["cat", "dog"] * 4)),
        "Received: <U3 such as .*cat",
        "must be class indices or distributions",
        "Convert them: np.unique",
    ),
    "labels are a list": Row(
        lambda here: fit(list(Y)), "Received: a list of 8", "must be one array", "Pass np.asarray"
    ),
    "labels are halves": Row(
        lambda here: fit(Y + 0.5), "Received: .*.5 in row 0; 8 of 8", "must be whole numbers", "Correct the data"
    ),
    "labels are not all there": Row(
        lambda here: fit(np.where(np.arange(8) == 2, np.nan, Y)),
        "Received: nan in row 2; 1 of 8",
        "must be whole numbers",
        "Correct the data",
    ),
    "distributions are not all there": Row(
        lambda here: fit(np.where(ONE_HOT, np.nan, 0.1)),
        "Received: nan in row 0; 8 of 40",
        "must be finite, and non-negative",
        "Correct the data",
    ),
    "distributions are negative": Row(
        lambda here: fit({"labels": ONE_HOT - 0.1}),
        "Received: -0.1.* in row 0; 32 of 40",
        "must be finite, and non-negative",
        "Correct the data",
    ),
    "labels of other classes": Row(
        lambda here: fit(ONE_HOT[:, :4]),
        r"Labels of shape \(8, 4\) do not fit logits of shape \(8, 5\)",
        r"Expected integers of shape \(8,\)",
        "one probability for each of the 5 classes",
    ),
    "no labels": Row(
        lambda here: fit(None),
        "Received: NoneType",
        "must have labels: integers, distributions",
        "Pass .inputs, labels",
    ),
    "dict without labels": Row(
        lambda here: fit({"label": Y}),
        r"Received: a dict of \['label'\]",
        "or a dict with the key 'labels'",
        "Pass .inputs, labels",
    ),
    "no data": Row(
        lambda here: fit(Y[:0], X[:0]),
        r"labels of shape \(0,\)",
        "Labels must be one per example",
        "Pass at least one example",
    ),
    "validation without labels": Row(
        lambda here: Targets.parse((Y, Y)),
        "Received: tuple",
        "A batch must have labels",
        "Pass .inputs, labels",
    ),
    "inputs of another size": Row(
        lambda here: fit(x=X[:, :4]),
        r"Received: \(8, 4\)",
        r"takes inputs of shape \(None, 6\)",
        r"Images are \(height, width, channels\)",
    ),
    "inputs are a dict": Row(
        lambda here: fit(x={"image": X}),
        r"Received: \{'image': \(8, 6\)\}",
        r"takes inputs of shape \(None, 6\)",
        r"Images are \(height, width, channels\)",
    ),
    "predict with inputs of another size": Row(
        lambda here: Distiller(None, student(), ()).predict(X[:, :3], verbose=0),
        r"Received: \((8|None), 3\)",
        r"student takes inputs of shape \(None, 6\)",
        r"Images are \(height, width, channels\)",
    ),
    "channels come first": Row(
        lambda here: Distiller(None, images(), ()).predict(np.zeros((2, 3, 8, 8), "float32"), verbose=0),
        r"Received: \((2|None), 3, 8, 8\)",
        r"takes inputs of shape \(None, 8, 8, 3\)",
        r"Images are \(height, width, channels\)",
    ),
    "student_inputs makes another size": Row(
        lambda here: fit(student_inputs=lambda x: x[:, :2], teacher_inputs=lambda x: x),
        r"Received: \(8, 2\)",
        r"student takes inputs of shape \(None, 6\)",
        r"Images are \(height, width, channels\)",
    ),
    "teacher_inputs is a key of no dict": Row(
        lambda here: fit(teacher_inputs="image"),
        r"Received: \w+\. Add the key",
        "must be a dict with the key 'image'",
        "or change `student_inputs`",
    ),
    "sample_weight has a weight a class": Row(
        lambda here: fit(fitting={"sample_weight": np.ones((8, 5), "float32")}),
        r"Received shape: \(8, 5\)",
        "must be one number per example",
        "Pass shape",
    ),
    "sample_weight is a scalar": Row(
        lambda here: fit(fitting={"sample_weight": np.array(1.0)}),
        r"Received: array\(1\.\)",
        "`sample_weight` must be one number per example",
        "Pass shape",
    ),
    "sample_weight is negative": Row(
        lambda here: fit(fitting={"sample_weight": np.where(np.arange(8) == 3, -1.0, 1.0)}),
        "Received: -1.0 among 8",
        "`sample_weight` must be finite, non-negative numbers",
        "Use 0 for what must not count",
    ),
    "sample_weight is text": Row(
        lambda here: fit(fitting={"sample_weight": np.array(["a"] * 8)}),
        "Received: 'a' among 8",
        "`sample_weight` must be finite, non-negative numbers",
        "Use 0 for what must not count",
    ),
    "class_weight is a list": Row(
        lambda here: fit(fitting={"class_weight": [1.0] * 5}),
        "Received: list",
        "`class_weight` must be a dict of classes to numbers",
        r"Pass, for example, \{0: 1.0",
    ),
    "class_weight is not a number": Row(
        lambda here: fit(fitting={"class_weight": {0: 1.0, 1: float("nan")}}),
        "Received: nan among 2",
        "`class_weight` must be finite, non-negative numbers",
        "Use 0 for what must not count",
    ),
    # Data sets and their batches.
    "batches of an array": Row(
        lambda here: batches(PIXELS), "Received: ndarray", "`examples` must be a data set", "such as data.ImageArrays"
    ),
    "batches of both splits": Row(
        lambda here: data.eval_batches(splits(), 4),
        "Received: Splits",
        "`examples` must be a data set",
        "pass one split: splits.train",
    ),
    "batch_size is None": Row(
        lambda here: batches(batch_size=None), "Received: batch_size=None", "`batch_size` must be", "a positive integer"
    ),
    "batch_size is not a number": Row(
        lambda here: data.eval_batches(splits().test, float("nan")),
        "Received: batch_size=nan",
        "`batch_size` must be",
        "a positive integer",
    ),
    "seed is None": Row(lambda here: batches(seed=None), "Received: seed=None", "`seed` must be", r"in \[0, 2\*\*32\)"),
    "start is an epoch": Row(
        lambda here: batches(initial_position=3),
        "Received: initial_position=3",
        "an epoch and a step",
        r"such as \(0, 0\)",
    ),
    "start is beyond the epoch": Row(
        lambda here: batches(initial_position=(2, 10)),
        "Received: epoch 2, step 10",
        "a step from 0 to 9",
        "an epoch has 40 examples in batches of 4",
    ),
    "soft labels by their folder": Row(
        lambda here: batches(soft_labels="runs/soft"),
        "Received: soft_labels='runs/soft'",
        "`soft_labels` must be a SoftLabels object",
        r"Open a directory with soft_labels.SoftLabels\(directory\)",
    ),
    "part is of no number": Row(
        lambda here: splits().train.stratified_subset(float("nan")),
        "Received: nan of 40",
        "number of examples must be an integer",
        "from 1 to 40",
    ),
    "part is larger than the data": Row(
        lambda here: splits().test.stratified_split(31),
        "Received: 31 of 30",
        "number of examples must be an integer",
        "from 1 to 29",
    ),
    "images are scaled": Row(
        lambda here: pixels(images=PIXELS / 255),
        "Received: dtype float64",
        r"`images` must be uint8 in \[0, 255\]",
        "neither scaled nor normalized",
    ),
    "images have no channels": Row(
        lambda here: pixels(images=PIXELS[..., 0]),
        r"Received: shape \(4, 8, 8\)",
        r"must have shape \(n, height, width, channels\)",
        "none of them 0",
    ),
    "labels of images are text": Row(
        lambda here: pixels(labels=np.array(["cat"] * 4)),
        r"Received: dtype <U3 and shape \(4,\)",
        r"`labels` must be integers of shape \(4,\)",
        "one per example",
    ),
    "classes are one text": Row(
        lambda here: pixels(classes="cat"),
        "Received: classes='cat'",
        "`classes` must be a sequence with the name of each class",
        r"such as \('cat', 'dog'\)",
    ),
    "classes are a number": Row(
        lambda here: pixels(classes=2), "Received: classes=2", "the name of each class", r"such as \('cat', 'dog'\)"
    ),
    "mean is of pixels up to 255": Row(
        lambda here: pixels(mean=(125.0,) * 3, std=(60.0,) * 3),
        r"Received: mean=\(125.0, 125.0, 125.0\), std=\(60.0",
        r"must be those of pixels in \[0, 1\]",
        "Divide both by 255",
    ),
    "file has no labels": Row(
        lambda here: npz(here, **{"train.labels": None}),
        r"Received: \['train.images', 'train.index'",
        r"must have the arrays \['train.labels'\]",
        "`load_npz` those of `save_npz`",
    ),
    "file has fewer labels": Row(
        lambda here: npz(here, **{"train.labels": np.zeros(3, int)}),
        r"Received: dtype int64 and shape \(3,\)",
        r"`labels` must be integers of shape \(40,\)",
        "one per example",
    ),
    "file is of fewer classes": Row(
        lambda here: npz(here, **{"test.classes": np.array(["dark", "grey"])}),
        r"Received: label 2 for example 2 \(index 2\)",
        r"in \[0, 1\], because there are 2 classes",
        "10 of 30 labels are out of range",
    ),
    "file is text": Row(
        lambda here: data.load_npz(here / "file"), "file is not", "a complete .npz file", "Write it again with `save`"
    ),
    "file of images is not there": Row(
        lambda here: data.load_npz(here / "absent.npz"),
        "file .*absent.npz",
        "does not exist",
        "Write it with `save` or `save_npz`",
        FileNotFoundError,
    ),
    "file is written below a file": Row(
        lambda here: data.save_npz(splits(), here / "file" / "images.npz"),
        "Received: it is a file",
        "file must be a directory",
        "Pass another path",
        NotADirectoryError,
    ),
    "folder of images is a file": Row(
        lambda here: data.image_folder(here / "file"),
        "'.*file' must be a directory",
        "with a subdirectory per class",
        "It is missing",
        FileNotFoundError,
    ),
    "folder of images is empty": Row(
        lambda here: data.image_folder(here / "empty"),
        "empty' must have",
        "a subdirectory of images per class",
        "It has none",
    ),
    # Networks and their files.
    "network is misspelt": Row(
        lambda here: build(name="wrn_40-2"), "Unknown network 'wrn_40-2'", "Expected one of", "Did you mean 'wrn_40_2'"
    ),
    "network is None": Row(
        lambda here: build(name=None), "Unknown network None", "Expected one of wrn_40_2", "or 'keras_cv:' and a preset"
    ),
    "classes are text": Row(
        lambda here: build(classes="10"), "Received: classes='10'", "`classes` must be a positive integer"
    ),
    "input_shape is a number": Row(
        lambda here: build(input_shape=32),
        "Received: 32",
        r"must be \(height, width, channels\)",
        r"such as \(32, 32, 3\), without the batch size",
    ),
    "weights are a folder": Row(
        lambda here: build(weights=here / "empty"),
        "weight file '.*empty' for resnet8 does not exist",
        "Train one and write it",
        "or leave `weights` out",
        FileNotFoundError,
    ),
    "weights are truncated": Row(
        lambda here: build(weights=here / "torn.weights.h5"),
        "torn.weights.h5' is not",
        "a complete HDF5 file",
        "Copy or write it again",
    ),
    "weights of another depth": Row(
        lambda here: build(name="resnet14", weights=here / "resnet8.weights.h5"),
        "does not match resnet14: .*received 47",
        "expected 77 arrays",
        "Build that network, or pass a file of resnet14",
    ),
    "weights of other classes": Row(
        lambda here: build(classes=4, weights=here / "resnet8.weights.h5"),
        "Received: 3 classes",
        "expected 4 classes",
        "Pass `classes` as in the file",
    ),
    "register without a name": Row(
        lambda here: models.register(build),
        "Received: <function build",
        "`name` must be a string",
        r"Write @register\('tiny'\)",
    ),
    # Callbacks.
    "backup every 0 steps": Row(
        lambda here: callbacks.ExactBackupAndRestore(here / "new", 2, save_freq=0),
        "Received: save_freq=0",
        "`save_freq` must be a positive integer",
        "Pass at least 1",
    ),
    "backups in a file": Row(
        lambda here: fit_with_callback(callbacks.ExactBackupAndRestore(here / "file", 1)),
        "Received: .*file ",
        "backup directory must be writable",
        "Pass another directory",
    ),
    "clean data without labels": Row(
        lambda here: fit_with_clean_data(X)(here),
        "Received: ndarray",
        r"must be \(inputs, labels\)",
        "Pass both in a tuple",
    ),
    "clean data are empty": Row(
        fit_with_clean_data((X[:0], Y[:0])), "Received: no batch", "at least one batch", "or clean_data=None"
    ),
    "clean data at temperature -1": Row(
        fit_with_clean_data((X, Y), temperature=-1), "temperature=-1", "must be a positive number"
    ),
    "clean data in batches of 0": Row(
        fit_with_clean_data((X, Y), batch_size=0),
        "Received: batch_size=0",
        "`batch_size` must be a positive integer",
    ),
    "log below a file": Row(
        lambda here: callbacks.RegularizationSamples(here / "fifth file" / "log"),
        "Received: it is a file",
        "fifth file must be a directory",
        "Pass another path",
        NotADirectoryError,
    ),
    "checkpoints every 0 epochs": Row(
        lambda here: callbacks.PeriodicCheckpoint(here / "new", save_freq=0),
        "Received: save_freq=0",
        "`save_freq` must be a positive integer",
    ),
    "checkpoints in a file": Row(
        lambda here: fit_with_callback(callbacks.PeriodicCheckpoint(here / "other file")),
        "Received: it is a file",
        "other file must be a directory",
        "Pass another path",
        NotADirectoryError,
    ),
    "checkpoints of days": Row(
        lambda here: teacher_checkpoints.Checkpoints(here / "empty", unit="days"),
        "Received: unit='days'",
        "`unit` must be one of",
        "'epochs', 'steps'",
    ),
    "no checkpoints": Row(
        lambda here: callbacks.TeacherSchedule(here / "empty"),
        "empty has no checkpoints",
        "such as epoch-000001.weights.h5",
        "Train the teacher with callbacks.PeriodicCheckpoint",
        FileNotFoundError,
    ),
    "complexity of an array": Row(
        lambda here: callbacks.SupervisionComplexity(here / "log", X, SIGNS),
        "Received: ndarray",
        "`targets` must be a dict of names to targets",
        r"Pass, for example, \{'teacher': targets\}",
    ),
    # Soft labels.
    "soft labels of an array": Row(
        lambda here: write(here, examples=PIXELS.astype("float32")[:2].tolist()),
        "Received: list",
        "`examples` must be a data set",
        "such as data.ImageArrays",
    ),
    "soft labels in a file": Row(
        lambda here: write(here, directory=here / "third file"),
        "Received: it is a file",
        "third file must be a directory",
        "Pass another path",
        NotADirectoryError,
    ),
    "soft labels of a teacher of other inputs": Row(
        lambda here: write(here, teacher=teacher()),
        r"Received: \((40|None), 8, 8, 3\)",
        r"teacher takes inputs of shape \(None, 6\)",
        r"Images are \(height, width, channels\)",
    ),
    "no soft labels": Row(
        lambda here: soft_labels.SoftLabels(here / "empty"),
        "empty has no soft labels",
        "there is no manifest.json",
        "Write them with soft_labels.write_soft_labels",
        FileNotFoundError,
    ),
    # Optimizers.
    "learning rate is negative": Row(
        lambda here: optimizers.SGD(-0.1), "learning_rate=-0.1", "must be a non-negative number"
    ),
    "weight decay is not a number": Row(
        lambda here: optimizers.bert_adamw(0.1, weight_decay=float("nan")),
        "weight_decay=nan",
        "must be a non-negative number",
    ),
    "warm-up is as long as all steps": Row(
        lambda here: optimizers.LinearWarmupDecay(0.1, warmup_steps=10, steps=10),
        "Received: 10",
        r"`warmup_steps` must be in \[0, 10\)",
        "Pass a smaller number",
    ),
    # Devices.
    "strategy is misspelt": Row(
        lambda here: distribution.scope("miror"), "Received: 'miror'", "strategy must be one of", "'none', 'mirrored'"
    ),
    "worker is not in its cluster": Row(
        lambda here: with_config('{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 3}}'),
        "Received: .*IndexError",
        "TF_CONFIG must name all workers",
        'such as {"cluster"',
        tensorflow=True,
    ),
    "worker is a parameter server": Row(
        lambda here: with_config('{"cluster": {"ps": ["a:1"]}, "task": {"type": "ps", "index": 0}}'),
        "the 'ps' 'a:1'",
        "must have the type chief or worker",
        "an index of at least 0",
        tensorflow=True,
    ),
    # Exports.
    "export to another suffix": Row(
        lambda here: export.save_keras(images(), here / "student.h5"),
        "Received: '.*student.h5'",
        "must end in '.keras'",
        "Rename it",
    ),
    "export of a distiller": Row(
        lambda here: export.save_keras(Distiller(teacher(), student(), "kd"), here / "student.keras"),
        "Received: a Distiller",
        "`student` must not include a teacher",
        "Pass `distiller.student`",
    ),
    "export of what is not built": Row(
        lambda here: export.export_saved_model(unbuilt(), here / "new"),
        "Received: unbuilt",
        "`student` must be built",
        "Call it on a batch once",
    ),
    "export of a name": Row(
        lambda here: export.save_keras("resnet8", here / "student.keras"),
        "Received: 'resnet8'",
        "`student` must be a `keras.Model`",
        "Build or load one",
    ),
    "export over other things": Row(
        lambda here: export.export_saved_model(images(), here / "full", overwrite=True),
        "Received: .*full'",
        "replaces only a SavedModel",
        "Choose another path",
        FileExistsError,
    ),
    "export below a file": Row(
        lambda here: export.save_keras(images(), here / "fourth file" / "student.keras"),
        "Received: it is a file",
        "fourth file must be a directory",
        "Pass another path",
        NotADirectoryError,
    ),
    # Analyses.
    "ridge is negative": Row(
        lambda here: analysis.leave_one_out(KERNEL, SIGNS, ridge=-1e-3),
        "ridge=-0.001",
        "must be a non-negative number",
    ),
    "ridge is text": Row(
        lambda here: analysis.supervision_complexity(KERNEL, SIGNS, ridge="x"),
        "ridge='x'",
        "must be a non-negative number",
    ),
    "targets of too many axes": Row(
        lambda here: analysis.targets(LOGITS[None]),
        r"Received: shape \(1, 8, 5\)",
        r"must have shape \(n,\) or \(n, C\)",
        "Flatten the axes before C",
    ),
    "targets at temperature of text": Row(
        lambda here: analysis.targets(LOGITS, temperature="4"),
        "temperature='4'",
        "must be a positive number",
    ),
    "predictions of other examples": Row(
        lambda here: analysis.margin_bound(KERNEL, SIGNS, predictions=[1.0, 2.0]),
        r"Received: shape \(2,\)",
        r"must have the shape of the targets, \(4, 1\)",
        "Pass one prediction per target",
    ),
    "kernel in no memory": Row(
        lambda here: analysis.empirical_ntk(student(), X, memory="1G"),
        "Received: memory='1G'",
        "`memory` must be a positive integer",
    ),
    "confidence is of probabilities": Row(
        lambda here: analysis.calibration([0, 1, 1], [[0.5, 0.5], [0.1, 0.9], [1.0, 0.0]]),
        "rows that are non-negative and sum to 1",
        "`logits` must be logits",
        "Pass the network's outputs before the softmax",
    ),
    "ensemble of one": Row(
        lambda here: analysis.bias_variance(Y, np.log(np.full((1, 8, 5), 0.2))),
        "Received: 1",
        "must have at least 2 runs",
        "Train more networks on other training sets",
    ),
}


@pytest.fixture(scope="module")
def raised(tmp_path_factory):
    """Return a function that returns the error of a row, which is raised once for all tests."""
    here = tmp_path_factory.mktemp("bad")
    for name in ("file", "other file", "third file", "fourth file", "fifth file"):
        (here / name).write_text("text")
    for name in ("empty", "full"):
        (here / name).mkdir()
    (here / "full" / "thesis.tex").write_text("text")
    data.save_npz(splits(), here / "images.npz")
    models.save_weights(build(), here / "resnet8.weights.h5")
    (here / "torn.weights.h5").write_bytes((here / "resnet8.weights.h5").read_bytes()[:2000])

    @functools.cache
    def error(name):
        with pytest.raises(ROWS[name].error) as caught:
            ROWS[name].do(here)
        return type(caught.value), str(caught.value), here

    return error


NAMES = [pytest.param(name, marks=pytest.mark.tensorflow if row.tensorflow else ()) for name, row in ROWS.items()]


@pytest.mark.parametrize("name", NAMES)
def test_error_has_received_value_expectation_and_remedy(name, raised):
    _, message, _ = raised(name)
    for part in ("received", "expected", "remedy"):
        assert re.search(getattr(ROWS[name], part), message), f"{part}: {message}"
    assert "\n" not in message and "\x1b" not in message and len(message) < 600
    assert not re.search(r"Traceback|_wrapped__|KerasTensor|Tensor\(", message)


def test_errors_are_distinct(raised):
    kinds = {}
    for name, row in ROWS.items():
        if row.tensorflow and keras.backend.backend() != "tensorflow":
            continue
        kind, message, here = raised(name)
        kinds.setdefault((kind, message.replace(str(here), "")), []).append(name)
    assert [names for names in kinds.values() if len(names) > 1] == []
    assert len(ROWS) >= 80


@pytest.mark.parametrize("number", [np.float32(4), np.int64(4), np.float64(4)])
def test_numpy_numbers_are_accepted(number):
    """NumPy numbers are valid, as in `for temperature in np.arange(1, 5)`."""
    assert losses.KD(temperature=number, weight=number).temperature == 4.0


def test_validate_fit_inputs_accepts_padding_of_float_labels():
    """Labels of sequences may be -1 at padding positions, if all are integers."""
    from keras_wsl.validation import validate_fit_inputs

    validate_fit_inputs(np.array([[0.0, -1.0], [2.0, 1.0]]))
    validate_fit_inputs({"labels": ONE_HOT}, np.ones(8))
