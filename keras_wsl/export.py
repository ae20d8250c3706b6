"""Export of the trained student without its teacher and losses."""

import os
import pathlib

import keras

from keras_wsl import files
from keras_wsl.features import symbolic_inputs

# What Keras writes in addition to `saved_model.pb`.
SAVED_MODEL_PARTS = {"assets", "variables", "fingerprint.pb"}


def export_saved_model(student, path, *, preprocessor=None, overwrite=False):
    """Export the student as a TensorFlow SavedModel, for servers and for programs without Keras.

    Its signature `serving_default` and its method `serve` run the student in inference mode on batches of any size.
    Floating-point outputs are float32 for all dtype policies. The directory is replaced atomically. Temporary files are
    written next to it, not to the system's temporary directory. A symbolic link at the path is replaced; the directory
    that it points to is not changed.

    With a preprocessor, there is also a method and signature `serve_raw` that takes the preprocessor's inputs.

    ```python
    export.export_saved_model(student, "student", preprocessor=splits.train.preprocessor())
    served = tf.saved_model.load("student")
    logits = served.serve_raw(pixels)  # uint8; for sentences {"first": [...], "second": [...]}
    logits = served.serve(images)  # Normalized, as in training.
    ```

    Args:
        student: A built `keras.Model`; for a distiller, pass `distiller.student`.
        path: Path of the directory. Missing parents are created.
        preprocessor: A functional or sequential `keras.Model` from raw inputs to the student's inputs, such as
            `preprocessor()` of a data set returns; `None` for the student alone.
        overwrite: Whether to replace an existing SavedModel.

    Raises:
        FileExistsError: If the path exists, and `overwrite` is false or it is not a SavedModel.
        ImportError: If a required package is missing: TensorFlow, or torch_xla on Torch.
        ValueError: If the student is a distiller or not built, or does not match the preprocessor; or if there is a
            preprocessor on Torch, where Keras does not support a second endpoint.
    """
    _check_student(student)
    if preprocessor is not None and keras.backend.backend() == "torch":
        raise ValueError(
            "`preprocessor` must be None on the Torch backend, because Keras supports a single endpoint there. "
            f"Received: a {type(preprocessor).__name__}. Or use `export.save_keras`, load the file with "
            "KERAS_BACKEND=tensorflow, and export it there."
        )
    served = _cast_outputs_to_float32(student)
    combined = None if preprocessor is None else _with_preprocessor(preprocessor, served)
    path = pathlib.Path(os.path.abspath(path))
    _check_path_is_free(path, overwrite)
    _check_packages()
    files.make_directory(path.parent)
    with files.scratch_directory(path) as directory:
        written = directory / "new"
        archive = keras.export.ExportArchive()
        if combined is not None:
            archive.track(preprocessor)  # Before any endpoint: on JAX, an endpoint uses what is tracked until then.
        archive.track_and_add_endpoint("serve", served, _signature(served))  # The first is the default.
        if combined is not None:
            archive.add_endpoint("serve_raw", combined.__call__, _signature(combined))
        archive.write_out(str(written), verbose=False)
        _check_path_is_free(path, overwrite)
        files.replace_directory(written, path)


def save_keras(student, path, *, preprocessor=None):
    """Save the student as a `.keras` file, which `keras.saving.load_model` reads on any backend.

    The file is written atomically and replaces an existing one.

    Args:
        student: A built `keras.Model`; for a distiller, pass `distiller.student`.
        path: Path that ends in `.keras`. Missing parents are created.
        preprocessor: Same as for `export_saved_model`, but without string inputs. The file then takes its inputs
            instead of the student's.

    Raises:
        ValueError: If the path has another suffix, the student is a distiller or not built or does not match the
            preprocessor, or the preprocessor takes strings.
    """
    _check_student(student)
    _write_file(path, ".keras", _combine_without_strings(preprocessor, student, ".keras").save)


def export_litert(student, path, *, preprocessor=None):
    """Export the student as a LiteRT file (TensorFlow Lite), for phones and small devices, with any batch size.

    It computes in float32 for all dtype policies, because the interpreter has no kernels for mixed precision. The file
    is written atomically and replaces an existing one.

    Args:
        student: A built `keras.Model`; for a distiller, pass `distiller.student`.
        path: Path that ends in `.tflite`. Missing parents are created.
        preprocessor: Same as for `save_keras`.

    Raises:
        ValueError: If the path has another suffix, the student is a distiller or not built or does not match the
            preprocessor, the preprocessor takes strings, or the backend is not TensorFlow.
    """
    _check_student(student)
    _check_tensorflow("LiteRT")
    combined = _combine_without_strings(preprocessor, _convert_to_float32(student), "LiteRT")
    _write_file(path, ".tflite", lambda file: combined.export(str(file), format="litert", verbose=False))


def export_onnx(student, path, *, preprocessor=None):
    """Export the student as an ONNX file, for ONNX Runtime and other ONNX tools, with any batch size.

    It computes in float32 for all dtype policies. The file is written atomically and replaces an existing one.

    Args:
        student: A built `keras.Model`; for a distiller, pass `distiller.student`.
        path: Path that ends in `.onnx`. Missing parents are created.
        preprocessor: Same as for `save_keras`.

    Raises:
        ImportError: If the packages of `keras-wsl[onnx]` are not installed.
        ValueError: If the path has another suffix, the student is a distiller or not built or does not match the
            preprocessor, the preprocessor takes strings, or the backend is not TensorFlow.
    """
    _check_student(student)
    _check_tensorflow("ONNX")
    try:
        import tf2onnx  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "ONNX export requires tf2onnx, which is not installed. Run `pip install 'keras-wsl[onnx]'`."
        ) from error
    combined = _combine_without_strings(preprocessor, _convert_to_float32(student), "ONNX")
    combined(
        keras.tree.map_structure(
            lambda spec: keras.ops.zeros((1, *spec.shape[1:]), spec.dtype), _static_input_specs(combined)
        )
    )
    _write_file(path, ".onnx", lambda file: combined.export(str(file), format="onnx", verbose=False))


def _write_file(path, suffix, write):
    """Write a file by calling `write` with a temporary path, and rename it when it is complete."""
    path = pathlib.Path(path)
    if path.suffix != suffix:
        raise ValueError(f"`path` must end in '{suffix}'. Received: {str(path)!r}. Rename it.")
    files.make_directory(path.parent)
    with files.scratch_directory(path) as directory:
        written = directory / f"student{suffix}"
        write(written)
        files.rename_atomically(written, path)


def _check_student(student):
    """Raise `ValueError` if the student is not a built network without a teacher."""
    if hasattr(student, "student"):
        raise ValueError(
            f"`student` must not include a teacher. Received: a {type(student).__name__}. Pass `distiller.student`."
        )
    if not isinstance(student, keras.Model):
        raise ValueError(f"`student` must be a `keras.Model`. Received: {student!r}. Build or load one first.")
    if not student.built:
        raise ValueError(
            f"`student` must be built. Received: {student.name}, which has no weights yet. Call it on a batch once."
        )


def _check_path_is_free(path, overwrite):
    """Raise `FileExistsError` if the path exists and may not be replaced."""
    if not os.path.lexists(path) or (path.is_dir() and not any(path.iterdir())):
        return
    if not overwrite:
        raise FileExistsError(
            f"`path` must not exist, or be empty. Received: {str(path)!r}. Choose another path, or pass "
            "`overwrite=True` to replace the SavedModel there."
        )
    if not (path / "saved_model.pb").is_file() and not _is_damaged_saved_model(path):
        raise FileExistsError(
            f"`overwrite=True` replaces only a SavedModel. Received: {str(path)!r}, which is not one. Choose another "
            "path."
        )


def _is_damaged_saved_model(path):
    """Return whether a directory holds a SavedModel whose `saved_model.pb` is missing, and nothing else."""
    return (path / "fingerprint.pb").is_file() and {part.name for part in path.iterdir()} <= SAVED_MODEL_PARTS


def _check_packages():
    """Raise a clear `ImportError` early if a package that Keras needs for a SavedModel is missing."""
    try:
        import tensorflow  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "SavedModel export requires TensorFlow, which is not installed. Run `pip install tensorflow`, or use "
            "`export.save_keras`, which does not need it."
        ) from error
    if keras.backend.backend() != "torch":
        return
    try:
        import torch_xla  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "SavedModel export on the Torch backend requires torch_xla. Run `pip install torch_xla`, or use "
            "`export.save_keras`, load the file with KERAS_BACKEND=tensorflow, and export it there."
        ) from error


def _check_tensorflow(kind):
    """Raise `ValueError` on other backends."""
    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            f"{kind} export requires the TensorFlow backend. Received: {keras.backend.backend()}. Use "
            "`export.save_keras`, and load the file with KERAS_BACKEND=tensorflow."
        )


def _static_input_specs(model):
    """Return the specifications of its inputs, with a length of 8 for unknown dimensions."""
    return keras.tree.map_structure(
        lambda spec: keras.KerasTensor([spec.shape[0], *(size or 8 for size in spec.shape[1:])], spec.dtype),
        symbolic_inputs(model),
    )


def _convert_to_float32(student):
    """Return the student if all its layers compute in float32, else a float32 clone with the same weights."""
    if all(layer.compute_dtype == "float32" for layer in student._flatten_layers()):
        return student

    def clone_in_float32(layer):
        # Operations that are not layers, such as slices, have no dtype.
        dtype = {"dtype": "float32"} if isinstance(layer, keras.layers.Layer) else {}
        return type(layer).from_config({**layer.get_config(), **dtype})

    clone = keras.models.clone_model(student, clone_function=clone_in_float32, recursive=True)
    clone.set_weights(student.get_weights())
    return clone


def _with_preprocessor(preprocessor, student):
    """Return a model that applies a preprocessor and then the student, and shares the student's weights.

    Raises:
        ValueError: If the preprocessor has no graph, or its outputs do not match the student's inputs.
    """
    if not isinstance(preprocessor, keras.Model) or not preprocessor.built:
        raise ValueError(
            "`preprocessor` must be a functional or sequential `keras.Model` with an Input. Received: "
            f"{preprocessor!r}. Use `preprocessor()` of a data set."
        )
    inputs = _make_inputs(preprocessor)
    processed = preprocessor(inputs)
    shapes, expected = (
        keras.tree.map_structure(lambda tensor: tuple(tensor.shape), tensors)
        for tensors in (processed, symbolic_inputs(student))
    )
    if not _shapes_match(shapes, expected):
        raise ValueError(
            f"The outputs of `preprocessor` must match the inputs of {student.name}, {expected}. Received: {shapes}. "
            "Use the preprocessor of the data on which it was trained."
        )
    return keras.Model(inputs, student(processed, training=False), name=student.name)


def _shapes_match(shapes, expected):
    """Return whether shapes, or dicts of shapes, are equal except for unknown dimensions."""
    if isinstance(shapes, dict) or isinstance(expected, dict):
        both = isinstance(shapes, dict) and isinstance(expected, dict) and set(shapes) == set(expected)
        return both and all(_shapes_match(shapes[name], expected[name]) for name in expected)
    return len(shapes) == len(expected) and all(None in pair or pair[0] == pair[1] for pair in zip(shapes, expected))


def _combine_without_strings(preprocessor, student, kind):
    """Return the student with its preprocessor, if there is one.

    Raises:
        ValueError: If the preprocessor takes strings, which this kind of file does not support.
    """
    if preprocessor is None:
        return student
    combined = _with_preprocessor(preprocessor, student)
    if any(tensor.dtype == "string" for tensor in combined.inputs):
        raise ValueError(
            f"`preprocessor` must not take strings for a {kind} file, because TensorFlow tokenizes them. Received: "
            f"{preprocessor.name}. Use `export.export_saved_model` with it, or omit it."
        )
    return combined


def _signature(model):
    """Return the input signature of an endpoint, with any batch size."""
    return [
        keras.tree.map_structure(
            lambda spec: keras.InputSpec(dtype=spec.dtype, shape=(None, *spec.shape[1:]), name=spec.name),
            symbolic_inputs(model),
        )
    ]


def _make_inputs(model):
    """Return new inputs with the specifications of a model's inputs."""
    return keras.tree.map_structure(
        lambda spec: keras.Input(batch_shape=spec.shape, dtype=spec.dtype, name=spec.name), symbolic_inputs(model)
    )


def _cast_outputs_to_float32(student):
    """Return the student if its outputs are float32, else a model that casts them and shares its weights."""
    outputs = keras.tree.flatten(student.compute_output_spec(symbolic_inputs(student)))
    if all(not keras.backend.is_float_dtype(output.dtype) or output.dtype == "float32" for output in outputs):
        return student
    inputs = _make_inputs(student)
    outputs = keras.tree.map_structure(
        lambda output: keras.ops.cast(output, "float32") if keras.backend.is_float_dtype(output.dtype) else output,
        student(inputs, training=False),
    )
    return keras.Model(inputs, outputs, name=student.name)
