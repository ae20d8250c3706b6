"""Raw inputs in exported files, and all formats where this package cannot be imported."""

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
    """What all files of a folder give where these modules are, and not keras_wsl: `{"FILE/ENDPOINT": array}`."""
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
    """The model with statistics of batches that are not those of its start."""
    for variable in model.non_trainable_variables:
        if "moving" in variable.path:
            variable.assign(variable + 0.3 * keras.random.uniform(variable.shape))
    return model


def outputs_of(model, inputs):
    return keras.ops.convert_to_numpy(model(inputs, training=False))


def in_float32(make, model):
    """The same network of another policy, with its weights."""
    whole = make(dtype=None)
    whole.set_weights(model.get_weights())
    return whole


def as_served(model, inputs):
    """What a graph of TensorFlow computes, of whatever sizes: in half precision it rounds elsewhere than eager code."""
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


def check(found, expected, atol=1e-5):
    assert expected.dtype == "float32"
    assert found.dtype == "float32"
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


def sliced(dtype):
    """A network of pixels: nested, with a slice of its logits, which is no layer."""
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
def test_pixels_in_every_format(dtype, suffixes, tmp_path):
    """Evaluation batches are what the files make of uint8 images; of mixed precision each in its own arithmetic."""
    examples = bright_splits(3).test
    student, preprocessor = trained(sliced(dtype)), examples.preprocessor()
    export.saved_model(student, tmp_path / "saved_model", preprocessor=preprocessor)
    kinds = {"keras": export.keras_file, "tflite": export.litert, "onnx": export.onnx}
    suffixes = [suffix for suffix in suffixes if suffix != "onnx" or onnx_is_here()]
    for suffix in suffixes:
        kinds[suffix](student, tmp_path / f"raw.{suffix}", preprocessor=preprocessor)
    ((images, _),) = data.eval_batches(examples, len(examples))
    images = np.asarray(images)
    found = in_a_fresh_process(tmp_path, serve=images, serve_raw=examples.images)
    expected, whole = outputs_of(student, images), outputs_of(in_float32(sliced, student), images)
    assert len(found) == 2 + len(suffixes)
    for name, outputs in found.items():
        check(outputs, whole if name.split("/")[0].endswith(("tflite", "onnx")) else expected)


def test_a_nested_student_computes_in_float32():
    """What LiteRT and ONNX files are made of: every layer of it, at any depth."""
    student = trained(sliced("mixed_bfloat16"))
    whole = export._computing_in_float32(student)
    images = np.random.default_rng(0).normal(size=(3, 8, 8, 3)).astype("float32")
    assert {layer.compute_dtype for layer in whole._flatten_layers()} == {"float32"}
    check(outputs_of(whole, images), outputs_of(in_float32(sliced, student), images))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A small BERT's preset, and pairs of its words, one of them too long."""
    keras.utils.set_random_seed(3)
    preset = bert_preset(tmp_path_factory.mktemp("preset") / "bert", layers=2)
    labels, classes = np.arange(len(FIRSTS)) % 3, ("a", "b", "c")
    tokenizer = keras_nlp_backbones.tokenizer(preset)
    return preset, data.SentencePairs.from_text(FIRSTS, SECONDS, labels, classes, tokenizer=tokenizer, length=16)


@pytest.mark.slow
@pytest.mark.tensorflow
@pytest.mark.parametrize("dtype", [None, "mixed_float16", "mixed_bfloat16"])
def test_pairs_of_sentences(dtype, pairs, tmp_path):
    """Raw text gives the logits of the tokens; a `.keras` file and LiteRT take the tokens, without this package."""
    preset, examples = pairs

    def build(dtype):
        return keras_nlp_backbones.build(preset, layers=1, dtype=dtype)

    student = build(dtype)
    export.saved_model(student, tmp_path / "saved_model", preprocessor=examples.preprocessor())
    export.keras_file(student, tmp_path / "plain.keras")
    export.litert(student, tmp_path / "plain.tflite")
    inputs = examples.inputs(np.arange(len(examples)))
    found = in_a_fresh_process(tmp_path, "keras_nlp", serve=inputs, serve_raw={"first": FIRSTS, "second": SECONDS})
    expected = outputs_of(student, inputs)
    check(found["plain.keras/serve"], expected)
    check(found["saved_model/serve"], as_served(student, inputs))
    check(found["saved_model/serve_raw"], as_served(student, inputs))
    check(found["plain.tflite/serve"], outputs_of(in_float32(build, student), inputs))
    assert np.ptp(expected, axis=0).max() > 1e-2  # Else any tokens would do.


@pytest.mark.tensorflow
def test_raw_pairs_become_their_batches(pairs):
    """Of every batch, cut where its longest pair ends."""
    import tensorflow as tf

    _, examples = pairs
    preprocessor = examples.preprocessor()
    assert [tensor.name for tensor in examples.stratified_subset(3).preprocessor().inputs] == ["first", "second"]
    assert examples.truncated.tolist() == [False] * 4 + [True]
    for rows in (slice(2, 4), slice(0, 5)):
        raw = {"first": tf.constant(FIRSTS[rows]), "second": tf.constant(SECONDS[rows])}
        inputs, found = examples.inputs(rows), preprocessor(raw)
        assert set(found) == set(inputs)
        for name, array in inputs.items():
            np.testing.assert_array_equal(found[name], array)
            assert found[name].dtype == array.dtype


def test_a_preprocessor_of_pixels_normalizes_to_the_bit():
    """The layer rounds as batches do, on every backend; of image files it takes what was cut out."""
    examples = bright_splits(12).train
    normalized = outputs_of(examples.preprocessor(), examples.images)
    np.testing.assert_array_equal(normalized, examples.inputs(slice(None)))
    assert normalized.dtype == "float32"
    folder = data.ImageFolder(["a.jpg"], [0], ("a",), image_size=32, resize=36)
    assert folder.preprocessor().input_shape == (None, 32, 32, 3)
    (tensor,) = folder.preprocessor().inputs
    assert (tensor.dtype, tensor.name) == ("uint8", "images")


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="is of the JAX backend")
def test_pixels_in_a_saved_model_on_jax(tmp_path):
    tf = pytest.importorskip("tensorflow")
    examples = bright_splits(3).test
    student = trained(models.build("resnet8", classes=3, input_shape=(8, 8, 3)))
    export.saved_model(student, tmp_path / "saved_model", preprocessor=examples.preprocessor())
    served = tf.saved_model.load(str(tmp_path / "saved_model"))
    images = examples.inputs(slice(None))
    check(served.serve_raw(examples.images).numpy(), outputs_of(student, images))
    assert len(served.variables) == len(student.variables)  # Once, though two endpoints have them.
    check(served.serve(images).numpy(), outputs_of(student, images))


@pytest.mark.tensorflow
@pytest.mark.parametrize("write", [export.keras_file, export.litert, export.onnx])
def test_text_goes_into_a_saved_model_alone(write, pairs, tmp_path):
    if write is export.onnx:
        pytest.importorskip("tf2onnx")
    preset, examples = pairs
    with pytest.raises(ValueError, match=r"file takes no strings.*`export.saved_model`"):
        write(
            keras_nlp_backbones.build(preset, layers=1),
            tmp_path / "student.keras",
            preprocessor=examples.preprocessor(),
        )
    assert not list(tmp_path.iterdir())


def test_pairs_without_a_preprocessor(pairs):
    _, examples = pairs
    arrays = (examples.token_ids, examples.segment_ids, examples.lengths, examples.labels)
    tokens = data.SentencePairs(*arrays, tuple("abc"))
    with pytest.raises(ValueError, match=r"were given as tokens. Make them by `from_text`"):
        tokens.preprocessor()
    if keras.backend.backend() != "tensorflow":
        with pytest.raises(ValueError, match="tokenized in a model on the TensorFlow backend, and this is"):
            examples.preprocessor()


@pytest.mark.parametrize("write", [export.saved_model, export.keras_file])
def test_preprocessors_that_do_not_fit(write, tmp_path):
    student = models.build("resnet8", classes=3, input_shape=(8, 8, 1))
    path = tmp_path / "student.keras"
    if write is export.saved_model and keras.backend.backend() == "torch":
        with pytest.raises(ValueError, match="of one endpoint: leave `preprocessor` out"):
            write(student, path, preprocessor=bright_splits(3).test.preprocessor())
        return
    with pytest.raises(ValueError, match=r"preprocessor gives \(None, 8, 8, 3\), and .* takes \(None, 8, 8, 1\)"):
        write(student, path, preprocessor=bright_splits(3).test.preprocessor())
    for wrong in (abs, keras.layers.Rescaling(1 / 255), keras.Sequential([keras.layers.Rescaling(1 / 255)])):
        with pytest.raises(ValueError, match="sequential `keras.Model` with an Input as the preprocessor. Received"):
            write(student, path, preprocessor=wrong)
    assert not list(tmp_path.iterdir())


def test_a_preprocessor_of_ones_own(tmp_path):
    """Any model that gives what the student takes, such as a `Sequential` of Keras's layers."""
    own = keras.Sequential([keras.Input((16, 16, 1), dtype="uint8"), keras.layers.Resizing(8, 8)])
    student = models.build("resnet8", classes=3, input_shape=(8, 8, 1))
    export.keras_file(student, tmp_path / "student.keras", preprocessor=own)
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 1)).astype("uint8")
    found = outputs_of(keras.saving.load_model(tmp_path / "student.keras"), images)
    check(found, outputs_of(student, outputs_of(own, images).astype("float32")))


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
def test_every_family_without_this_package(tmp_path):
    """Of each family of networks, and of keras-cv's nested ones, Keras alone reads the file: the same logits."""
    networks = {name: models.build(name, classes=4, input_shape=(32, 32, 3)) for name in FAMILIES}
    networks["keras_cv_nested"] = keras_cv_classifier([1, 1], nested=True)
    for name, network in networks.items():
        trained(network)
        export.keras_file(network, tmp_path / f"{name}.keras")
    images = np.random.default_rng(0).normal(size=(3, 32, 32, 3)).astype("float32")
    found = in_a_fresh_process(tmp_path, "keras_cv", serve=images)
    assert len(found) == len(networks)
    for name, network in networks.items():
        check(found[f"{name}.keras/serve"], outputs_of(network, images))
