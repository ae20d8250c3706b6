"""The state of variables and callbacks in the form in which a backup holds it."""

import inspect
import re

import keras
import numpy as np

from keras_wsl.callbacks.backup_file import encode


def to_array(variable):
    """Return the value of a variable as a NumPy array; bfloat16 as float32."""
    array = keras.ops.convert_to_numpy(variable)
    # NumPy's files have no bfloat16. float32 represents all its values, and assign converts them back.
    return array.astype("float32") if array.dtype.kind == "V" else array


def describe_variables(variables):
    """Return `[path, shape, dtype]` of each variable."""
    return [[variable.path, list(variable.shape), variable.dtype] for variable in variables]


def variables_match(saved, current):
    """Return whether two descriptions have the same path, shape and dtype, except for numbers in the path."""
    # Keras numbers names within a process (dense, dense_1), and those of dropout's generators cannot be chosen.
    paths = [re.sub(r"_\d+(?=/|$)", "", description[0]) for description in (saved, current)]
    return paths[0] == paths[1] and saved[1:] == current[1:]


def list_differences(saved, current, source="the backup"):
    """List the entries in which two dicts differ, as text with both values.

    Args:
        saved: Dict of the saved values.
        current: Dict of the current values.
        source: Where `saved` is from, for the text.

    Returns:
        List of strings, sorted by the entries' names.
    """
    return [
        f"{name if name.isprintable() else repr(name)}: {_value(saved, name)} in {source}, {_value(current, name)} now"
        for name in sorted(saved.keys() | current.keys())
        if _value(saved, name) != _value(current, name)
    ]


def _value(values, name):
    return repr(values[name]) if name in values else "absent"


def get_callback_state(callback, arrays):
    """Return the JSON-serializable attributes of a callback, and append their arrays to `arrays`."""
    # EarlyStopping changes the sign of its min_delta in its first epoch: if restored, it would be changed twice.
    config = {"params"}
    for cls in type(callback).__mro__:
        if cls.__module__.split(".")[0] == "keras" and "__init__" in vars(cls):
            config.update(inspect.signature(cls.__init__).parameters)
    return {
        name: encode(value, arrays)
        for name, value in vars(callback).items()
        if name not in config and _is_serializable(value)
    }


def _is_serializable(value):
    """Return whether a backup can hold a value. It cannot hold functions, models and open files."""
    if isinstance(value, (np.ndarray, np.generic)):
        return value.dtype.kind in "biufcSU"
    if type(value) in (list, tuple):
        return all(_is_serializable(item) for item in value)
    if type(value) is dict:
        return all(type(name) is str and _is_serializable(item) for name, item in value.items())
    return value is None or type(value) in (bool, int, float, str)
