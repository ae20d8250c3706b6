"""Errors of losses: what was received, what was expected, and a remedy."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_wsl import Distiller, losses
from keras_wsl.callbacks import DistillationWarmup
from tests.common import (
    built_loss,
    compute_per_example_losses,
    examples,
    hard_loss,
    image_network,
    make_loss,
    network,
    networks,
    random_batch,
)

BACKEND = keras.backend.backend()


def build(loss, student, teacher):
    """Build a loss on shapes of outputs; there are always logits of 5 classes."""
    loss.build((None,), *({"logits": (None, 5), **shapes} for shapes in (student, teacher)))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: losses.get("wls"), r"no distillation loss 'wls'. Expected one of \['ab', .*'kd', .*'wsl'"),
        (lambda: losses.get(None), r"no distillation loss None. Expected one of"),
        (
            lambda: losses.get(losses.KD(), weight=2.0),
            r"`spec` must be a name if there are arguments. Received: kd, a loss",
        ),
        (lambda: losses.KD(temperature=0.0), r"`temperature` must be a positive number. Received: temperature=0.0"),
        (lambda: losses.KD(temperature=float("nan")), r"`temperature` must be a positive number. Received: .*nan"),
        (lambda: losses.KD(temperature="4"), r"`temperature` must be a positive number. Received: temperature='4'"),
        (
            lambda: losses.RLD(scd_temperature=0.0),
            r"`scd_temperature` must be a positive number. Received: .*0.0",
        ),
        (lambda: losses.MLKD(temperatures=[4.0, -1.0]), r"`temperatures` must be a positive number. Received: .*-1.0"),
        (
            lambda: losses.MLKD(temperatures=[]),
            r"`temperatures` must be a list of one or more numbers. Received: temperatures=\[\]",
        ),
        (
            lambda: losses.MLKD(temperatures=4.0),
            r"`temperatures` must be a list of one or more numbers. Received: temperatures=4.0",
        ),
        (lambda: losses.DKD(alpha=-1), r"`alpha` must be a non-negative number. Received: alpha=-1"),
        (
            lambda: losses.TfKDReg(virtual_temperature=0),
            r"`virtual_temperature` must be a positive number. Received: .*=0",
        ),
        (
            lambda: losses.TfKDReg(label_probability=1.0),
            r"`label_probability` must be in \(0, 1\). Received: label_probability=1.0",
        ),
        (lambda: losses.KD(weight=-1.0), r"`weight` must be a non-negative number. Received: weight=-1.0"),
        (lambda: losses.AT(weight=float("inf")), r"`weight` must be a non-negative number. Received: .*inf"),
        (
            lambda: losses.KD(objective="ce"),
            r"`objective` must be one of \('kl', 'cross_entropy'\). Received: objective='ce'",
        ),
        (lambda: losses.MaskedKD(reading="strict"), r"`reading` must be one of \('literal', .*Received: .*'strict'"),
        (lambda: losses.KD(weighting="wls"), r"no weighting 'wls'. Expected a function or one of .*'hard_to_mimic'"),
        (
            lambda: losses.KD(weighting={"name": "wsl", "gamma": 1}),
            r"weighting 'wsl' has no arguments \['gamma'\]. It takes \[\]",
        ),
        (
            lambda: losses.AT(weighting="only_regularization_samples"),
            r"needs a temperature, because this loss has none. Pass weighting=\{'name': 'only_",
        ),
        (lambda: losses.KD(teacher={}), r"`teacher` must be a teacher's name, or a dict of names to positive weights"),
        (lambda: losses.KD(teacher={"a": 0.0}), r"names to positive weights. Received: teacher=\{'a': 0.0\}"),
        (lambda: losses.AT(layers="block1"), r"`layers` must be a list of names or of pairs .*Received: .*'block1'"),
        (lambda: losses.AT(layers=[]), r"`layers` must be names, or pairs \(student's, teacher's\). Received: .*\[\]"),
        (lambda: losses.AT(layers=[("a", "b", "c")]), r"`layers` must be names, or pairs .*Received: .*'a', 'b', 'c'"),
        (lambda: losses.AT(layers=[3]), r"`layers` must be names, or pairs .*Received: layers=\[3\]"),
        (
            lambda: losses.CC(layers=["pooled", "b"]),
            r"`layers` of cc must be one layer. Received: .*'b'\]. Add one loss per layer",
        ),
        (lambda: losses.FSP(layers=["stem"]), r"`layers` of FSP must be two or more layers. Received: .*'stem'"),
        (
            lambda: losses.Overhaul(normalizations=["norm"]),
            r"`normalizations` must be one name per layer of `layers`, 3. Received: normalizations=\[\'norm\'\]",
        ),
        (
            lambda: losses.CRD(np.arange(40) % 5, negatives=33),
            r"`negatives` must be in \[1, 32\], the number of examples outside .* Received: negatives=33",
        ),
        (lambda: losses.CRD(np.zeros((4, 5))), r"`labels` must be the class of every example.*float64 of shape \(4, 5"),
        (lambda: make_loss("crd", momentum=1.5), r"`momentum` must be a number in \[0, 1\]. Received: momentum=1.5"),
        (
            lambda: make_loss("crd", nce_temperature=0.0),
            r"`nce_temperature` must be a positive number. Received: .*0.0",
        ),
        (
            lambda: losses.from_keras(
                keras.distillation.FeatureDistillation("mse", student_layer_name="a", teacher_layer_name="b"),
                weighting="wsl",
            ),
            r"`weighting` must be None for FeatureDistillation, which returns one number per batch.*Use a loss",
        ),
        (lambda: DistillationWarmup(0), r"`epochs` must be a positive number. Received: epochs=0"),
        (lambda: DistillationWarmup("20"), r"`epochs` must be a positive number. Received: epochs='20'"),
    ],
)
def test_bad_arguments_raise(make, message):
    with pytest.raises(ValueError, match=message):
        make()


MAP, VECTOR, STATES = (None, 8, 8, 4), (None, 4), (None, 6, 4)


@pytest.mark.parametrize(
    "loss, student, teacher, message",
    [
        (
            lambda: losses.KD(),
            {"logits": (None, 10)},
            {"logits": (None, 100)},
            r"kd needs the same classes in both networks. Received: a student of 10 classes and a teacher of 100",
        ),
        (
            lambda: losses.DIST(),
            {"logits": (None, 6, 5)},
            {"logits": (None, 6, 5)},
            r"dist needs logits of shape \(batch, classes\).*Received shape: \(None, 6, 5\). Use a loss per position",
        ),
        (
            lambda: losses.AT(layers=["a"]),
            {"a": VECTOR},
            {"a": VECTOR},
            r"at needs maps, \(batch, height, width, channels\). Received: 'a' of the student, of shape \(None, 4\)",
        ),
        (
            lambda: losses.RKD(layers=[("a", "b")]),
            {"a": VECTOR},
            {"b": MAP},
            r"rkd needs vectors, \(batch, channels\). Received: 'b' of the teacher, of shape .*8, 8, 4\). Name another",
        ),
        (
            lambda: losses.PKD(layers=["a"]),
            {"a": VECTOR},
            {"a": STATES},
            r"pkd needs states, \(batch, time, channels\). Received: 'a' of the student, of shape \(None, 4\)",
        ),
        (
            lambda: losses.PKD(layers=["a"]),
            {"a": STATES},
            {"a": (None, 6, 7)},
            r"pkd needs states of the same width. Received: a student's of 4 and a teacher's of 7. Use networks",
        ),
        (
            lambda: losses.PKD(layers=["a"], position=6),
            {"a": (None, None, 4)},
            {"a": STATES},
            r"`position` of pkd must be a token of the states. Received: position=6 and states of 6 tokens",
        ),
        (
            lambda: losses.AT(layers=["a"]),
            {"a": (None, 8, 4, 4)},
            {"a": (None, 4, 8, 4)},
            r"One map must be the larger one in height and width. Received: a student's map of \(8, 4\) and .*Choose",
        ),
        (
            lambda: losses.NST(layers=["a"]),
            {"a": (None, None, None, 4)},
            {"a": MAP},
            r"must have a fixed height and width. Received: a student's map of \(None, None\).*fixed `input_shape`",
        ),
        (
            lambda: losses.ReviewKD(layers=["a"]),
            {"a": (None, None, None, 4)},
            {"a": MAP},
            r"reviewkd needs maps of fixed height and width. Received: .*Build both networks with a fixed",
        ),
        (
            lambda: losses.FSP(layers=["a", "b"]),
            {"a": MAP, "b": (None, 4, 4, 6)},
            {"a": MAP, "b": (None, 4, 4, 8)},
            r"fsp needs the same channels in each layer. Received: a student of \[4, 6\] and .* of \[4, 8\]. Use",
        ),
        (
            lambda: losses.FSP(layers=["a", "b"]),
            {"a": MAP, "b": (None, 4, 16, 4)},
            {"a": MAP, "b": MAP},
            r"One map must be the larger one in height and width",
        ),
        (
            lambda: losses.FitNet(layers=["a"]),
            {"a": MAP},
            {"a": (None, 20, 20, 4)},
            r"must halve, double .*a map of \(8, 8\) for the shape \(20, 20\)\. Choose layers",
        ),
        (
            lambda: losses.AB(layers=["a"]),
            {"a": MAP},
            {"a": (None, 4, 8, 4)},
            r"a map of \(8, 8\) for the shape \(4, 8\)",
        ),
        (
            lambda: losses.FitNet(layers=["a"]),
            {"a": (None, None, None, 4)},
            {"a": MAP},
            r"a map of \(None, None\) for the shape \(8, 8\)",
        ),
        (
            lambda: losses.Overhaul(layers=["a"]),
            {"a": MAP},
            {"a": (None, 4, 4, 4)},
            r"overhaul needs maps of the same size. Received: a student's map of \(8, 8\) and .* \(4, 4\). Use other",
        ),
        (
            lambda: losses.CATKD(pool_size=4),
            {"pooled.input": (None, 2, 2, 8)},
            {"pooled.input": MAP},
            r"`pool_size` of catkd must be at most the size of the maps. Received: pool_size=4 and a map of \(2, 2\)",
        ),
        (
            lambda: losses.CATKD(),
            {"logits": (None, 5), "pooled.input": MAP},
            {"logits": (None, 7), "pooled.input": MAP},
            r"catkd needs the same classes in both networks. Received: a student of 5 classes and a teacher of 7",
        ),
    ],
)
def test_build_raises_for_bad_shapes(loss, student, teacher, message):
    with pytest.raises(ValueError, match=message):
        build(loss(), student, teacher)


def _fully_convolutional(name):
    """Return a network whose logits are the spatial mean of a convolution."""
    x = inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(5, 1, name="logits")(keras.layers.Conv2D(4, 3, name="block1")(x))
    return keras.Model(inputs, keras.layers.GlobalAveragePooling2D(name="pooled")(x), name=name)


@pytest.mark.parametrize(
    "make, loss, message",
    [
        (
            image_network,
            lambda: losses.AT(layers=["block9"]),
            r"student has no layer named 'block9'. Expected the name of one layer, or a path .*'block1', .*'stem'",
        ),
        (
            image_network,
            lambda: losses.AT(layers=[("block1", "stage1")]),
            r"teacher has no layer named 'stage1'. Expected .*'block1', .*'stem'",
        ),
        (
            _fully_convolutional,
            lambda: losses.CATKD(),
            r"classifier of student must be a Dense. Received: 'logits', a Conv2D. Name the classifiers",
        ),
        (
            image_network,
            lambda: losses.CATKD(classifier="classifier"),
            r"student has no layer named 'classifier'.*'logits'",
        ),
        (
            image_network,
            lambda: losses.Overhaul(layers=["block1_conv"]),
            r"teacher has no batch normalization just before 'block1_conv' in its graph. Name those of all",
        ),
        (
            image_network,
            lambda: losses.Overhaul(layers=["block1_conv"], normalizations=["block3_preact"]),
            r"teacher's 'block1_conv' must have 4 channels. Received: 'block3_preact' of 8 channels. Name other",
        ),
    ],
)
def test_distiller_raises_for_bad_networks(make, loss, message):
    with pytest.raises(ValueError, match=message):
        Distiller(make("teacher"), make("student"), loss())


def _two_teachers(**classes):
    return {name: network(name, classes=count) for name, count in classes.items()}


@pytest.mark.parametrize(
    "teacher, loss, message",
    [
        (
            {"a": 5, "b": 5},
            lambda: losses.KD(teacher="c"),
            r"kd names the teachers \['c'\]. The .* teachers are \['a', 'b'\]",
        ),
        (
            {"a": 5, "b": 5},
            lambda: losses.KD(teacher={"a": 1.0, "c": 2.0}),
            r"kd names the teachers \['c'\]. The distiller's teachers are \['a', 'b'\]",
        ),
        (
            {"a": 5, "b": 5},
            lambda: losses.RKD(layers=["hidden"]),
            r"rkd needs the layers \('hidden',\) of one teacher. Received several: .*teacher='a'",
        ),
        (
            {"a": 5, "b": 7},
            lambda: losses.KD(),
            r"teachers of kd must have the same classes. Received: .*'a': 5, 'b': 7",
        ),
        ({}, lambda: losses.KD(), r"`teacher` must have at least one teacher. Received: teacher=\{\}. Pass None"),
    ],
)
def test_distiller_raises_for_bad_teachers(teacher, loss, message):
    with pytest.raises(ValueError, match=message):
        Distiller(_two_teachers(**teacher), network("student"), loss())


def test_distiller_raises_for_a_missing_teacher():
    with pytest.raises(
        ValueError, match=r"kd names the teachers \['large'\]. The distiller's teachers are \['teacher'\]"
    ):
        Distiller(network("teacher"), network("student"), losses.KD(teacher="large"))


def test_distillation_warmup_raises_for_other_models():
    x, y = examples(4)
    model = network("student")
    model.compile("sgd", hard_loss())
    with pytest.raises(
        ValueError, match="DistillationWarmup must be used with a Distiller. Received: student, a Sequential"
    ):
        model.fit(x, y, verbose=0, callbacks=[DistillationWarmup(2)])


def test_crd_raises_without_an_index():
    batch = random_batch("crd")
    batch.index = None
    with pytest.raises(
        ValueError, match=r'index of each example .* Received: index=None. Pass targets as \{"labels": ..., "in'
    ):
        compute_per_example_losses(built_loss("crd"), batch)


@pytest.mark.parametrize("wrong", [40, -1])
def test_crd_with_an_index_out_of_range_gives_an_error_or_nan(wrong):
    """An error on TensorFlow, and a loss of NaN on other backends."""
    batch = random_batch("crd")
    batch.index[2] = wrong
    if BACKEND == "tensorflow":
        import tensorflow as tf

        student, teacher = networks("crd")
        distiller = Distiller(teacher, student, make_loss("crd"))
        distiller.compile("sgd", hard_loss(), run_eagerly=True)
        x = np.zeros((4, 8, 8, 3), "float32")
        with pytest.raises(tf.errors.InvalidArgumentError, match=r"The index of an example must be in \[0, 40\)"):
            distiller.train_on_batch(x, {"labels": batch.labels, "index": batch.index})
    values = ops.convert_to_numpy(compute_per_example_losses(built_loss("crd"), batch))
    np.testing.assert_array_equal(np.isnan(values), np.arange(4) == 2)
