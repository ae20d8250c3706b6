"""What the tools take and give: logits and labels of the same examples, in NumPy."""

import numpy as np


def checked_logits(name, logits):
    """Return logits as float64, less each row's highest: shape `(n, classes)`.

    No softmax changes by that, and after a division by a temperature the differences keep their digits.

    Raises:
        ValueError: If the shape is another, there is no example or only one class, a value is not finite, or every row
            is a probability distribution.
    """
    logits = np.asarray(logits, "float64")
    if logits.ndim != 2 or len(logits) < 1 or logits.shape[1] < 2:
        raise ValueError(
            f"`{name}` must have the shape (examples, classes), of one example and two classes at least. Received: "
            f"shape {logits.shape}."
        )
    finite = np.isfinite(logits).all(axis=-1)
    if not finite.all():
        raise ValueError(
            f"`{name}` must be finite. Received: {(~finite).sum()} of {len(logits)} rows that are not; the first is "
            f"row {int(np.argmin(finite))}. Judge a network whose training did not diverge."
        )
    if (logits >= 0).all() and np.allclose(logits.sum(axis=-1), 1, rtol=0, atol=1e-5):
        raise ValueError(
            f"`{name}` must be logits. Received: rows that are not negative and add up to 1, as probabilities do. Pass "
            "the network's outputs before the softmax, or the logarithms of the probabilities."
        )
    return logits - logits.max(axis=-1, keepdims=True)


def checked_pair(teacher_logits, student_logits):
    """Return `checked_logits` of two networks, each of shape `(n, classes)`.

    Raises:
        ValueError: As of `checked_logits`; if the shapes differ.
    """
    pair = checked_logits("teacher_logits", teacher_logits), checked_logits("student_logits", student_logits)
    if pair[0].shape != pair[1].shape:
        raise ValueError(
            "Teacher and student must give logits of the same examples and classes. Received: shapes "
            f"{pair[0].shape} and {pair[1].shape}."
        )
    return pair


def checked_labels(labels, shape):
    """Integer labels as int64, shape `(n,)`.

    Args:
        labels: Integers, shape `(n,)` or `(n, 1)`.
        shape: That of the logits, `(n, classes)`.

    Raises:
        ValueError: If they are no integers, not one for each row of the logits, or out of range.
    """
    labels, (count, classes) = np.asarray(labels), shape
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape not in ((count,), (count, 1)):
        raise ValueError(
            f"`labels` must be integers of shape ({count},), one for each row of the logits. Received: {labels.dtype} "
            f"of shape {labels.shape}. Of distributions, take the argmax."
        )
    labels = labels.astype("int64").reshape(count)
    wrong = (labels < 0) | (labels >= classes)
    if wrong.any():
        raise ValueError(
            f"`labels` must be in [0, {classes}), as there are {classes} logits. Received: {labels[wrong][0]} in row "
            f"{int(np.argmax(wrong))}; {wrong.sum()} of {count} are out of range."
        )
    return labels


def mean_of(values):
    """The mean of some examples' values; `None` of no example."""
    return float(values.mean()) if len(values) else None
