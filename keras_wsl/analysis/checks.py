"""Validation of the NumPy logits and labels that the analyses take."""

import numpy as np


def validate_logits(name, logits):
    """Return logits as float64 minus the maximum of each row: shape `(n, classes)`.

    This does not change any softmax, and it keeps the precision of differences when dividing by a temperature.

    Raises:
        ValueError: If the shape is wrong, there is no example or only one class, a value is not finite, or all rows are
            probability distributions.
    """
    logits = np.asarray(logits, "float64")
    if logits.ndim != 2 or len(logits) < 1 or logits.shape[1] < 2:
        raise ValueError(
            f"`{name}` must have the shape (examples, classes), with at least one example and two classes. Received: "
            f"shape {logits.shape}."
        )
    finite = np.isfinite(logits).all(axis=-1)
    if not finite.all():
        raise ValueError(
            f"`{name}` must be finite. Received: {(~finite).sum()} of {len(logits)} rows are not; the first is "
            f"row {int(np.argmin(finite))}. Use a network whose training did not diverge."
        )
    if (logits >= 0).all() and np.allclose(logits.sum(axis=-1), 1, rtol=0, atol=1e-5):
        raise ValueError(
            f"`{name}` must be logits. Received: rows that are non-negative and sum to 1, as probabilities do. Pass "
            "the network's outputs before the softmax, or the logarithms of the probabilities."
        )
    return logits - logits.max(axis=-1, keepdims=True)


def validate_logit_pair(student_logits, teacher_logits):
    """Return the results of `validate_logits` for two networks, each of shape `(n, classes)`.

    Raises:
        ValueError: See `validate_logits`; also if the shapes differ.
    """
    student = validate_logits("student_logits", student_logits)
    teacher = validate_logits("teacher_logits", teacher_logits)
    if student.shape != teacher.shape:
        raise ValueError(
            "`student_logits` and `teacher_logits` must be of the same examples and classes. Received: shapes "
            f"{student.shape} and {teacher.shape}."
        )
    return student, teacher


def validate_labels(labels, shape):
    """Return integer labels as int64, shape `(n,)`.

    Args:
        labels: Integers, shape `(n,)` or `(n, 1)`.
        shape: Shape of the logits, `(n, classes)`.

    Raises:
        ValueError: If the labels are not integers, their number differs from the rows of the logits, or one is out of
            range.
    """
    labels, (count, classes) = np.asarray(labels), shape
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape not in ((count,), (count, 1)):
        raise ValueError(
            f"`labels` must be integers of shape ({count},), one per row of the logits. Received: {labels.dtype} "
            f"of shape {labels.shape}. For distributions, pass the argmax."
        )
    labels = labels.astype("int64").reshape(count)
    wrong = (labels < 0) | (labels >= classes)
    if wrong.any():
        raise ValueError(
            f"`labels` must be in [0, {classes}), because there are {classes} logits. Received: {labels[wrong][0]} in "
            f"row {int(np.argmax(wrong))}; {wrong.sum()} of {count} are out of range."
        )
    return labels


def mean_or_none(values):
    """Return the mean of per-example values, or `None` if there is no example."""
    return float(values.mean()) if len(values) else None
