"""Weight files: written whole or not at all, and read only into the network that they are of."""

import contextlib
import hashlib
import io
import math
import pathlib
import threading
import zipfile

import h5py
import keras
import numpy as np

from keras_wsl import files

_DTYPES = ("float16", "float32")
_limits = threading.local()  # Of the thread that reads a file: how many parameters may still be made.
_lock, _users, _init = threading.Lock(), 0, keras.Variable.__init__


def save_weights(model, path, dtype="float16"):
    """Writes the weights of a model in Keras's `.weights.h5` format, which `model.load_weights` and `build` read.

    Float16 halves the file and keeps 11 bits of each weight. Integers stay as they are; what an optimizer holds is
    left out. The file appears whole or not at all.

    Args:
        model: A built `keras.Model`.
        path: Path that ends in `.weights.h5`. Its folder exists; a file that is there is replaced.
        dtype: "float16" or "float32", of the arrays in the file.

    Raises:
        ValueError: If the path ends otherwise, the dtype is another, the model is not built, or a weight is not
            finite or too large for the dtype. Nothing is written then.
    """
    path = pathlib.Path(path)
    if not path.name.endswith(".weights.h5"):
        raise ValueError(f"A weight file must end in '.weights.h5'. Received: {str(path)!r}.")
    if dtype not in _DTYPES:
        raise ValueError(f"`dtype` must be one of {_DTYPES}. Received: {dtype!r}.")
    if not model.built:
        raise ValueError(f"{model.name} is not built, so it has no weights yet. Call it on a batch once.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {str(path.parent)!r} for the weight file. Make it first.")
    for variable in model.variables:
        _check_range(variable, dtype)
    buffer = io.BytesIO()
    with _written(model) as source, h5py.File(buffer, "w") as target:
        _copy(source, target, np.dtype(dtype))
    files.atomic_write(path, lambda file: file.write(buffer.getbuffer()))


class _Memory(io.BytesIO):
    """A file in memory with the ending of the name that Keras asks of weight files."""

    def __str__(self):
        return "memory.weights.h5"


def _written(model):
    """Return what Keras writes for a model as an open `h5py.File`, in memory: the temporary disk may be small."""
    file = _Memory()
    model.save_weights(file)
    return h5py.File(file, "r")


def weights_sha256(model):
    """The SHA-256 of a model's weights, whatever file they came from: a string of 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for variable in model.weights:
        digest.update(keras.ops.convert_to_numpy(variable).tobytes())
    return digest.hexdigest()


def load_weights(model, path):
    """Sets the weights of a model to those of a file of the same network, in any floating dtype.

    Args:
        model: A built `keras.Model`.
        path: Path of a `.weights.h5` file or of a `.keras` file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is of another type, damaged, of another network or of another number of classes.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no weight file {str(path)!r} for {model.name}. Train one and write it with "
            "`keras_wsl.models.save_weights`, or leave `weights` out."
        )
    if path.name.endswith(".weights.h5"):
        _load_hdf5(model, path)
    elif path.suffix == ".keras":
        _load_keras(model, path)
    else:
        raise ValueError(f"`weights` must be a '.weights.h5' or a '.keras' file. Received: {str(path)!r}.")


def _load_hdf5(model, path):
    try:
        with h5py.File(path, "r") as file:
            found, owner = _contents(file), _name(file.get("vars"))
    except (OSError, RuntimeError, KeyError) as error:  # h5py raises each of them, by where the damage is.
        raise ValueError(
            f"{str(path)!r} is not a whole HDF5 file; perhaps it was truncated or is of another type. Copy or write it "
            "again."
        ) from error
    # Keras tells where each array belongs, so what the file should hold is what Keras writes for this model.
    with _written(model) as file:
        expected = _contents(file)
    _check_same(model, path, owner, found, expected)
    model.load_weights(path)


def read_network(path, max_parameters=None):
    """The network of a `.keras` file, whoever wrote it: layers that are known here, and no code of the file's own.

    Keras's safe mode, with its long errors in a line.

    Args:
        path: Path of a `.keras` file.
        max_parameters: Integer, the most parameters that the file's configuration may ask for; by default as many as
            the file has bytes, because Keras stores each parameter in at least one. What exceeds it is not allocated.

    Returns:
        `keras.Model`, not compiled.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, has a layer that is code, or one of a class that is not known here; or if it asks
            for more than `max_parameters`.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {str(path)!r}.")
    damaged = f"{str(path)!r} is not a whole '.keras' file; perhaps it was truncated. Copy or write it again."
    if not zipfile.is_zipfile(path):
        raise ValueError(damaged)
    try:
        if max_parameters is None:
            max_parameters = path.stat().st_size  # Sizes that the archive states may be false.
        with _at_most(max_parameters):
            return keras.saving.load_model(path, compile=False, safe_mode=True)
    except _TooLarge as error:
        raise ValueError(
            f"{str(path)!r} asks for too many parameters: more than {max_parameters}, with {error}. Expected at most "
            "as many as the file has bytes. Pass a larger `max_parameters` to `read_network` if you trust the file."
        ) from error
    except (OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(damaged) from error
    except (TypeError, ValueError, AttributeError, RecursionError, MemoryError, OverflowError) as error:
        # The innermost of Keras's nested errors, without its advice to turn the safe mode off.
        said = str(error).rpartition("Exception encountered: ")[2].strip().partition("\n")[0].partition(". ")[0]
        raise ValueError(
            f"{str(path)!r} cannot be read as a network: {said or type(error).__name__}. Layers of Keras, "
            "and those whose modules are imported and registered, are read; code in a file is never run. Give its "
            "weights as a '.weights.h5' file."
        ) from error


class _TooLarge(Exception):
    """More parameters than a file may ask for; names the variable. No ValueError: Keras would add to the message."""


@contextlib.contextmanager
def _at_most(parameters):
    """A context in which variables of this thread have at most `parameters` elements, counted before allocation."""
    global _users
    with _lock:
        _users += 1
        keras.Variable.__init__ = _limited_init
    _limits.left = parameters
    try:
        yield
    finally:
        del _limits.left
        with _lock:
            _users -= 1
            if not _users:
                keras.Variable.__init__ = _init


def _limited_init(self, initializer, shape=None, *args, **kwargs):
    if shape is not None and hasattr(_limits, "left"):
        sizes = (shape,) if isinstance(shape, int) else tuple(shape)
        _limits.left -= math.prod(sizes)
        if _limits.left < 0:
            raise _TooLarge(f"a variable {kwargs.get('name')!r} of shape {sizes}")
    _init(self, initializer, shape, *args, **kwargs)


def _load_keras(model, path):
    other = read_network(path)
    if hasattr(other, "student"):
        raise ValueError(
            f"{str(path)!r} holds {other.name}, a {type(other).__name__} around a student, and not {model.name}. "
            "Load it with `keras.saving.load_model`, and write its `student` with `keras_wsl.models.save_weights`."
        )
    _check_same(model, path, other.name, _by_name(other), _by_name(model))
    model.set_weights(other.get_weights())


def _by_name(model):
    """All weights of a model, without the seeds of dropout, whose names are of the process: `{key: (name, shape)}`."""
    weights = {}
    for variable in model.weights:
        # A path may start with the model's own name, by how the model came to be; layers in layers repeat names.
        name = "/".join(variable.path.split("/")[-2:])
        again = sum(other == name for other, _ in weights.values())
        weights[f"{name} {again + 1}" if again else name] = (name, tuple(variable.shape))
    return weights


def _check_same(model, path, owner, found, expected):
    """Both map a key to `(variable, shape)`; they must be equal, in the order too, by which `set_weights` goes."""
    if list(found.items()) == list(expected.items()):
        return
    start = f"{str(path)!r} does not fit {model.name}: "
    end = f"The file is of {owner!r}; build that network, or give a file of {model.name}."
    if owner is None:
        end = f"Build the network that the file is of, or give a file of {model.name}."
    first = next(iter(expected))
    prefixes = {key.removesuffix(first) for key in found if key.endswith(f"/{first}")}
    if any(all(prefix + key in found for key in expected) for prefix in prefixes):
        end = (
            f"{model.name} is inside it, as in the file of a distiller. Load it into that one, and write "
            "`distiller.student` with `keras_wsl.models.save_weights`."
        )
    differ = [key for key in expected if found.get(key) != expected[key]]
    if len(found) == len(expected) and differ and all(_is_logits(expected[key], found.get(key)) for key in differ):
        raise ValueError(
            f"{start}it is of {found[differ[0]][1][-1]} classes, and {expected[differ[0]][1][-1]} were asked for. Pass "
            "`classes` as the file has it, or give another file."
        )
    count = f"it holds {len(found)} arrays, {len(expected)} were expected, and "
    if len(found) == len(expected):
        count = ""
    extra = [found[key][0] for key in found if key not in expected]
    if not differ and extra:
        raise ValueError(f"{start}{count}{extra[0]!r} is not part of {model.name}. {end}")
    if not differ:
        raise ValueError(f"{start}its arrays come in another order. {end}")
    name, shape = expected[differ[0]]
    if differ[0] not in found:
        raise ValueError(f"{start}{count}it has no {name!r} of shape {shape}. {end}")
    other_name, other_shape = found[differ[0]]
    raise ValueError(
        f"{start}{count}where {name!r} of shape {shape} was expected, it has {other_name!r} of shape {other_shape}. "
        f"{end}"
    )


def _is_logits(expected, found):
    """Whether two variables are of the layer `logits` and differ in the classes alone."""
    return (
        found is not None
        and found[0] == expected[0]
        and expected[0].split("/")[0] == "logits"
        and found[1][:-1] == expected[1][:-1]
    )


def _contents(file):
    """All arrays of a weight file but an optimizer's: `{path: (layer's name / number, shape)}`."""
    contents = {}

    def visit(key, item):
        if isinstance(item, h5py.Dataset) and not key.startswith("optimizer/"):
            layer = _name(item.parent) or item.parent.name
            contents[key] = (f"{layer}/{key.rsplit('/', 1)[-1]}", tuple(item.shape))

    file.visititems(visit)
    return contents


def _name(group):
    """The name that Keras noted of a layer or model, `None` where it did not."""
    return None if group is None else group.attrs.get("name")


def _copy(source, target, dtype):
    """Copies all but an optimizer's arrays, floats as `dtype`."""
    for name, value in source.attrs.items():
        target.attrs[name] = value
    for key, item in source.items():
        if item.name == "/optimizer":
            continue
        if isinstance(item, h5py.Group):
            _copy(item, target.create_group(key), dtype)
        else:
            value = np.asarray(item[()])
            if item.attrs.get("dtype") == "bfloat16":
                # HDF5 has no such type, and Keras writes the two bytes: the upper half of a float32.
                value = (value.view("uint16").astype("uint32") << 16).view("float32")
            floats = np.issubdtype(value.dtype, np.floating)
            target.create_dataset(key, data=value.astype(dtype) if floats else value)


def _check_range(variable, dtype):
    """Refuses a variable that is not finite, or not once it is of `dtype`."""
    if not keras.backend.is_float_dtype(variable.dtype):
        return
    value = keras.ops.convert_to_numpy(variable).astype("float64")
    if not np.isfinite(value).all():
        raise ValueError(f"{variable.path!r} has values that are not finite, so this model is not worth a file.")
    limit = float(np.finfo(dtype).max)
    largest = float(np.abs(value).max(initial=0))
    if largest > limit:
        raise ValueError(
            f"{variable.path!r} reaches {largest:g}, and {dtype} ends at {limit:g}. Pass `dtype='float32'`."
        )
