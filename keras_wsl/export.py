"""The trained student alone, as files that others load."""

import os
import pathlib

import keras

from keras_wsl import files
from keras_wsl.features import symbolic_inputs

# What Keras writes beside `saved_model.pb`.
SAVED_MODEL_PARTS = {"assets", "variables", "fingerprint.pb"}


def saved_model(student, path, *, preprocessor=None, overwrite=False):
    """Writes the student as a TensorFlow SavedModel, for servers and for programs without Keras.

    Its signature `serving_default`, and its method `serve`, run the student in inference mode on batches of any size.
    Floating outputs are float32, whatever the student's policy. The folder appears whole or not at all. Temporary files
    are written beside it, and not into the system's temporary directory. A symbolic link at the path is replaced; the
    folder that it points to is not changed.

    With a preprocessor there is `serve_raw` beside, a method and a signature too, which takes what that takes.

    ```python
    export.saved_model(student, "student", preprocessor=splits.train.preprocessor())
    served = tf.saved_model.load("student")
    logits = served.serve_raw(pixels)  # uint8; of sentences {"first": [...], "second": [...]}
    logits = served.serve(images)  # Normalized, as in training.
    ```

    Args:
        student: A built `keras.Model`; of a distiller, `distiller.student`.
        path: The folder to write. Missing parents are made.
        preprocessor: A functional or sequential `keras.Model` from raw inputs to what the student takes, such as
            `preprocessor()` of a data set gives; `None` for the student alone.
        overwrite: Whether a SavedModel that is there is replaced.

    Raises:
        FileExistsError: If the path is taken, and `overwrite` is false or what is there is no SavedModel.
        ImportError: If a package is missing that this backend needs for it: TensorFlow, or torch_xla on Torch.
        ValueError: If the student is a distiller or not built, or does not take what the preprocessor gives; or there
            is one on Torch, where Keras writes no second endpoint.
    """
    _check_student(student)
    if preprocessor is not None and keras.backend.backend() == "torch":
        raise ValueError(
            "On the Torch backend Keras writes a SavedModel of one endpoint: leave `preprocessor` out. Or write "
            "`export.keras_file`, load it with KERAS_BACKEND=tensorflow, and export it there."
        )
    served = _in_float32(student)
    whole = None if preprocessor is None else _behind(preprocessor, served)
    path = pathlib.Path(os.path.abspath(path))
    _check_free(path, overwrite)
    _check_packages()
    files.make_directory(path.parent)
    with files.scratch_directory(path) as folder:
        written = folder / "new"
        archive = keras.export.ExportArchive()
        if whole is not None:
            archive.track(preprocessor)  # Before any endpoint: on JAX each takes all that is tracked until then.
        archive.track_and_add_endpoint("serve", served, _signature(served))  # The first, which is the default.
        if whole is not None:
            archive.add_endpoint("serve_raw", whole.__call__, _signature(whole))
        archive.write_out(str(written), verbose=False)
        _check_free(path, overwrite)
        files.replace_directory(written, path)


def keras_file(student, path, *, preprocessor=None):
    """Writes the student as a `.keras` file, which `keras.saving.load_model` reads on any backend.

    The file appears whole or not at all; one that is there is replaced.

    Args:
        student: A built `keras.Model`; of a distiller, `distiller.student`.
        path: Path that ends in `.keras`. Missing parents are made.
        preprocessor: As of `saved_model`, but of no strings: what the file then takes in place of the student's inputs.

    Raises:
        ValueError: If the path ends otherwise, the student is a distiller or not built, or does not take what the
            preprocessor gives, or that takes strings.
    """
    _check_student(student)
    _write_file(path, ".keras", _numeric(preprocessor, student, ".keras").save)


def litert(student, path, *, preprocessor=None):
    """Writes the student as a LiteRT file (TensorFlow Lite), for phones and small devices: batches of any size.

    It computes in float32, whatever the student's policy: the interpreter has no kernels of mixed precision. The file
    appears whole or not at all; one that is there is replaced.

    Args:
        student: A built `keras.Model`; of a distiller, `distiller.student`.
        path: Path that ends in `.tflite`. Missing parents are made.
        preprocessor: As of `keras_file`.

    Raises:
        ValueError: If the path ends otherwise, the student is a distiller or not built, or does not take what the
            preprocessor gives, that takes strings, or the backend is not TensorFlow.
    """
    _check_student(student)
    _check_tensorflow("LiteRT")
    whole = _numeric(preprocessor, _computing_in_float32(student), "LiteRT")
    _write_file(path, ".tflite", lambda file: whole.export(str(file), format="litert", verbose=False))


def onnx(student, path, *, preprocessor=None):
    """Writes the student as an ONNX file, for ONNX Runtime and what else reads it: batches of any size.

    It computes in float32, whatever the student's policy. The file appears whole or not at all; one that is there is
    replaced.

    Args:
        student: A built `keras.Model`; of a distiller, `distiller.student`.
        path: Path that ends in `.onnx`. Missing parents are made.
        preprocessor: As of `keras_file`.

    Raises:
        ImportError: If the packages of `pip install 'keras-wsl[onnx]'` are missing.
        ValueError: If the path ends otherwise, the student is a distiller or not built, or does not take what the
            preprocessor gives, that takes strings, or the backend is not TensorFlow.
    """
    _check_student(student)
    _check_tensorflow("ONNX")
    try:
        import tf2onnx  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "An ONNX file is written by tf2onnx, which is not installed here: `pip install 'keras-wsl[onnx]'`."
        ) from error
    whole = _numeric(preprocessor, _computing_in_float32(student), "ONNX")
    whole(keras.tree.map_structure(lambda spec: keras.ops.zeros((1, *spec.shape[1:]), spec.dtype), _fixed(whole)))
    _write_file(path, ".onnx", lambda file: whole.export(str(file), format="onnx", verbose=False))


def _write_file(path, suffix, write):
    """Makes a file by a function of a path, and gives it its name once it is whole."""
    path = pathlib.Path(path)
    if path.suffix != suffix:
        raise ValueError(f"The path must end in '{suffix}'. Received: {str(path)!r}. Rename it.")
    files.make_directory(path.parent)
    with files.scratch_directory(path) as folder:
        written = folder / f"student{suffix}"
        write(written)
        files.rename_atomically(written, path)


def _check_student(student):
    """Refuses what is no built network of its own."""
    if hasattr(student, "student"):
        raise ValueError(
            f"Expected the student alone. Received: a {type(student).__name__} around one. Pass `distiller.student`."
        )
    if not isinstance(student, keras.Model):
        raise ValueError(f"Expected a `keras.Model`. Received: {student!r}. Build or load one first.")
    if not student.built:
        raise ValueError(f"{student.name} is not built, so it has no weights yet. Call it on a batch once.")


def _check_free(path, overwrite):
    """Refuses a path where something is that may not be replaced."""
    if not os.path.lexists(path) or (path.is_dir() and not any(path.iterdir())):
        return
    if not overwrite:
        raise FileExistsError(
            f"{str(path)!r} exists and is not empty. Choose another path, or pass `overwrite=True` to replace the "
            "SavedModel there."
        )
    if not (path / "saved_model.pb").is_file() and not _is_damaged_saved_model(path):
        raise FileExistsError(
            f"{str(path)!r} holds no SavedModel, and `overwrite=True` replaces nothing else. Choose another path."
        )


def _is_damaged_saved_model(path):
    """Whether a folder holds only what Keras writes for a SavedModel beside its `saved_model.pb`, which is missing."""
    return (path / "fingerprint.pb").is_file() and {part.name for part in path.iterdir()} <= SAVED_MODEL_PARTS


def _check_packages():
    """Imports what Keras needs for a SavedModel, which it would miss with a less clear error, and late."""
    try:
        import tensorflow  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "A SavedModel is written by TensorFlow, which is not installed here: `pip install tensorflow`. "
            "`export.keras_file` does without it."
        ) from error
    if keras.backend.backend() != "torch":
        return
    try:
        import torch_xla  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "On the Torch backend, Keras needs torch_xla to write a SavedModel: `pip install torch_xla`. Or write "
            "`export.keras_file`, load it with KERAS_BACKEND=tensorflow, and export it there."
        ) from error


def _check_tensorflow(kind):
    """Refuses other backends."""
    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            f"{kind} files are written on the TensorFlow backend, and this is {keras.backend.backend()}. Write "
            "`export.keras_file`, and load it with KERAS_BACKEND=tensorflow."
        )


def _fixed(model):
    """Specifications of its inputs, with a length of 8 where any will do."""
    return keras.tree.map_structure(
        lambda spec: keras.KerasTensor([spec.shape[0], *(size or 8 for size in spec.shape[1:])], spec.dtype),
        symbolic_inputs(model),
    )


def _computing_in_float32(student):
    """The student itself if all its layers compute in float32, else a clone that does, with the same weights."""
    if all(layer.compute_dtype == "float32" for layer in student._flatten_layers()):
        return student

    def in_float32(layer):
        # What is no layer, such as the slice of a tensor, has no dtype of its own.
        dtype = {"dtype": "float32"} if isinstance(layer, keras.layers.Layer) else {}
        return type(layer).from_config({**layer.get_config(), **dtype})

    clone = keras.models.clone_model(student, clone_function=in_float32, recursive=True)
    clone.set_weights(student.get_weights())
    return clone


def _behind(preprocessor, student):
    """A model that gives the student what a preprocessor makes of raw inputs, and shares the student's weights.

    Raises:
        ValueError: If it is no model of a known graph, or gives what the student does not take.
    """
    if not isinstance(preprocessor, keras.Model) or not preprocessor.built:
        raise ValueError(
            f"Expected a functional or sequential `keras.Model` with an Input as the preprocessor. Received: "
            f"{preprocessor!r}. `preprocessor()` of a data set gives one."
        )
    raw = _inputs(preprocessor)
    given, taken = preprocessor(raw), symbolic_inputs(student)
    shapes, expected = (keras.tree.map_structure(lambda tensor: tuple(tensor.shape), end) for end in (given, taken))
    if not _fits(shapes, expected):
        raise ValueError(
            f"The preprocessor gives {shapes}, and {student.name} takes {expected}. Take the preprocessor of the data "
            "that it was trained on."
        )
    return keras.Model(raw, student(given, training=False), name=student.name)


def _fits(given, expected):
    """Whether shapes, or dicts of them, are of what is expected, as far as both are known."""
    if isinstance(given, dict) or isinstance(expected, dict):
        both = isinstance(given, dict) and isinstance(expected, dict) and set(given) == set(expected)
        return both and all(_fits(given[name], expected[name]) for name in expected)
    return len(given) == len(expected) and all(None in pair or pair[0] == pair[1] for pair in zip(given, expected))


def _numeric(preprocessor, student, kind):
    """The student, behind a preprocessor if there is one, for files that hold no text."""
    if preprocessor is None:
        return student
    whole = _behind(preprocessor, student)
    if any(tensor.dtype == "string" for tensor in whole.inputs):
        raise ValueError(
            f"A {kind} file takes no strings: their tokens are TensorFlow's work. Write `export.saved_model` with this "
            "preprocessor, or leave it out."
        )
    return whole


def _signature(model):
    """What an endpoint takes: batches of any size."""
    return [
        keras.tree.map_structure(
            lambda spec: keras.InputSpec(dtype=spec.dtype, shape=(None, *spec.shape[1:]), name=spec.name),
            symbolic_inputs(model),
        )
    ]


def _inputs(model):
    """New inputs like those of a model."""
    return keras.tree.map_structure(
        lambda spec: keras.Input(batch_shape=spec.shape, dtype=spec.dtype, name=spec.name), symbolic_inputs(model)
    )


def _in_float32(student):
    """The student itself if its floating outputs are float32, else a model that casts them and shares its weights."""
    outputs = keras.tree.flatten(student.compute_output_spec(symbolic_inputs(student)))
    if all(not keras.backend.is_float_dtype(output.dtype) or output.dtype == "float32" for output in outputs):
        return student
    inputs = _inputs(student)
    outputs = keras.tree.map_structure(
        lambda output: keras.ops.cast(output, "float32") if keras.backend.is_float_dtype(output.dtype) else output,
        student(inputs, training=False),
    )
    return keras.Model(inputs, outputs, name=student.name)
