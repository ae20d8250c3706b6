"""Labels and weights that `fit` is given as arrays, looked at once: what a step would take for something else."""

import numpy as np

from keras_wsl.ops import is_number

_NUMBERS = "iufb"  # NumPy's kinds of dtypes.


def check_arrays(y, sample_weight=None, class_weight=None):
    """Raises `ValueError` unless arrays can be labels and weights; what is no NumPy array or list is left alone.

    Args:
        y: Labels, or a dict that has them.
        sample_weight: `None`, or weights of the examples.
        class_weight: `None`, or a dict of classes to weights.
    """
    labels = y.get("labels") if isinstance(y, dict) else y
    if isinstance(labels, (list, tuple)):
        raise ValueError(
            f"Labels must be one array. Received: a {type(labels).__name__} of {len(labels)}. Give np.asarray(labels)."
        )
    if isinstance(labels, np.ndarray):
        _check_labels(labels)
    if isinstance(sample_weight, np.ndarray):
        _check_weights("sample_weight", sample_weight)
    if class_weight is not None:
        if not isinstance(class_weight, dict) or not all(map(is_number, class_weight.values())):
            raise ValueError(
                f"`class_weight` must be a dict of classes to numbers. Received: {type(class_weight).__name__}. Give "
                "such as {0: 1.0, 1: 2.5}."
            )
        _check_weights("class_weight", np.array(list(class_weight.values())))


def _check_labels(labels):
    if not len(np.atleast_1d(labels)) or not labels.ndim:
        raise ValueError(f"Expected one label an example. Received: labels of shape {labels.shape}. Give some data.")
    if labels.dtype.kind not in _NUMBERS:
        raise ValueError(
            f"Labels must be the classes' numbers, or distributions. Received: {labels.dtype} such as "
            f"{labels.flat[0]!r}. Number the classes: np.unique(labels, return_inverse=True)[1]."
        )
    if labels.dtype.kind != "f":
        return
    wrong, broken = ~np.isfinite(labels), labels != np.floor(labels)
    if labels.ndim == 1:
        wrong, expected = wrong | broken, "whole numbers"
    else:  # Where all are whole they may be a sequence's, of which -1 is in the padding.
        wrong, expected = wrong | ((labels < 0) & broken.any()), "finite, and not negative as probabilities"
    if wrong.any():
        raise ValueError(
            f"Labels must be {expected}. Received: {labels[wrong][0]} in row {int(np.argwhere(wrong)[0, 0])}; "
            f"{wrong.sum()} of {labels.size} are wrong. Mend the data."
        )


def _check_weights(name, weights):
    wrong = np.ones(weights.shape, bool)
    if weights.dtype.kind in _NUMBERS:
        wrong = ~(np.isfinite(weights) & (weights >= 0))
    if wrong.any():
        raise ValueError(
            f"`{name}` must be finite numbers that are not negative. Received: {weights[wrong][0].item()!r} among "
            f"{weights.size}. Give 0 to what is not to count."
        )
