"""Checks of the labels and weights that `fit` and `evaluate` get as arrays, before the first step."""

import numpy as np

from keras_wsl.argument_checks import is_number

_NUMBERS = "iufb"  # NumPy's kinds of dtypes.


def get_class_weights(class_weight, logits_shape):
    """Return the weight of each class, by default 1: float32 NumPy array, shape `(classes,)`.

    Args:
        class_weight: Dict of class indices to finite, non-negative weights.
        logits_shape: Shape of the student's logits.

    Raises:
        ValueError: If `class_weight` is not such a dict, or the logits are of sequences.
    """
    classes = logits_shape[-1]
    if not isinstance(class_weight, dict) or not all(map(is_number, class_weight.values())):
        raise ValueError(
            f"`class_weight` must be a dict of classes to numbers. Received: {type(class_weight).__name__}. Pass, for "
            "example, {0: 1.0, 1: 2.5}."
        )
    if wrong := [key for key in class_weight if not _is_class(key, classes)]:
        raise ValueError(
            f"The keys of `class_weight` must be class indices, integers in [0, {classes}). Received: "
            f"{wrong[0]!r}, a {type(wrong[0]).__name__}."
        )
    if len(logits_shape) > 2:
        raise ValueError(
            "`class_weight` must be None for sequences, because a weight applies to an example and not to its "
            f"positions. Received: class_weight={class_weight!r}. Pass `sample_weight` of shape (examples,)."
        )
    values = np.array(list(class_weight.values()), "float32")
    _check_weights("class_weight", values)
    weights = np.ones(classes, "float32")
    weights[[int(key) for key in class_weight]] = values
    return weights


def _is_class(key, classes):
    return isinstance(key, (int, np.integer)) and not isinstance(key, bool) and 0 <= key < classes


def validate_fit_inputs(y, sample_weight=None, logits_shape=None):
    """Raise `ValueError` unless arrays can be labels and weights; what is no NumPy array or list is left alone.

    Args:
        y: Labels, or a dict with the key `"labels"`.
        sample_weight: `None`, or one weight per example.
        logits_shape: `None`, or the shape of the student's logits, `(None, ..., classes)`, by which distributions are
            distinguished from integers.
    """
    labels = y.get("labels") if isinstance(y, dict) else y
    if isinstance(labels, (list, tuple)):
        raise ValueError(
            f"Labels must be one array. Received: a {type(labels).__name__} of {len(labels)}. Pass np.asarray(labels)."
        )
    if isinstance(labels, np.ndarray):
        _check_labels(labels, logits_shape)
    if isinstance(y, dict) and isinstance(y.get("index"), np.ndarray):
        _check_int32("The index of an example", y["index"])
    if isinstance(sample_weight, np.ndarray):
        if not sample_weight.ndim:
            raise ValueError(
                f"`sample_weight` must be one number per example. Received: {sample_weight!r}, without an axis of "
                "examples. Pass shape (examples,)."
            )
        _check_weights("sample_weight", sample_weight)


def _check_int32(name, values):
    """Raise `ValueError` for numbers that exceed int32, to which JAX casts all integers."""
    wrong = (values >= 2**31) | (values < -(2**31)) if values.dtype.kind in "iuf" else np.zeros(values.shape, bool)
    if wrong.any():
        raise ValueError(
            f"{name} must be below 2**31. Received: {values[wrong][0]} in row {int(np.argwhere(wrong)[0, 0])}; "
            f"{wrong.sum()} of {values.size} are too large."
        )


def _check_labels(labels, logits_shape):
    if not len(np.atleast_1d(labels)) or not labels.ndim:
        raise ValueError(
            f"Labels must be one per example. Received: labels of shape {labels.shape}. Pass at least one example."
        )
    if labels.dtype.kind not in _NUMBERS:
        raise ValueError(
            f"Labels must be class indices or distributions. Received: {labels.dtype} such as "
            f"{labels.flat[0]!r}. Convert them: np.unique(labels, return_inverse=True)[1]."
        )
    wrong, broken = ~np.isfinite(labels), labels != np.floor(labels)
    if labels.ndim == 1:
        wrong, expected = wrong | broken, "whole numbers"
    else:  # If all are integers, they may be of sequences, whose padding has the label -1.
        probabilities = broken.any() or _are_rows_of_classes(labels.shape, logits_shape)
        wrong, expected = wrong | ((labels < 0) & probabilities), "finite, and non-negative if they are probabilities"
    if wrong.any():
        raise ValueError(
            f"Labels must be {expected}. Received: {labels[wrong][0]} in row {int(np.argwhere(wrong)[0, 0])}; "
            f"{wrong.sum()} of {labels.size} are wrong. Correct the data."
        )
    _check_int32("Labels", labels)


def _are_rows_of_classes(shape, logits_shape):
    return logits_shape is not None and len(logits_shape) == len(shape) == 2 and shape[1] == logits_shape[1]


def _check_weights(name, weights):
    wrong = np.ones(weights.shape, bool)
    if weights.dtype.kind in _NUMBERS:
        wrong = ~(np.isfinite(weights) & (weights >= 0))
    if wrong.any():
        raise ValueError(
            f"`{name}` must be finite, non-negative numbers. Received: {weights[wrong][0].item()!r} among "
            f"{weights.size}. Use 0 for what must not count."
        )


def check_shared_variables(distiller):
    """Raise `ValueError` if training would change a variable of a teacher, because student or losses have it too.

    Training changes trainable variables, those that the student's forward pass assigns, and the state of layers in
    losses that are not frozen.
    """
    variables = {id(variable) for variable in distiller.variables}
    for model in distiller.teachers.models:
        shared = [variable for variable in model.variables if id(variable) in variables]
        if not shared:
            continue
        changed = {id(variable) for variable in distiller.trainable_variables}
        changed |= distiller.student_features.updated_in_training()
        for layer in distiller._flatten_layers():  # Symbolic layers on Torch draw nothing from their seeds.
            changed |= {id(generator.state) for generator in layer._seed_generators}
        for layer in (layer for loss in distiller.distillation_losses for layer in loss._flatten_layers()):
            changed |= {id(variable) for variable in layer._non_trainable_variables if layer.trainable}
        if names := [variable.path for variable in shared if id(variable) in changed]:
            raise ValueError(
                f"The teacher {model.name!r} must share no variables that training changes. Received: {len(names)} "
                f"variables that the student or a loss has too: {', '.join(names[:3])}{', ...' if names[3:] else ''}. "
                "Freeze their layers (`layer.trainable = False`), or clone them (`keras.models.clone_model`); the "
                "seeds of random layers change even if these are frozen."
            )
