"""The student alone, for those who serve it."""

import os
import pathlib
import shutil

import keras

from keras_wsl.files import write_atomically


def saved_model(student, path, *, overwrite=False):
    """Writes a TensorFlow SavedModel whose signature `serving_default` maps inputs to float32 logits.

    It is written beside `path` and renamed, so that the folder is whole or absent. It needs TensorFlow to be installed,
    whichever backend made the student.

    Args:
        student: Built `keras.Model`; of a Distiller, its `student`.
        path: Folder to be made.
        overwrite: Whether what stands there is replaced.

    Raises:
        ValueError: If it is a Distiller, is not built, or `path` exists.
        ImportError: If TensorFlow is not installed.
    """
    _check(student)
    path = pathlib.Path(path)
    if path.exists() and not overwrite and (path.is_file() or any(path.iterdir())):
        raise ValueError(f"{path} exists. Choose another path, or pass overwrite=True to replace it.")
    try:
        import tensorflow  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"A SavedModel is TensorFlow's format: `pip install tensorflow` to write {path}, or use "
            "keras_wsl.export.keras_file, which needs no TensorFlow."
        ) from error
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.writing")
    try:
        student.export(temporary, format="tf_saved_model", verbose=False)
        if path.exists():
            shutil.rmtree(path)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def keras_file(student, path):
    """Writes a `.keras` file of the student, whole or not at all.

    Args:
        student: Built `keras.Model`; of a Distiller, its `student`.
        path: Path that ends in `.keras`.

    Raises:
        ValueError: If it is a Distiller, is not built, or the name ends otherwise.
    """
    _check(student)
    path = pathlib.Path(path)
    if path.suffix != ".keras":
        raise ValueError(f"The file {path.name!r} must end in .keras.")
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        student.save(temporary)
        write_atomically(path, lambda file: file.write(temporary.read_bytes()))
    finally:
        temporary.unlink(missing_ok=True)


def _check(student):
    if hasattr(student, "student"):
        raise ValueError(f"{student.name} is a Distiller. Export what it trained: pass `distiller.student`.")
    if not isinstance(student, keras.Model) or not student.built:
        raise ValueError(f"Expected a keras.Model that is built, or called once. Received: {student!r}.")
