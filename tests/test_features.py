"""Outputs of layers by name, in networks of keras-cv and keras-nlp, nested and Sequential ones."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_wsl import Distiller, FeatureExtractor, losses, models
from keras_wsl.features import preceding_batch_norm
from tests.common import arrays, hard_loss, keras_cv_classifier
from tests.test_distiller import BACKEND, changed


def train(teacher, student, distillation_losses, x, classes=3, epochs=2):
    """Fit, check that only the student changes, and return the Distiller and its logs."""
    teacher_before, student_before = arrays(teacher), arrays(student)
    distiller = Distiller(teacher, student, distillation_losses)
    distiller.compile(keras.optimizers.SGD(0.01), hard_loss(), run_eagerly=BACKEND == "tensorflow")
    count = len(next(iter(x.values())) if isinstance(x, dict) else x)
    history = distiller.fit(x, np.arange(count) % classes, batch_size=4, epochs=epochs, verbose=0).history
    for loss in distillation_losses:
        assert np.isfinite(history[loss.name]).all() and history[loss.name][0] > 0
    assert not changed(teacher_before, arrays(teacher))
    assert changed(student_before, arrays(student))
    return distiller, history


def images(count=8, size=16):
    return np.random.default_rng(0).normal(size=(count, size, size, 3)).astype("float32")


@pytest.mark.tensorflow  # keras-cv's image layers need TensorFlow.
@pytest.mark.parametrize("nested", [False, True], ids=["open", "nested"])
def test_keras_cv_networks_train_with_feature_losses(nested):
    """Losses on maps by pairs of names, and on pooled vectors."""
    teacher, student = keras_cv_classifier([2, 2], nested=False), keras_cv_classifier([1, 1], nested)
    stacks = [("v2_stack_0_block1_out", "v2_stack_0_block2_out"), ("v2_stack_1_block1_out", "v2_stack_1_block2_out")]
    x = images(size=32)
    crd = losses.CRD(np.arange(8) % 3, negatives=4, dimensions=4)
    with pytest.raises(ValueError, match="no layer named 'conv4_block6_out'"):
        Distiller(teacher, student, losses.AT(layers=["conv4_block6_out"]))
    distiller, _ = train(teacher, student, [losses.AT(layers=stacks), losses.VID(layers=stacks), losses.RKD()], x)
    student_outputs, teacher_outputs = distiller(x, training=True), distiller.teachers(x)["teacher"]
    for (student_layer, teacher_layer), channels in zip(stacks, (64, 128)):
        shape = student_outputs[student_layer].shape
        assert shape == teacher_outputs[teacher_layer].shape == (8, *shape[1:3], channels)
    both = Distiller(teacher, student, [crd])
    both.compile(keras.optimizers.SGD(0.01), hard_loss(), run_eagerly=True)
    targets = {"labels": np.arange(8) % 3, "index": np.arange(8)}
    assert np.isfinite(both.fit(x, targets, batch_size=4, verbose=0).history["crd"]).all()


@pytest.mark.tensorflow  # keras-nlp's tokenizers bring tensorflow-text.
def test_pkd_between_berts_matches_closed_form():
    """The loss compares the states of the first token after pairs of layers."""
    import keras_nlp

    def classifier(layers):
        backbone = keras_nlp.models.BertBackbone(
            vocabulary_size=50, num_layers=layers, num_heads=2, hidden_dim=8, intermediate_dim=16, max_sequence_length=6
        )
        return keras_nlp.models.BertClassifier(backbone, num_classes=3, preprocessor=None, dropout=0.0)

    generator = np.random.default_rng(0)
    x = {
        "token_ids": generator.integers(0, 50, (8, 6)),
        "padding_mask": np.ones((8, 6), "int32"),
        "segment_ids": np.zeros((8, 6), "int32"),
    }
    pairs = [("transformer_layer_0", "transformer_layer_1"), ("transformer_layer_1", "transformer_layer_3")]
    pkd = losses.PKD(layers=pairs, weight=10.0)
    soft = losses.KD(temperature=5.0, weight=0.7, divide_by_num_classes=True)
    teacher, student = classifier(4), classifier(2)
    distiller, _ = train(teacher, student, [pkd, soft], x)
    student_outputs, teacher_outputs = distiller(x, training=True), distiller.teachers(x)["teacher"]
    values = ops.convert_to_numpy(pkd(np.zeros(8, "int32"), student_outputs, teacher_outputs))
    expected = []
    for s, t in pairs:
        gap = ops.convert_to_numpy(student_outputs[s])[:, 0] - ops.convert_to_numpy(teacher_outputs[t])[:, 0]
        expected.append((gap**2).mean(axis=-1))
    np.testing.assert_allclose(values, np.mean(expected, axis=0), rtol=1e-4)


def vgg(name, width=4):
    """Return a functional network: convolution, normalization, ReLU, pooling, twice."""
    inputs = x = keras.Input((16, 16, 3))
    for stage in (1, 2):
        x = keras.layers.Conv2D(width * stage, 3, padding="same", data_format="channels_last", name=f"conv{stage}")(x)
        x = keras.layers.BatchNormalization(name=f"bn{stage}")(x)
        x = keras.layers.ReLU(name=f"block{stage}")(x)
        x = keras.layers.MaxPooling2D(data_format="channels_last", name=f"pool{stage}")(x)
    pooled = keras.layers.GlobalAveragePooling2D(data_format="channels_last", name="pooled")(x)
    return keras.Model(inputs, keras.layers.Dense(3, name="logits")(pooled), name=name)


def sequential(name, width=4):
    return keras.Sequential([keras.Input((16, 16, 3)), *vgg("other", width).layers[1:]], name=name)


def nested(name, width=4):
    """Return a network of two bodies of `vgg`, `backbone` and `aside`, with the same names of layers."""
    inputs = keras.Input((16, 16, 3))
    bodies = []
    for body in ("backbone", "aside"):
        model = vgg(body, width)
        bodies.append(keras.Model(model.input, model.get_layer("pooled").output, name=body)(inputs))
    return keras.Model(inputs, keras.layers.Dense(3, name="head")(keras.layers.Add()(bodies)), name=name)


@pytest.mark.parametrize("make", [vgg, sequential])
def test_feature_losses_train_functional_and_sequential_networks(make):
    """The networks have the widths 4 and 6."""
    several = [losses.AT(layers=["block1", "block2"]), losses.VID(layers=["block2"]), losses.RKD()]
    train(make("teacher", 6), make("student"), several, images())


def test_paths_select_among_layers_with_the_same_name():
    model = nested("nested")
    with pytest.raises(ValueError, match="nested has 2 layers named 'block1'"):
        FeatureExtractor(model, ["block1"])
    x = images(2)
    recorded = FeatureExtractor(model, ["backbone/block1", "aside/block1"])(x)
    for path in ("backbone", "aside"):
        body = model.get_layer(path)
        part = keras.Model(body.input, body.get_layer("block1").output)
        np.testing.assert_allclose(
            ops.convert_to_numpy(recorded[f"{path}/block1"]), ops.convert_to_numpy(part(x)), atol=1e-5
        )
    pairs = [("backbone/block1", "block1"), ("backbone/block2", "block2")]
    train(vgg("teacher", 6), model, [losses.AT(layers=pairs)], images())


@pytest.mark.parametrize("make", [vgg, sequential])
def test_feature_extractor_returns_inputs_of_layers(make):
    """`"block1.input"` is the signed output of the normalization."""
    model = make("model")
    x = images(4)
    recorded = FeatureExtractor(model, ["block1.input", "block1", "bn1", "pool2.input", "block2"])(x)
    recorded = {name: ops.convert_to_numpy(value) for name, value in recorded.items()}
    np.testing.assert_array_equal(recorded["block1.input"], recorded["bn1"])
    np.testing.assert_array_equal(np.maximum(recorded["block1.input"], 0), recorded["block1"])
    np.testing.assert_array_equal(recorded["pool2.input"], recorded["block2"])
    assert recorded["block1.input"].min() < 0
    shapes = FeatureExtractor(model, ["block1.input"]).shapes()
    assert shapes == {"logits": (None, 3), "block1.input": (None, 16, 16, 4)}
    with pytest.raises(ValueError, match="has no layer named 'block9'"):
        FeatureExtractor(model, ["block9.input"])


def test_loss_uses_inputs_of_layers():
    """These networks have no layer whose output is the map before the ReLU."""
    loss = losses.AT(layers=["block1.input", ("block2.input", "block2")])
    distiller, _ = train(vgg("teacher", 6), vgg("student"), [loss], images())
    twin = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert twin.student_layers == ("block1.input", "block2.input")
    assert "call" not in distiller.student.get_layer("block1").__dict__


def test_preceding_batch_norm_finds_the_residual_branch():
    """It may be the layer itself or the one before a ReLU, and never one of a shortcut."""
    resnet = models.build("resnet8", 3, input_shape=(16, 16, 3))
    for stage in (1, 2, 3):
        for end in (f"block{stage}_preact", f"block{stage}"):
            assert preceding_batch_norm(resnet, end).name == f"block{stage}_unit0_bn2"
    assert preceding_batch_norm(resnet, "stem").name == "stem_bn"
    wide = models.build("wrn_16_1", 3, input_shape=(16, 16, 3))
    for stage in (1, 2, 3):
        assert preceding_batch_norm(wide, f"block{stage}_preact").name == f"block{stage}_preact"
    for model in (vgg("vgg"), sequential("sequential")):
        assert preceding_batch_norm(model, "block2").name == "bn2"
        assert preceding_batch_norm(model, "conv1", "bn1").name == "bn1"
    body = nested("nested").get_layer("aside")
    assert preceding_batch_norm(nested("nested"), "aside/block2").name == "bn2"
    assert preceding_batch_norm(body, "block1") is body.get_layer("bn1")


@pytest.mark.parametrize("layer", ["conv1", "conv2"])
def test_preceding_batch_norm_raises_without_a_normalization(layer):
    with pytest.raises(ValueError, match=rf"just before '{layer}' in its graph. Name .* `normalizations`"):
        preceding_batch_norm(vgg("vgg"), layer)


def test_preceding_batch_norm_raises_without_a_graph():

    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__(name="subclassed")
            self.norm, self.relu = keras.layers.BatchNormalization(name="norm"), keras.layers.ReLU(name="relu")

        def call(self, inputs):
            return self.relu(self.norm(inputs))

    model = Subclassed()
    model(np.zeros((1, 4), "float32"))
    with pytest.raises(ValueError, match="subclassed has no batch normalization just before 'relu'"):
        preceding_batch_norm(model, "relu")
    assert preceding_batch_norm(model, "relu", "norm") is model.norm
