"""Preprocessors in exported files, and all formats without this package."""

import pathlib
import sys

import keras
import numpy as np
import pytest

from keras_wsl import data, export, models
from keras_wsl.models import keras_nlp_backbones
from tests.common import bert_preset, bright_splits, keras_cv_classifier, run_child

CHILD = pathlib.Path(__file__).with_name("export_child.py")
FIRSTS = ["w1 w2 w3", "w0 w44 w7 w8 w9 w10 W11", "", "unknown, w5!", " ".join(f"w{i}" for i in range(30))]
SECONDS = ["w4", "w5 w5 w5 w5 w5 w5", "w6 w7", "w8?", "w9 w10 w11 w12"]


def in_a_fresh_process(folder, *modules, **inputs):
    """Return the outputs of all files of a directory, computed without keras_wsl: `{"FILE/ENDPOINT": array}`."""
    named = {}
    for endpoint, given in inputs.items():
        given = {f".{name}": array for name, array in given.items()} if isinstance(given, dict) else {"": given}
        named |= {endpoint + name: np.asarray(array) for name, array in given.items()}
    np.savez(folder / "inputs.npz", **named)
    done = run_child([sys.executable, str(CHILD), str(folder), *modules])
    if done.returncode:
        raise RuntimeError(done.stderr)
    with np.load(folder / "outputs.npz") as outputs:
        return dict(outputs)


def trained(model):
    """Give the model batch statistics other than the initial ones."""
    for variable in model.non_trainable_variables:
        if "moving" in variable.path:
            variable.assign(variable + 0.3 * keras.random.uniform(variable.shape))
    return model


def outputs_of(model, inputs):
    return keras.ops.convert_to_numpy(model(inputs, training=False))


def in_float32(make, model):
    """Return the same network with another policy and the same weights."""
    whole = make(dtype=None)
    whole.set_weights(model.get_weights())
    return whole


def as_served(model, inputs):
    """Return the outputs of a TensorFlow graph for any sizes: half precision rounds differently in eager mode."""
    import tensorflow as tf

    signature = keras.tree.map_structure(lambda t: tf.TensorSpec([None] * t.ndim, t.dtype), inputs)
    graph = tf.function(lambda given: model(given, training=False), input_signature=[signature])
    return graph(keras.tree.map_structure(tf.constant, inputs)).numpy()


def onnx_is_here():
    try:
        import onnxruntime
        import tf2onnx
    except ImportError:
        return False
    return bool(onnxruntime and tf2onnx)


def check(result, expected, atol=1e-5):
    assert expected.dtype == "float32"
    assert result.dtype == "float32"
    np.testing.assert_allclose(result, expected, rtol=0, atol=atol)


def sliced(dtype):
    """Return a nested network for images, with a slice of its logits, which is not a layer."""
    inputs = keras.Input((8, 8, 3))
    inner = models.build("resnet8", classes=4, input_shape=(8, 8, 3), dtype=dtype)
    return keras.Model(inputs, inner(inputs)[:, :3])


@pytest.mark.tensorflow
@pytest.mark.parametrize(
    ("dtype", "suffixes"),
    [
        ("mixed_bfloat16", ["keras"]),
        *(
            pytest.param(dtype, ["keras", "tflite", "onnx"], marks=pytest.mark.slow)
            for dtype in (None, "mixed_float16", "mixed_bfloat16")
        ),
    ],
)
def test_export_with_image_preprocessor_in_all_formats(dtype, suffixes, tmp_path):
    """The files convert uint8 images to evaluation batches; with mixed precision, each rounds in its own way."""
    examples = bright_splits(3).test
    student, preprocessor = trained(sliced(dtype)), examples.preprocessor()
    export.export_saved_model(student, tmp_path / "saved_model", preprocessor=preprocessor)
    kinds = {"keras": export.save_keras, "tflite": export.export_litert, "onnx": export.export_onnx}
    suffixes = [suffix for suffix in suffixes if suffix != "onnx" or onnx_is_here()]
    for suffix in suffixes:
        kinds[suffix](student, tmp_path / f"raw.{suffix}", preprocessor=preprocessor)
    ((images, _),) = data.eval_batches(examples, len(examples))
    images = np.asarray(images)
    result = in_a_fresh_process(tmp_path, serve=images, serve_raw=examples.images)
    expected, whole = outputs_of(student, images), outputs_of(in_float32(sliced, student), images)
    assert len(result) == 2 + len(suffixes)
    for name, outputs in result.items():
        check(outputs, whole if name.split("/")[0].endswith(("tflite", "onnx")) else expected)


def test_convert_to_float32_of_nested_student():
    """All layers at any depth are converted for LiteRT and ONNX files."""
    student = trained(sliced("mixed_bfloat16"))
    whole = export._convert_to_float32(student)
    images = np.random.default_rng(0).normal(size=(3, 8, 8, 3)).astype("float32")
    assert {layer.compute_dtype for layer in whole._flatten_layers()} == {"float32"}
    check(outputs_of(whole, images), outputs_of(in_float32(sliced, student), images))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Return a small BERT's preset, and pairs of its words, one of which is too long."""
    keras.utils.set_random_seed(3)
    preset = bert_preset(tmp_path_factory.mktemp("preset") / "bert", layers=2)
    labels, classes = np.arange(len(FIRSTS)) % 3, ("a", "b", "c")
    tokenizer = keras_nlp_backbones.tokenizer(preset)
    return preset, data.SentencePairs.from_text(FIRSTS, SECONDS, labels, classes, tokenizer=tokenizer, length=16)


@pytest.mark.slow
@pytest.mark.tensorflow
@pytest.mark.parametrize("dtype", [None, "mixed_float16", "mixed_bfloat16"])
def test_export_with_sentence_pair_preprocessor(dtype, pairs, tmp_path):
    """Raw text gives the logits of its tokens. A `.keras` file and LiteRT take the tokens, without this package."""
    preset, examples = pairs

    def build(dtype):
        return keras_nlp_backbones.build(preset, layers=1, dtype=dtype)

    student = build(dtype)
    export.export_saved_model(student, tmp_path / "saved_model", preprocessor=examples.preprocessor())
    export.save_keras(student, tmp_path / "plain.keras")
    export.export_litert(student, tmp_path / "plain.tflite")
    inputs = examples.inputs(np.arange(len(examples)))
    result = in_a_fresh_process(tmp_path, "keras_nlp", serve=inputs, serve_raw={"first": FIRSTS, "second": SECONDS})
    expected = outputs_of(student, inputs)
    check(result["plain.keras/serve"], expected)
    check(result["saved_model/serve"], as_served(student, inputs))
    check(result["saved_model/serve_raw"], as_served(student, inputs))
    check(result["plain.tflite/serve"], outputs_of(in_float32(build, student), inputs))
    assert np.ptp(expected, axis=0).max() > 1e-2  # Else any tokens would do.


@pytest.mark.tensorflow
def test_sentence_pair_preprocessor_matches_batches(pairs):
    """Each batch is trimmed to its longest pair."""
    import tensorflow as tf

    _, examples = pairs
    preprocessor = examples.preprocessor()
    assert [tensor.name for tensor in examples.stratified_subset(3).preprocessor().inputs] == ["first", "second"]
    assert examples.truncated.tolist() == [False] * 4 + [True]
    for rows in (slice(2, 4), slice(0, 5)):
        raw = {"first": tf.constant(FIRSTS[rows]), "second": tf.constant(SECONDS[rows])}
        inputs, result = examples.inputs(rows), preprocessor(raw)
        assert set(result) == set(inputs)
        for name, array in inputs.items():
            np.testing.assert_array_equal(result[name], array)
            assert result[name].dtype == array.dtype


def test_image_preprocessor_matches_batches_exactly():
    """The layer rounds in the same way as batches on all backends. For image files it takes cropped images."""
    examples = bright_splits(12).train
    normalized = outputs_of(examples.preprocessor(), examples.images)
    np.testing.assert_array_equal(normalized, examples.inputs(slice(None)))
    assert normalized.dtype == "float32"
    folder = data.ImageFolder(["a.jpg"], [0], ("a",), image_size=32, resize=36)
    assert folder.preprocessor().input_shape == (None, 32, 32, 3)
    (tensor,) = folder.preprocessor().inputs
    assert (tensor.dtype, tensor.name) == ("uint8", "images")


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="is of the JAX backend")
def test_export_saved_model_with_image_preprocessor_on_jax(tmp_path):
    tf = pytest.importorskip("tensorflow")
    examples = bright_splits(3).test
    student = trained(models.build("resnet8", classes=3, input_shape=(8, 8, 3)))
    export.export_saved_model(student, tmp_path / "saved_model", preprocessor=examples.preprocessor())
    served = tf.saved_model.load(str(tmp_path / "saved_model"))
    images = examples.inputs(slice(None))
    check(served.serve_raw(examples.images).numpy(), outputs_of(student, images))
    assert len(served.variables) == len(student.variables)  # Once, though two endpoints have them.
    check(served.serve(images).numpy(), outputs_of(student, images))


@pytest.mark.tensorflow
@pytest.mark.parametrize("write", [export.save_keras, export.export_litert, export.export_onnx])
def test_export_refuses_string_inputs_except_in_saved_model(write, pairs, tmp_path):
    if write is export.export_onnx:
        pytest.importorskip("tf2onnx")
    preset, examples = pairs
    with pytest.raises(ValueError, match=r"must not take strings.*`export.export_saved_model`"):
        write(
            keras_nlp_backbones.build(preset, layers=1),
            tmp_path / "student.keras",
            preprocessor=examples.preprocessor(),
        )
    assert not list(tmp_path.iterdir())


def test_sentence_pairs_without_preprocessor_are_refused(pairs):
    _, examples = pairs
    arrays = (examples.token_ids, examples.segment_ids, examples.lengths, examples.labels)
    tokens = data.SentencePairs(*arrays, tuple("abc"))
    with pytest.raises(ValueError, match=r"Make the data set with `from_text`"):
        tokens.preprocessor()
    if keras.backend.backend() != "tensorflow":
        with pytest.raises(ValueError, match="tokenized in a model on the TensorFlow backend, and this is"):
            examples.preprocessor()


@pytest.mark.parametrize("write", [export.export_saved_model, export.save_keras])
def test_export_refuses_invalid_preprocessors(write, tmp_path):
    student = models.build("resnet8", classes=3, input_shape=(8, 8, 1))
    path = tmp_path / "student.keras"
    if write is export.export_saved_model and keras.backend.backend() == "torch":
        with pytest.raises(ValueError, match="`preprocessor` must be None on the Torch backend"):
            write(student, path, preprocessor=bright_splits(3).test.preprocessor())
        return
    with pytest.raises(ValueError, match=r"`preprocessor` must match .*\(None, 8, 8, 1\). Received: \(None, 8, 8, 3\)"):
        write(student, path, preprocessor=bright_splits(3).test.preprocessor())
    for wrong in (abs, keras.layers.Rescaling(1 / 255), keras.Sequential([keras.layers.Rescaling(1 / 255)])):
        with pytest.raises(ValueError, match="sequential `keras.Model` with an Input. Received"):
            write(student, path, preprocessor=wrong)
    assert not list(tmp_path.iterdir())


def test_export_accepts_custom_preprocessor(tmp_path):
    """The preprocessor may be any model whose outputs match the student's inputs, such as a `Sequential`."""
    preprocessor = keras.Sequential([keras.Input((16, 16, 1), dtype="uint8"), keras.layers.Resizing(8, 8)])
    student = models.build("resnet8", classes=3, input_shape=(8, 8, 1))
    export.save_keras(student, tmp_path / "student.keras", preprocessor=preprocessor)
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 1)).astype("uint8")
    result = outputs_of(keras.saving.load_model(tmp_path / "student.keras"), images)
    check(result, outputs_of(student, outputs_of(preprocessor, images).astype("float32")))


FAMILIES = [
    "wrn_16_1",
    "resnet8",
    "resnet8x4",
    "resnet50",
    "vgg8",
    "shufflenet_v1",
    "shufflenet_v2",
    "mobilenet_v2",
    "lenet5x8",
    "imagenet_resnet18",
    "imagenet_mobilenet_v1",
]


@pytest.mark.slow
@pytest.mark.tensorflow
def test_save_keras_of_all_families_loads_without_this_package(tmp_path):
    """Keras alone loads a file of each family of networks, and of keras-cv's nested ones, with the same logits."""
    networks = {name: models.build(name, classes=4, input_shape=(32, 32, 3)) for name in FAMILIES}
    networks["keras_cv_nested"] = keras_cv_classifier([1, 1], nested=True)
    for name, network in networks.items():
        trained(network)
        export.save_keras(network, tmp_path / f"{name}.keras")
    images = np.random.default_rng(0).normal(size=(3, 32, 32, 3)).astype("float32")
    result = in_a_fresh_process(tmp_path, "keras_cv", serve=images)
    assert len(result) == len(networks)
    for name, network in networks.items():
        check(result[f"{name}.keras/serve"], outputs_of(network, images))
