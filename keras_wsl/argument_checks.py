"""Checks of arguments. Each returns the argument, or raises `ValueError` with its name and the value received."""

import difflib
import numbers
import operator

import numpy as np


class InputError(ValueError):
    """An error of the data of a step: a shape or type differs from what was expected.

    Keras appends paragraphs on a layer's arguments to the message of an error, unless it has the attribute below.
    """

    _keras_call_info_injected = True


def did_you_mean(name, known):
    """Return a sentence that suggests the closest of the `known` names, with a leading space; or an empty string."""
    near = difflib.get_close_matches(name, known, n=1) if isinstance(name, str) else ()
    return f" Did you mean {near[0]!r}?" if near else ""


def is_number(value):
    """Return whether a value is a real number of Python or NumPy, and no boolean."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def check_temperature(value, name="temperature"):
    """Return a positive number as a float."""
    if not is_number(value) or not 0 < value < float("inf"):
        raise ValueError(f"`{name}` must be a positive number. Received: {name}={value!r}.")
    return float(value)


def check_positive_int(value, name):
    """Return an integer of at least 1 as an `int`."""
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1 or isinstance(value, bool):
        raise ValueError(f"`{name}` must be a positive integer. Received: {name}={value!r}.")
    return number


def check_non_negative(value, name="weight"):
    """Return a finite number of at least 0 as a float."""
    if not is_number(value) or not 0 <= value < float("inf"):
        raise ValueError(f"`{name}` must be a non-negative number. Received: {name}={value!r}.")
    return float(value)


def check_fraction(value, name):
    """Return a number in [0, 1] as a float."""
    if not is_number(value) or not 0 <= value <= 1:
        raise ValueError(f"`{name}` must be a number in [0, 1]. Received: {name}={value!r}.")
    return float(value)


def check_bool(value, name):
    """Return a boolean. Text, such as "false", would always be true."""
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"`{name}` must be True or False. Received: {name}={value!r}.")
    return bool(value)
