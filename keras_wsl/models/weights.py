"""Read and write weight files: atomically, and only into a network that matches."""

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
_limits = threading.local()  # Of the thread that reads a file: how many parameters it may still create.
_lock, _users, _init = threading.Lock(), 0, keras.Variable.__init__


def save_weights(model, path, dtype="float16"):
    """Write the weights of a model in Keras's `.weights.h5` format, which `model.load_weights` and `build` read.

    Float16 halves the file and keeps 11 bits of each weight. Integers are not converted. Optimizer variables are left
    out. The file appears complete or not at all.

    Args:
        model: A built `keras.Model`.
        path: Path that ends in `.weights.h5`. Its directory exists. An existing file is replaced.
        dtype: "float16" or "float32", the dtype of the arrays in the file.

    Raises:
        FileNotFoundError: If the directory is missing.
        ValueError: If the path has another suffix, the dtype is another, the model is not built, or a weight is not
            finite or too large for the dtype. Then nothing is written.
    """
    path = pathlib.Path(path)
    if not path.name.endswith(".weights.h5"):
        raise ValueError(f"A weight file must end in '.weights.h5'. Received: {str(path)!r}.")
    if dtype not in _DTYPES:
        raise ValueError(f"`dtype` must be one of {_DTYPES}. Received: {dtype!r}.")
    if not model.built:
        raise ValueError(f"`model` must be built. Received: {model.name}, which is not built. Call it on a batch once.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"The directory {str(path.parent)!r} of the weight file is missing. Create it first.")
    for variable in model.variables:
        _check_range(variable, dtype)
    buffer = io.BytesIO()
    with _serialize(model) as source, h5py.File(buffer, "w") as target:
        _copy(source, target, np.dtype(dtype))
    files.atomic_write(path, lambda file: file.write(buffer.getbuffer()))


class _Memory(io.BytesIO):
    """A file in memory whose name has the suffix that Keras requires of weight files."""

    def __str__(self):
        return "memory.weights.h5"


def _serialize(model):
    """Return Keras's weight file of a model as an open `h5py.File`, in memory, because the disk may be small."""
    file = _Memory()
    model.save_weights(file)
    return h5py.File(file, "r")


def weights_sha256(model):
    """Return the SHA-256 of a model's weights, independent of their file: a string of 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for variable in model.weights:
        digest.update(keras.ops.convert_to_numpy(variable).tobytes())
    return digest.hexdigest()


def load_weights(model, path):
    """Set the weights of a model to those of a file of the same network, in any floating dtype.

    Args:
        model: A built `keras.Model`.
        path: Path of a `.weights.h5` or `.keras` file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is of another type, damaged, of another network or of another number of classes.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"The weight file {str(path)!r} for {model.name} does not exist. Train one and write it with "
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
            received, owner = _list_arrays(file), _get_name(file.get("vars"))
    except (OSError, RuntimeError, KeyError) as error:  # h5py raises each of them, depending on the damage.
        raise ValueError(
            f"{str(path)!r} is not a complete HDF5 file. It may be truncated or of another type. Copy or write it "
            "again."
        ) from error
    # Keras determines where each array belongs, so the file must match the one that Keras writes for this model.
    with _serialize(model) as file:
        expected = _list_arrays(file)
    _check_same(model, path, owner, received, expected)
    model.load_weights(path)


def read_network(path, max_parameters=None):
    """Read the network of an untrusted `.keras` file: only registered layers, and no code from the file.

    Uses Keras's safe mode, and shortens its errors to one line.

    Args:
        path: Path of a `.keras` file.
        max_parameters: Integer, the maximum number of parameters in the file's configuration. Default: the file's size
            in bytes, because Keras stores each parameter in at least one byte. More are not allocated.

    Returns:
        `keras.Model`, not compiled.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, has a layer with code or of an unknown class, or more than `max_parameters`.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"The file {str(path)!r} does not exist.")
    damaged = f"{str(path)!r} is not a complete '.keras' file. It may be truncated. Copy or write it again."
    if not zipfile.is_zipfile(path):
        raise ValueError(damaged)
    try:
        if max_parameters is None:
            max_parameters = path.stat().st_size  # Sizes that the archive states may be false.
        with _limit_parameters(max_parameters):
            return keras.saving.load_model(path, compile=False, safe_mode=True)
    except _TooManyParametersError as error:
        raise ValueError(
            f"{str(path)!r} must have at most {max_parameters} parameters, by default its size in bytes. Received: "
            f"more, with {error}. Pass a larger `max_parameters` to `read_network` if you trust the file."
        ) from error
    except (OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(damaged) from error
    except (TypeError, ValueError, AttributeError, RecursionError, MemoryError, OverflowError) as error:
        # The innermost of Keras's nested errors, without its advice to disable the safe mode.
        message = str(error).rpartition("Exception encountered: ")[2].strip().partition("\n")[0].partition(". ")[0]
        raise ValueError(
            f"{str(path)!r} cannot be read as a network: {message or type(error).__name__}. Only layers of Keras and "
            "registered layers of imported modules are read. Code in a file is never run. Pass its weights as a "
            "'.weights.h5' file."
        ) from error


class _TooManyParametersError(Exception):
    """Raised for more parameters than allowed. Not a ValueError, to whose message Keras would add."""


@contextlib.contextmanager
def _limit_parameters(maximum):
    """Limit the number of elements of this thread's new variables in a context. Counts before allocation."""
    global _users
    with _lock:
        _users += 1
        keras.Variable.__init__ = _limited_init
    _limits.remaining = maximum
    try:
        yield
    finally:
        del _limits.remaining
        with _lock:
            _users -= 1
            if not _users:
                keras.Variable.__init__ = _init


def _limited_init(self, initializer, shape=None, *args, **kwargs):
    if shape is not None and hasattr(_limits, "remaining"):
        sizes = (shape,) if isinstance(shape, int) else tuple(shape)
        _limits.remaining -= math.prod(sizes)
        if _limits.remaining < 0:
            raise _TooManyParametersError(f"a variable {kwargs.get('name')!r} of shape {sizes}")
    _init(self, initializer, shape, *args, **kwargs)


def _load_keras(model, path):
    network = read_network(path)
    if hasattr(network, "student"):
        raise ValueError(
            f"{str(path)!r} must be a file of {model.name}. Received: {network.name}, a {type(network).__name__} with "
            "a student. Load it with `keras.saving.load_model`, and write its `student` with "
            "`keras_wsl.models.save_weights`."
        )
    _check_same(model, path, network.name, _list_weights(network), _list_weights(model))
    model.set_weights(network.get_weights())


def _list_weights(model):
    """Return all weights of a model except the seeds of dropout, whose names vary: `{key: (name, shape)}`."""
    weights = {}
    for variable in model.weights:
        # A path may start with the model's own name, depending on how it was built. Nested layers repeat names.
        name = "/".join(variable.path.split("/")[-2:])
        count = sum(name == previous for previous, _ in weights.values())
        weights[f"{name} {count + 1}" if count else name] = (name, tuple(variable.shape))
    return weights


def _check_same(model, path, owner, received, expected):
    """Raise `ValueError` unless two dicts of keys to `(variable, shape)` are equal, including their order.

    `set_weights` depends on the order.
    """
    if list(received.items()) == list(expected.items()):
        return
    start = f"{str(path)!r} does not match {model.name}: "
    end = f"The file is of {owner!r}. Build that network, or pass a file of {model.name}."
    if owner is None:
        end = f"Build the network of the file, or pass a file of {model.name}."
    first = next(iter(expected))
    prefixes = {key.removesuffix(first) for key in received if key.endswith(f"/{first}")}
    if any(all(prefix + key in received for key in expected) for prefix in prefixes):
        end = (
            f"It contains {model.name}, as the file of a distiller does. Load it into the distiller, and write "
            "`distiller.student` with `keras_wsl.models.save_weights`."
        )
    differ = [key for key in expected if received.get(key) != expected[key]]
    if len(received) == len(expected) and differ and all(_is_logits(expected[k], received.get(k)) for k in differ):
        raise ValueError(
            f"{start}expected {expected[differ[0]][1][-1]} classes. Received: {received[differ[0]][1][-1]} classes. "
            "Pass `classes` as in the file, or pass another file."
        )
    count = f"expected {len(expected)} arrays, received {len(received)}, and "
    if len(received) == len(expected):
        count = ""
    extra = [received[key][0] for key in received if key not in expected]
    if not differ and extra:
        raise ValueError(f"{start}{count}{extra[0]!r} is not part of {model.name}. {end}")
    if not differ:
        raise ValueError(f"{start}its arrays are in another order. {end}")
    name, shape = expected[differ[0]]
    if differ[0] not in received:
        raise ValueError(f"{start}{count}{name!r} of shape {shape} is missing. {end}")
    received_name, received_shape = received[differ[0]]
    raise ValueError(
        f"{start}{count}{name!r} of shape {shape} is expected in place of {received_name!r} of shape {received_shape}. "
        f"{end}"
    )


def _is_logits(expected, received):
    """Return whether two variables are of the layer `logits` and differ only in the number of classes."""
    return (
        received is not None
        and received[0] == expected[0]
        and expected[0].split("/")[0] == "logits"
        and received[1][:-1] == expected[1][:-1]
    )


def _list_arrays(file):
    """Return all arrays of a weight file except an optimizer's: `{path: (layer's name / number, shape)}`."""
    arrays = {}

    def visit(key, item):
        if isinstance(item, h5py.Dataset) and not key.startswith("optimizer/"):
            layer = _get_name(item.parent) or item.parent.name
            arrays[key] = (f"{layer}/{key.rsplit('/', 1)[-1]}", tuple(item.shape))

    file.visititems(visit)
    return arrays


def _get_name(group):
    """Return the name of a layer or model that Keras stored, or `None`."""
    return None if group is None else group.attrs.get("name")


def _copy(source, target, dtype):
    """Copy all arrays except an optimizer's, floats as `dtype`."""
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
                # HDF5 has no such type. Keras writes its two bytes, which are the upper half of a float32.
                value = (value.view("uint16").astype("uint32") << 16).view("float32")
            floats = np.issubdtype(value.dtype, np.floating)
            target.create_dataset(key, data=value.astype(dtype) if floats else value)


def _check_range(variable, dtype):
    """Raise `ValueError` for a variable with values that are not finite, or not finite as `dtype`."""
    if not keras.backend.is_float_dtype(variable.dtype):
        return
    value = keras.ops.convert_to_numpy(variable).astype("float64")
    if not np.isfinite(value).all():
        raise ValueError(f"{variable.path!r} must be finite. It has values that are not.")
    limit = float(np.finfo(dtype).max)
    largest = float(np.abs(value).max(initial=0))
    if largest > limit:
        raise ValueError(
            f"{variable.path!r} must be at most {limit:g} for {dtype}. Received: {largest:g}. Pass `dtype='float32'`."
        )
