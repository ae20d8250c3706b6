"""The file format of backups: a header with a SHA-256, then JSON and arrays, which are validated when read."""

import hashlib
import io
import json
import reprlib
import zipfile

import numpy as np

from keras_wsl import untrusted

MAGIC = b"keras_wsl backup 1"


class CorruptBackupError(Exception):
    """The content of a file is not what was written."""


def pack(run, arrays):
    """Return `[header, NumPy's zip file]`. The digest in the header covers all following bytes."""
    buffer = io.BytesIO()
    run = np.frombuffer(json.dumps(run).encode(), dtype="uint8")
    np.savez(buffer, run=run, **{str(i): array for i, array in enumerate(arrays)})
    content = buffer.getbuffer()
    return [MAGIC + b"\n" + hashlib.sha256(content).hexdigest().encode() + b"\n", content]


def unpack(content):
    """Return the `run` dict given to `pack`, with its arrays in `"arrays"`.

    Raises:
        CorruptBackupError: If the content is not a valid backup.
    """
    size = len(MAGIC) + 66
    if content[: len(MAGIC) + 1] != MAGIC + b"\n" or content[size - 1 : size] != b"\n":
        raise CorruptBackupError(f"{len(content)} bytes without the header of a backup")
    payload = memoryview(content)[size:]
    if hashlib.sha256(payload).hexdigest().encode() != content[len(MAGIC) + 1 : size - 1]:
        raise CorruptBackupError("its SHA-256 is not the recorded value")
    try:
        arrays = _read_arrays(io.BytesIO(payload), len(payload))
        run = untrusted.parse_json(arrays.pop("run").tobytes())
        untrusted.check_fields(run, _RUN)
        run["arrays"] = [arrays[str(i)] for i in range(len(arrays))]
        _check_arrays(run)
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:  # Valid digest, other content.
        raise CorruptBackupError(f"its content is not a backup: {error}") from error
    return run


def _read_arrays(file, size):
    """Return the arrays of NumPy's zip file by name.

    Raises:
        ValueError: If they would take more memory than the file has bytes.
    """
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1 for member in members):
            raise ValueError("its members are compressed or encrypted")
        if sum(member.file_size for member in members) > size:
            raise ValueError("its members are larger than the file")
        for member in members:
            with archive.open(member) as array_file:
                untrusted.read_array_header(array_file, member.file_size)
    file.seek(0)
    with np.load(file, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _check_arrays(run):
    """Raise `ValueError` if the arrays do not match the variables and the callbacks' states."""
    described = run["variables"] + run["metrics"]
    arrays = run["arrays"]
    if len(arrays) < len(described):
        raise ValueError(f"{len(arrays)} arrays for {len(described)} variables")
    for (path, shape, _), array in zip(described, arrays):
        if list(array.shape) != shape or array.dtype.kind not in "biufc":
            raise ValueError(f"an array of {array.dtype} and shape {array.shape} for the variable {reprlib.repr(path)}")
    for name, state in run["watched"]:
        try:
            decode({"dict": state}, arrays)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"a state of {reprlib.repr(name)} that cannot be read ({error})") from error


def _has_types(value, *types):
    """Return whether a value is a list whose items have these types, in this order."""
    return isinstance(value, list) and [type(item) for item in value] == [*types]


def _is_history(value):
    return isinstance(value, list) and all(
        isinstance(row, dict)
        and type(row.get("epoch")) is int
        and all(type(number) in (int, float, list) for number in row.values())
        for row in value
    )


def _is_list_of(*types):
    return lambda value: isinstance(value, list) and all(_has_types(item, *types) for item in value)


_RUN = {
    "position": (lambda value: _has_types(value, int, int) and 0 <= min(value), "an epoch and a step of at least 0"),
    "finished": untrusted.BOOLEAN,
    "history": (_is_history, "a list of epochs' logs"),
    "identity": untrusted.OBJECT,
    "conditions": untrusted.OBJECT,
    "setting": untrusted.OBJECT,
    "variables": (_is_list_of(str, list, str), "a list of variables"),
    "metrics": (_is_list_of(str, list, str), "a list of variables"),
    "watched": (_is_list_of(str, dict), "a list of callbacks and their states"),
}


def encode(value, arrays):
    """Return a value in JSON-serializable form, and append its arrays to `arrays`."""
    if isinstance(value, (np.ndarray, np.generic)):
        arrays.append(np.asarray(value))
        return {"array": len(arrays) - 1}
    if type(value) in (list, tuple):
        return {type(value).__name__: [encode(item, arrays) for item in value]}
    if type(value) is dict:
        return {"dict": {name: encode(item, arrays) for name, item in value.items()}}
    return value


def decode(value, arrays):
    """Return the value that `encode` encoded."""
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "array":
        return arrays[content][()]  # A NumPy scalar if the shape is ().
    if kind == "dict":
        return {name: decode(item, arrays) for name, item in content.items()}
    return {"list": list, "tuple": tuple}[kind](decode(item, arrays) for item in content)
