"""Read files that may be damaged or hostile. Sizes are compared with the file's before anything is allocated."""

import collections
import contextlib
import json
import math
import os
import re
import reprlib
import stat

import numpy as np

from keras_wsl import files

_MAX_JSON_BYTES = 2**20
_MAX_DEPTH = 100  # Of nested lists and objects.
_TOO_DEEP = f"Lists and objects must be nested at most {_MAX_DEPTH} deep. Received: deeper ones."
_DIGEST = re.compile("[0-9a-f]{64}")


@contextlib.contextmanager
def open_file(path):
    """Open a regular file for reading bytes, without waiting for a FIFO or a device.

    Args:
        path: Path. Symbolic links are followed.

    Yields:
        The file.

    Raises:
        ValueError: If it is not a regular file.
        OSError: If it cannot be opened. `FileNotFoundError` if it is missing.
    """
    with open(files.check_regular(path), "rb", opener=_open_without_waiting) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # It was replaced after the check.
            raise ValueError(f"{path} must be a regular file. Received: it was replaced by another kind of file.")
        yield file


def _open_without_waiting(path, flags):
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # Windows has no such flag.


def read_bytes(path, limit):
    """Return the content of a file of at most `limit` bytes.

    Raises:
        ValueError: If it is larger, or not a regular file.
        OSError: If it cannot be read. `FileNotFoundError` if it is missing.
    """
    with open_file(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"{path} must have at most {limit:,} bytes. Received: {os.path.getsize(path):,} bytes.")
    return content


def read_json(path, limit=_MAX_JSON_BYTES, *, strict=False):
    """Return the value in a JSON file.

    Args:
        path: Path of the file.
        limit: Integer, its maximum size in bytes.
        strict: Whether to refuse NaN, infinite numbers and halves of surrogate pairs, which Python's parser accepts.

    Raises:
        ValueError: In one line with the path, if the file is too large or not valid. See `parse_json`.
        OSError: If it cannot be read. `FileNotFoundError` if it is missing.
    """
    content = read_bytes(path, limit)
    try:
        return parse_json(content, strict=strict)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read. {error} Write it again.") from error


def parse_json(content, *, strict=False):
    """Return the value of JSON in bytes.

    Args:
        content: Bytes of UTF-8 without a byte order mark.
        strict: Whether to refuse NaN, infinite numbers and halves of surrogate pairs, which Python's parser accepts.

    Raises:
        ValueError: In one line, if the bytes are not JSON or not UTF-8, a key of an object repeats, or lists and
            objects are nested more than 100 deep.
    """
    try:
        return _parse(content, strict)
    except RecursionError as error:
        raise ValueError(_TOO_DEEP) from error
    except ValueError as error:
        raise ValueError(f"The content must be JSON in UTF-8. Received: {error}.") from error


def _parse(content, strict):
    numbers = {"parse_constant": _finite, "parse_float": _finite} if strict else {}
    value = json.loads(content.decode(), object_pairs_hook=_object, **numbers)
    if strict:
        json.dumps(value, ensure_ascii=False).encode()
    level = [value]
    for _ in range(_MAX_DEPTH):
        level = [item for outer in level for item in _items(outer)]
    if any(isinstance(item, (dict, list)) for item in level):
        raise RecursionError
    return value


def _items(value):
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _finite(text):
    if not math.isfinite(number := float(text)):
        raise ValueError(f"a number that is not finite, {text[:20]}")
    return number


def _object(pairs):
    values = dict(pairs)
    if len(values) < len(pairs):
        counts = collections.Counter(name for name, _ in pairs)
        repeated = next(name for name, count in counts.items() if count > 1)
        raise ValueError(f"the key {reprlib.repr(repeated)} twice in one object")
    return values


def check_fields(values, fields, *, others=False):
    """Raise `ValueError`, in one line, unless a value of JSON is an object with valid fields.

    Args:
        values: Result of `parse_json`.
        fields: Dict of names to `(function that returns whether a value is valid, text of what is expected)`.
        others: Whether further fields are allowed.
    """
    if not isinstance(values, dict):
        raise ValueError(f"The content must be an object. Received: {reprlib.repr(values)}.")
    for name, (is_valid, expected) in fields.items():
        if name not in values:
            raise ValueError(f"`{name}` is missing. It must be {expected}.")
        if not is_valid(values[name]):
            raise ValueError(f"`{name}` must be {expected}. Received: {name}={reprlib.repr(values[name])}.")
    unknown = [name for name in values if name not in fields]
    if unknown and not others:
        raise ValueError(f"The field {reprlib.repr(unknown[0])} is unknown.")


def integer(low, high=2**63 - 1):
    """Return the field of an integer, not a boolean, in `[low, high]`."""
    return lambda value: type(value) is int and low <= value <= high, f"an integer in [{low}, {high}]"


def choice(*values):
    """Return the field of one of some strings."""
    return lambda value: isinstance(value, str) and value in values, f"one of {values}"


def optional(field):
    """Return the field of a value that may be `null`."""
    is_valid, expected = field
    return lambda value: value is None or is_valid(value), f"{expected}, or null"


NUMBER = (lambda value: type(value) in (int, float), "a number")
BOOLEAN = (lambda value: type(value) is bool, "true or false")
TEXT = (lambda value: isinstance(value, str) and len(value) <= 4096, "text of at most 4096 characters")
DIGEST = (
    lambda value: isinstance(value, str) and _DIGEST.fullmatch(value) is not None,
    "a SHA-256 of 64 hexadecimal digits",
)
OBJECT = (lambda value: isinstance(value, dict), "an object")


def read_array_header(file, size):
    """Read the header of an array in NumPy's format. The file must have exactly the bytes that it states.

    Args:
        file: Binary file at the beginning of the array. It is left at the first byte of the values.
        size: Integer, the number of bytes of header and values in the file.

    Returns:
        `(shape, dtype, order)`; the dtype has no Python objects, and the order is `"C"` or `"F"`.

    Raises:
        ValueError: In one line, if it is not an array or has another size.
    """
    try:
        version = np.lib.format.read_magic(file)
        if version != (1, 0):  # Headers of at most 64 KiB. `numpy.save` writes other versions only for longer ones.
            raise ValueError(f"version {version} of NumPy's format, expected (1, 0)")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    except Exception as error:  # NumPy evaluates a literal and makes a dtype of it. Both raise many classes of errors.
        text = str(error).partition("\n")[0][:200]
        raise ValueError(f"its header is not that of a NumPy array ({type(error).__name__}: {text})") from error
    if dtype.hasobject:
        raise ValueError("it has Python objects")
    if any(type(length) is not int or length < 0 for length in shape):
        raise ValueError(f"its shape is {reprlib.repr(shape)}")
    if size != file.tell() + math.prod(shape) * dtype.itemsize:
        raise ValueError(
            f"it has {size:,} bytes, which does not match dtype {dtype} and shape {reprlib.repr(shape)} in its header"
        )
    return shape, dtype, "F" if fortran else "C"


def map_array(path, shape, dtype):
    """Map a `.npy` file into memory for reading.

    Args:
        path: Path of the file.
        shape: Its expected shape, a tuple of integers.
        dtype: Its expected NumPy dtype.

    Returns:
        `numpy.memmap`.

    Raises:
        ValueError: In one line with the path, if it is damaged, not a file, or of another shape or dtype.
    """
    try:
        with open_file(path) as file:
            header = read_array_header(file, os.fstat(file.fileno()).st_size)
            if header == (shape, dtype, "C"):
                return np.memmap(file, dtype, "r", file.tell(), shape)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not a complete file: {error}.") from error
    raise ValueError(
        f"{path} must be {dtype} of shape {shape} in C order. Received: {header[1]} of shape {reprlib.repr(header[0])} "
        f"in {header[2]} order."
    )
