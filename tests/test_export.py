"""The exported student: alone, whole or absent, and the same function without Keras."""

import json
import pathlib
import sys
import tempfile

import keras
import numpy as np
import pytest

from keras_wsl import export, models
from tests.common import arrays, largest_file, run_child

# What a server does: no Keras, no code of ours.
RELOAD = """
import json, sys
sys.modules["keras"] = sys.modules["keras_wsl"] = None  # An import of either fails.
import numpy as np, tensorflow as tf
loaded = tf.saved_model.load(sys.argv[1])
inputs = np.load(sys.argv[2])
signature = loaded.signatures["serving_default"]
(name,) = signature.structured_input_signature[1]
for size in (1, 7):
    served = loaded.serve(tf.constant(inputs[:size])).numpy()
    (output,) = signature(**{name: tf.constant(inputs[:size])}).values()
    assert (served == output.numpy()).all(), "the signature and serve differ"
    np.save(f"{sys.argv[2]}.{size}.npy", served)
shape = signature.structured_input_signature[1][name].shape.as_list()
print(json.dumps({"variables": len(loaded.variables), "shape": shape}))
"""


def student(**settings):
    return models.build("resnet8", classes=10, input_shape=(8, 8, 1), **settings)


def images(count=7):
    return np.random.default_rng(0).normal(size=(count, 8, 8, 1)).astype("float32")


def run_elsewhere(program, path, folder, inputs):
    """Runs a program on a file in a process of its own: what it says, and the logits of 1 and of 7 examples."""
    np.save(folder / "inputs.npy", inputs)
    done = run_child(
        [sys.executable, "-c", program, str(path), str(folder / "inputs.npy")],
        cwd=folder,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout, [np.load(folder / f"inputs.npy.{size}.npy") for size in (1, 7)]


def reload(path, folder, inputs):
    """Runs `RELOAD`: what it says, and the logits of 1 and of 7 examples."""
    said, logits = run_elsewhere(RELOAD, path, folder, inputs)
    return json.loads(said.splitlines()[-1]), logits


def serve(path, inputs):
    """The same in this process, which is quicker: the loaded object and its logits."""
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))
    return loaded, loaded.serve(inputs).numpy()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def jax_or_tensorflow():
    if keras.backend.backend() == "torch":
        pytest.skip("needs torch_xla")
    pytest.importorskip("tensorflow")


@pytest.mark.usefixtures("jax_or_tensorflow")
@pytest.mark.parametrize("dtype", [None, "mixed_bfloat16"])
def test_a_saved_model_is_the_student(tmp_path, dtype):
    model, inputs = student(dtype=dtype), images()
    before = arrays(model)
    export.saved_model(model, tmp_path / "out" / "student")
    said, logits = reload(tmp_path / "out" / "student", tmp_path, inputs)
    assert said == {"variables": len(model.variables), "shape": [None, 8, 8, 1]}
    for size, actual in zip((1, 7), logits):
        assert actual.dtype == np.float32
        expected = keras.ops.convert_to_numpy(model(inputs[:size], training=False))
        # bfloat16 has 8 bits, and a compiler may keep more between two layers.
        tolerance = 1e-5 if dtype is None else 3e-2
        np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)
    assert names(tmp_path / "out") == ["student"]
    assert all((a == b).all() for a, b in zip(before, arrays(model)))


@pytest.mark.usefixtures("jax_or_tensorflow")
def test_half_precision_outputs_become_float32(tmp_path):
    body = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(3, dtype="bfloat16")])
    inputs = images()
    export.saved_model(body, tmp_path / "student")
    loaded, logits = serve(tmp_path / "student", inputs)
    assert len(loaded.variables) == len(body.variables)
    assert logits.dtype == np.float32
    expected = keras.ops.convert_to_numpy(keras.ops.cast(body(inputs), "float32"))
    np.testing.assert_allclose(logits, expected, rtol=3e-2, atol=3e-2)


@pytest.mark.tensorflow
def test_a_trained_batch_size_does_not_stay(tmp_path):
    inner = student()
    fixed = keras.Input(batch_shape=(4, 8, 8, 1))
    export.saved_model(keras.Model(fixed, inner(fixed)), tmp_path / "student")
    _, logits = serve(tmp_path / "student", images())
    expected = keras.ops.convert_to_numpy(inner(images(), training=False))
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.tensorflow
def test_a_saved_model_that_is_there(tmp_path):
    path = tmp_path / "student"
    path.mkdir()
    export.saved_model(student(), path)  # An empty folder is free.
    with pytest.raises(FileExistsError, match=r"student' exists and is not empty.*overwrite=True"):
        export.saved_model(student(), path)
    second = student()
    export.saved_model(second, path, overwrite=True)
    _, logits = serve(path, images())
    expected = keras.ops.convert_to_numpy(second(images(), training=False))
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
    assert names(tmp_path) == ["student"]


@pytest.mark.tensorflow
def test_only_a_saved_model_is_replaced(tmp_path):
    precious = tmp_path / "thesis"
    precious.mkdir()
    (precious / "chapter1.tex").write_text("...")
    for path in (precious, precious / "chapter1.tex"):
        with pytest.raises(FileExistsError, match=r"holds no SavedModel.*Choose another path"):
            export.saved_model(student(), path, overwrite=True)
    assert (precious / "chapter1.tex").read_text() == "..."


@pytest.mark.tensorflow
def test_saved_model_replaces_what_is_left_of_a_damaged_one(tmp_path):
    path = tmp_path / "student"
    export.saved_model(student(), path)
    (path / "saved_model.pb").unlink()
    (path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds no SavedModel"):
        export.saved_model(student(), path, overwrite=True)
    (path / "notes.txt").unlink()
    export.saved_model(student(), path, overwrite=True)
    assert (path / "saved_model.pb").is_file()


@pytest.mark.tensorflow
def test_a_failed_export_leaves_the_folder_before(tmp_path, monkeypatch):
    path, model = tmp_path / "student", student()
    export.saved_model(model, path)
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}

    def fail(self, target, **_):
        pathlib.Path(target).mkdir()
        raise OSError("disk full")

    monkeypatch.setattr(type(keras.export.ExportArchive()), "write_out", fail)
    with pytest.raises(OSError, match="disk full"):
        export.saved_model(model, path, overwrite=True)
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before
    assert names(tmp_path) == ["student"]


def test_without_tensorflow(tmp_path, monkeypatch):
    model = student()
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(ImportError, match=r"TensorFlow.*pip install tensorflow"):
        export.saved_model(model, tmp_path / "student")
    assert names(tmp_path) == []


def test_torch_needs_torch_xla(tmp_path, monkeypatch):
    pytest.importorskip("tensorflow")
    model = student()
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    monkeypatch.setitem(sys.modules, "torch_xla", None)
    with pytest.raises(ImportError, match=r"pip install torch_xla.*KERAS_BACKEND=tensorflow"):
        export.saved_model(model, tmp_path / "student")


def test_a_keras_file_is_the_student(tmp_path):
    model, path = student(), tmp_path / "new" / "student.keras"
    export.keras_file(model, path)
    export.keras_file(model, str(path))
    loaded = keras.saving.load_model(path)
    assert all((a == b).all() for a, b in zip(arrays(model), arrays(loaded)))
    assert len(loaded.variables) == len(model.variables)
    expected = keras.ops.convert_to_numpy(model(images(), training=False))
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(loaded(images(), training=False)), expected)
    assert names(path.parent) == ["student.keras"]


def test_a_failed_keras_file_leaves_the_one_before(tmp_path, monkeypatch):
    path = tmp_path / "student.keras"
    export.keras_file(student(), path)
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        export.keras_file(student(), path)
    assert path.read_bytes() == before
    assert names(tmp_path) == ["student.keras"]


WRITERS = {
    "student.keras": export.keras_file,
    "student.tflite": export.litert,
    "student": export.saved_model,
    "student.weights.h5": lambda model, path: models.save_weights(model, path, "float32"),
}


@pytest.fixture(params=WRITERS)
def writer(request):
    """A file's name, and what writes it on this backend."""
    if request.param in ("student.tflite", "student") and keras.backend.backend() != "tensorflow":
        pytest.skip("needs TensorFlow")
    return request.param, WRITERS[request.param]


def test_exports_need_no_temporary_directory(tmp_path, monkeypatch, writer):
    """All that is written on the way lies beside the file, where there is room for it."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "missing"))
    with pytest.raises(FileNotFoundError):
        tempfile.mkdtemp()
    name, write = writer
    write(student(), tmp_path / "out" / name if name != "student.weights.h5" else tmp_path / name)
    if name == "student.weights.h5":
        models.load_weights(student(), tmp_path / name)
    assert names(next(path for path in (tmp_path / "out", tmp_path) if path.exists())) == [name]


def test_exports_name_the_file_that_does_not_fit(tmp_path, writer):
    name, write = writer
    model = student()
    with largest_file(20_000), pytest.raises(OSError, match=rf"{name} does not fit. .* bytes are free"):
        write(model, tmp_path / name)
    assert names(tmp_path) == []


@pytest.mark.tensorflow
def test_a_symbolic_link_is_replaced_and_not_followed(tmp_path):
    export.saved_model(student(), tmp_path / "target")
    (tmp_path / "link").symlink_to("target")
    (tmp_path / "dangling").symlink_to("missing")
    before = {file: file.read_bytes() for file in (tmp_path / "target").rglob("*") if file.is_file()}
    with pytest.raises(FileExistsError, match="holds no SavedModel"):
        export.saved_model(student(), tmp_path / "dangling", overwrite=True)
    export.saved_model(student(), tmp_path / "link", overwrite=True)
    assert not (tmp_path / "link").is_symlink() and (tmp_path / "link" / "saved_model.pb").is_file()
    assert {file: file.read_bytes() for file in (tmp_path / "target").rglob("*") if file.is_file()} == before


class Wrapper(keras.Model):
    """Anything with a student."""

    def __init__(self, student):
        super().__init__(name="wrapper")
        self.student = student


@pytest.mark.parametrize("write", [export.saved_model, export.keras_file, export.litert, export.onnx])
def test_refused_students(tmp_path, write):
    path = tmp_path / "student.keras"
    with pytest.raises(ValueError, match=r"Received: a Wrapper around one. Pass `distiller.student`"):
        write(Wrapper(student()), path)
    with pytest.raises(ValueError, match=r"Expected a `keras.Model`. Received: 'student'"):
        write("student", path)
    with pytest.raises(ValueError, match=r"unbuilt is not built.*Call it"):
        write(keras.Sequential([keras.layers.Dense(2)], name="unbuilt"), path)
    assert names(tmp_path) == []


def test_a_keras_file_has_its_ending(tmp_path):
    with pytest.raises(ValueError, match=r"must end in '.keras'. Received: '.*student.h5'"):
        export.keras_file(student(), tmp_path / "student.h5")


LITERT = """
import sys
sys.modules["keras"] = sys.modules["keras_wsl"] = None  # An import of either fails.
import numpy as np, tensorflow as tf
inputs = np.load(sys.argv[2])
interpreter = tf.lite.Interpreter(sys.argv[1])
(asked,), (given,) = interpreter.get_input_details(), interpreter.get_output_details()
for size in (1, 7):
    interpreter.resize_tensor_input(asked["index"], inputs[:size].shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(asked["index"], inputs[:size])
    interpreter.invoke()
    np.save(f"{sys.argv[2]}.{size}.npy", interpreter.get_tensor(given["index"]))
"""
ONNX = """
import sys
sys.modules["keras"] = sys.modules["tensorflow"] = None
import numpy as np, onnxruntime
inputs = np.load(sys.argv[2])
session = onnxruntime.InferenceSession(sys.argv[1])
(asked,) = session.get_inputs()
for size in (1, 7):
    (logits,) = session.run(None, {asked.name: inputs[:size]})
    np.save(f"{sys.argv[2]}.{size}.npy", logits)
"""


@pytest.mark.tensorflow
@pytest.mark.parametrize("precision", [None, pytest.param("mixed_bfloat16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["litert", "onnx"])
def test_other_programs_compute_the_same(kind, precision, tmp_path):
    if kind == "onnx":
        for package in ("tf2onnx", "onnxruntime"):
            pytest.importorskip(package)
    network = student(dtype=precision)
    before = arrays(network)
    path = tmp_path / "folder" / ("student.tflite" if kind == "litert" else "student.onnx")
    getattr(export, kind)(network, path)
    getattr(export, kind)(network, path)  # And again, in its place.
    assert [there.name for there in path.parent.iterdir()] == [path.name]
    for one, other in zip(before, arrays(network), strict=True):
        np.testing.assert_array_equal(one, other)
    whole = student()
    whole.set_weights(network.get_weights())
    expected = whole.predict(images(), verbose=0)
    _, logits = run_elsewhere(LITERT if kind == "litert" else ONNX, path, tmp_path, images())
    for found in logits:
        assert found.dtype == "float32"
        np.testing.assert_allclose(found, expected[: len(found)], atol=1e-5)


@pytest.mark.parametrize("kind", ["litert", "onnx"])
def test_what_other_formats_refuse(kind, tmp_path, monkeypatch):
    write = getattr(export, kind)
    if keras.backend.backend() != "tensorflow":
        with pytest.raises(ValueError, match="files are written on the TensorFlow backend, and this is"):
            write(student(), tmp_path / "student.x")
        return
    if kind == "onnx":
        with monkeypatch.context() as patch, pytest.raises(ImportError, match=r"pip install 'keras-wsl\[onnx\]'"):
            patch.setitem(sys.modules, "tf2onnx", None)
            write(student(), tmp_path / "student.onnx")
        pytest.importorskip("tf2onnx")
    with pytest.raises(ValueError, match=r"must end in '\.(tflite|onnx)'. Received: '.*student.keras'"):
        write(student(), tmp_path / "student.keras")
    assert not list(tmp_path.iterdir())
