"""Exported students: without a teacher, written atomically, and with the same outputs without Keras."""

import json
import pathlib
import sys
import tempfile

import keras
import numpy as np
import pytest

from keras_wsl import export, models
from tests.common import arrays, largest_file, run_child

# A server without Keras and without this package.
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
    """Run a program on a file in another process. Return its output, and the logits of 1 and of 7 examples."""
    np.save(folder / "inputs.npy", inputs)
    done = run_child(
        [sys.executable, "-c", program, str(path), str(folder / "inputs.npy")],
        cwd=folder,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout, [np.load(folder / f"inputs.npy.{size}.npy") for size in (1, 7)]


def reload(path, folder, inputs):
    """Run `RELOAD`. Return its output, and the logits of 1 and of 7 examples."""
    output, logits = run_elsewhere(RELOAD, path, folder, inputs)
    return json.loads(output.splitlines()[-1]), logits


def serve(path, inputs):
    """Do the same in this process, which is faster. Return the loaded object and its logits."""
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
def test_export_saved_model_matches_student(tmp_path, dtype):
    model, inputs = student(dtype=dtype), images()
    before = arrays(model)
    export.export_saved_model(model, tmp_path / "out" / "student")
    output, logits = reload(tmp_path / "out" / "student", tmp_path, inputs)
    assert output == {"variables": len(model.variables), "shape": [None, 8, 8, 1]}
    for size, actual in zip((1, 7), logits):
        assert actual.dtype == np.float32
        expected = keras.ops.convert_to_numpy(model(inputs[:size], training=False))
        # bfloat16 has 8 bits of precision, and a compiler may keep more between two layers.
        tolerance = 1e-5 if dtype is None else 3e-2
        np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)
    assert names(tmp_path / "out") == ["student"]
    assert all((a == b).all() for a, b in zip(before, arrays(model)))


@pytest.mark.usefixtures("jax_or_tensorflow")
def test_export_saved_model_casts_outputs_to_float32(tmp_path):
    body = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(3, dtype="bfloat16")])
    inputs = images()
    export.export_saved_model(body, tmp_path / "student")
    loaded, logits = serve(tmp_path / "student", inputs)
    assert len(loaded.variables) == len(body.variables)
    assert logits.dtype == np.float32
    expected = keras.ops.convert_to_numpy(keras.ops.cast(body(inputs), "float32"))
    np.testing.assert_allclose(logits, expected, rtol=3e-2, atol=3e-2)


@pytest.mark.tensorflow
def test_export_saved_model_accepts_any_batch_size(tmp_path):
    inner = student()
    fixed = keras.Input(batch_shape=(4, 8, 8, 1))
    export.export_saved_model(keras.Model(fixed, inner(fixed)), tmp_path / "student")
    _, logits = serve(tmp_path / "student", images())
    expected = keras.ops.convert_to_numpy(inner(images(), training=False))
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.tensorflow
def test_export_saved_model_requires_overwrite(tmp_path):
    path = tmp_path / "student"
    path.mkdir()
    export.export_saved_model(student(), path)  # An empty folder is free.
    with pytest.raises(FileExistsError, match=r"must not exist, or be empty.*student'.*overwrite=True"):
        export.export_saved_model(student(), path)
    second = student()
    export.export_saved_model(second, path, overwrite=True)
    _, logits = serve(path, images())
    expected = keras.ops.convert_to_numpy(second(images(), training=False))
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
    assert names(tmp_path) == ["student"]


@pytest.mark.tensorflow
def test_export_saved_model_replaces_only_saved_models(tmp_path):
    precious = tmp_path / "thesis"
    precious.mkdir()
    (precious / "chapter1.tex").write_text("...")
    for path in (precious, precious / "chapter1.tex"):
        with pytest.raises(FileExistsError, match=r"replaces only a SavedModel.*Choose another path"):
            export.export_saved_model(student(), path, overwrite=True)
    assert (precious / "chapter1.tex").read_text() == "..."


@pytest.mark.tensorflow
def test_export_saved_model_replaces_damaged_one(tmp_path):
    path = tmp_path / "student"
    export.export_saved_model(student(), path)
    (path / "saved_model.pb").unlink()
    (path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="replaces only a SavedModel"):
        export.export_saved_model(student(), path, overwrite=True)
    (path / "notes.txt").unlink()
    export.export_saved_model(student(), path, overwrite=True)
    assert (path / "saved_model.pb").is_file()


@pytest.mark.tensorflow
def test_export_saved_model_failure_keeps_previous_one(tmp_path, monkeypatch):
    path, model = tmp_path / "student", student()
    export.export_saved_model(model, path)
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}

    def fail(self, target, **_):
        pathlib.Path(target).mkdir()
        raise OSError("disk full")

    monkeypatch.setattr(type(keras.export.ExportArchive()), "write_out", fail)
    with pytest.raises(OSError, match="disk full"):
        export.export_saved_model(model, path, overwrite=True)
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before
    assert names(tmp_path) == ["student"]


def test_export_saved_model_requires_tensorflow(tmp_path, monkeypatch):
    model = student()
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(ImportError, match=r"TensorFlow.*pip install tensorflow"):
        export.export_saved_model(model, tmp_path / "student")
    assert names(tmp_path) == []


def test_export_saved_model_requires_torch_xla_on_torch(tmp_path, monkeypatch):
    pytest.importorskip("tensorflow")
    model = student()
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    monkeypatch.setitem(sys.modules, "torch_xla", None)
    with pytest.raises(ImportError, match=r"pip install torch_xla.*KERAS_BACKEND=tensorflow"):
        export.export_saved_model(model, tmp_path / "student")


def test_save_keras_matches_student(tmp_path):
    model, path = student(), tmp_path / "new" / "student.keras"
    export.save_keras(model, path)
    export.save_keras(model, str(path))
    loaded = keras.saving.load_model(path)
    assert all((a == b).all() for a, b in zip(arrays(model), arrays(loaded)))
    assert len(loaded.variables) == len(model.variables)
    expected = keras.ops.convert_to_numpy(model(images(), training=False))
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(loaded(images(), training=False)), expected)
    assert names(path.parent) == ["student.keras"]


def test_save_keras_failure_keeps_previous_file(tmp_path, monkeypatch):
    path = tmp_path / "student.keras"
    export.save_keras(student(), path)
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        export.save_keras(student(), path)
    assert path.read_bytes() == before
    assert names(tmp_path) == ["student.keras"]


WRITERS = {
    "student.keras": export.save_keras,
    "student.tflite": export.export_litert,
    "student": export.export_saved_model,
    "student.weights.h5": lambda model, path: models.save_weights(model, path, "float32"),
}


@pytest.fixture(params=WRITERS)
def writer(request):
    """Return a file's name, and the function that writes it on this backend."""
    if request.param in ("student.tflite", "student") and keras.backend.backend() != "tensorflow":
        pytest.skip("needs TensorFlow")
    return request.param, WRITERS[request.param]


def test_export_does_not_use_system_temporary_directory(tmp_path, monkeypatch, writer):
    """Temporary files are written next to the file."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "missing"))
    with pytest.raises(FileNotFoundError):
        tempfile.mkdtemp()
    name, write = writer
    write(student(), tmp_path / "out" / name if name != "student.weights.h5" else tmp_path / name)
    if name == "student.weights.h5":
        models.load_weights(student(), tmp_path / name)
    assert names(next(path for path in (tmp_path / "out", tmp_path) if path.exists())) == [name]


def test_export_reports_full_disk(tmp_path, writer):
    name, write = writer
    model = student()
    with largest_file(20_000), pytest.raises(OSError, match=rf"{name} does not fit. .* bytes are free"):
        write(model, tmp_path / name)
    assert names(tmp_path) == []


@pytest.mark.tensorflow
def test_export_saved_model_replaces_symbolic_link(tmp_path):
    export.export_saved_model(student(), tmp_path / "target")
    (tmp_path / "link").symlink_to("target")
    (tmp_path / "dangling").symlink_to("missing")
    before = {file: file.read_bytes() for file in (tmp_path / "target").rglob("*") if file.is_file()}
    with pytest.raises(FileExistsError, match="replaces only a SavedModel"):
        export.export_saved_model(student(), tmp_path / "dangling", overwrite=True)
    export.export_saved_model(student(), tmp_path / "link", overwrite=True)
    assert not (tmp_path / "link").is_symlink() and (tmp_path / "link" / "saved_model.pb").is_file()
    assert {file: file.read_bytes() for file in (tmp_path / "target").rglob("*") if file.is_file()} == before


class Wrapper(keras.Model):
    """An object with a student."""

    def __init__(self, student):
        super().__init__(name="wrapper")
        self.student = student


@pytest.mark.parametrize(
    "write", [export.export_saved_model, export.save_keras, export.export_litert, export.export_onnx]
)
def test_export_refuses_invalid_students(tmp_path, write):
    path = tmp_path / "student.keras"
    with pytest.raises(ValueError, match=r"Received: a Wrapper. Pass `distiller.student`"):
        write(Wrapper(student()), path)
    with pytest.raises(ValueError, match=r"must be a `keras.Model`. Received: 'student'"):
        write("student", path)
    with pytest.raises(ValueError, match=r"must be built. Received: unbuilt.*Call it"):
        write(keras.Sequential([keras.layers.Dense(2)], name="unbuilt"), path)
    assert names(tmp_path) == []


def test_save_keras_refuses_other_suffix(tmp_path):
    with pytest.raises(ValueError, match=r"must end in '.keras'. Received: '.*student.h5'"):
        export.save_keras(student(), tmp_path / "student.h5")


LITERT = """
import sys
sys.modules["keras"] = sys.modules["keras_wsl"] = None  # An import of either fails.
import numpy as np, tensorflow as tf
inputs = np.load(sys.argv[2])
interpreter = tf.lite.Interpreter(sys.argv[1])
(input_info,), (output_info,) = interpreter.get_input_details(), interpreter.get_output_details()
for size in (1, 7):
    interpreter.resize_tensor_input(input_info["index"], inputs[:size].shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(input_info["index"], inputs[:size])
    interpreter.invoke()
    np.save(f"{sys.argv[2]}.{size}.npy", interpreter.get_tensor(output_info["index"]))
"""
ONNX = """
import sys
sys.modules["keras"] = sys.modules["tensorflow"] = None
import numpy as np, onnxruntime
inputs = np.load(sys.argv[2])
session = onnxruntime.InferenceSession(sys.argv[1])
(input_info,) = session.get_inputs()
for size in (1, 7):
    (logits,) = session.run(None, {input_info.name: inputs[:size]})
    np.save(f"{sys.argv[2]}.{size}.npy", logits)
"""


@pytest.mark.tensorflow
@pytest.mark.parametrize("precision", [None, pytest.param("mixed_bfloat16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["litert", "onnx"])
def test_export_litert_and_onnx_match_student(kind, precision, tmp_path):
    if kind == "onnx":
        for package in ("tf2onnx", "onnxruntime"):
            pytest.importorskip(package)
    network = student(dtype=precision)
    before = arrays(network)
    path = tmp_path / "folder" / ("student.tflite" if kind == "litert" else "student.onnx")
    getattr(export, f"export_{kind}")(network, path)
    getattr(export, f"export_{kind}")(network, path)  # And again, in its place.
    assert [there.name for there in path.parent.iterdir()] == [path.name]
    for one, other in zip(before, arrays(network), strict=True):
        np.testing.assert_array_equal(one, other)
    whole = student()
    whole.set_weights(network.get_weights())
    expected = whole.predict(images(), verbose=0)
    _, logits = run_elsewhere(LITERT if kind == "litert" else ONNX, path, tmp_path, images())
    for result in logits:
        assert result.dtype == "float32"
        np.testing.assert_allclose(result, expected[: len(result)], atol=1e-5)


@pytest.mark.parametrize("kind", ["litert", "onnx"])
def test_export_litert_and_onnx_refuse_invalid_input(kind, tmp_path, monkeypatch):
    write = getattr(export, f"export_{kind}")
    if keras.backend.backend() != "tensorflow":
        with pytest.raises(ValueError, match="export requires the TensorFlow backend. Received: "):
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
