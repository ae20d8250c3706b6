"""Top-k logits of a teacher: the k highest, that of the label, and the mass of the other classes."""

from typing import NamedTuple

import numpy as np
from keras import ops

from keras_wsl.ops import class_indices, is_class, log_softmax

_LOG_ZERO = -1e30


class TopKLogits(NamedTuple):
    r"""Logits of which some are known; of the others, the mass at some temperatures is known.

    Args:
        known: Floats, shape `(batch, classes)`: the known logits, and 0 for the others.
        is_rest: Booleans of the same shape: which logits are not known.
        rest: Dict of temperatures $\tau$, as in `temperature_key`, to $\log \sum_{c \in rest} e^{z_c / \tau}$, shape
            `(batch,)`.
    """

    known: object
    is_rest: object
    rest: dict

    def to_dense(self, temperature, student=None):
        r"""Return logits whose softmax at $\tau$ is the teacher's for known classes and has its mass in the others.

        $$z_c = \tau \left( r_\tau + \log \frac{e^{s_c / \tau}}{\sum_{j \in rest} e^{s_j / \tau}} \right)$$

        The mass is distributed over the other classes as by the student's logits $s_c$, a constant. The divergence then
        equals that of the known classes and one class for all others, and has no gradient between these.

        Args:
            temperature: Positive float.
            student: The student's logits, shape `(batch, classes)`; `None` for equal parts.

        Raises:
            ValueError: If the mass at this temperature is not known.
        """
        key = temperature_key(temperature)
        if key not in self.rest:
            raise ValueError(
                f"The temperature of top-k soft labels must be one of {', '.join(self.rest)}. Received: {key}. Write "
                "the soft labels again for that temperature, or without top-k."
            )
        logits = ops.zeros_like(self.known) if student is None else ops.cast(student, "float32")
        log_parts = ops.stop_gradient(log_softmax(ops.where(self.is_rest, logits, _LOG_ZERO), temperature))
        return ops.where(self.is_rest, temperature * (self.rest[key][:, None] + log_parts), self.known)


def temperature_key(temperature):
    """Return a temperature as a key of dicts, such as `"4"` or `"0.5"`."""
    return f"{temperature:g}"


def row_type(k, classes, temperatures):
    """Return the NumPy dtype of an encoded row."""
    number = "<u2" if classes <= 2**16 else "<u4"
    shape = (len(temperatures),)
    return np.dtype([("classes", number, (k,)), ("logits", "<f2", (k,)), ("label", "<f4"), ("rest", "<f4", shape)])


def encode(logits, labels, k, temperatures):
    r"""Encode logits as rows of `row_type`: the k highest, that of the label, and $\log \sum_{rest} e^{z / \tau}$.

    The highest logit of the row is subtracted from all, which changes no softmax: float16 is then precise if
    probabilities are large.

    Args:
        logits: Floats, shape `(n, classes)`.
        labels: Integers, shape `(n,)`.
        k: Integer in `[1, classes]`.
        temperatures: Positive floats.
    """
    z = np.asarray(logits, "float64")
    z = z - z.max(axis=1, keepdims=True)
    rows = np.arange(len(z))
    top = np.argsort(-z, axis=1, kind="stable")[:, :k]
    encoded = np.empty(len(z), row_type(k, z.shape[1], temperatures))
    encoded["classes"] = top
    encoded["logits"] = np.maximum(np.take_along_axis(z, top, axis=1), np.finfo("float16").min)
    encoded["label"] = np.maximum(z[rows, labels], np.finfo("float32").min)
    rest = z.copy()
    np.put_along_axis(rest, top, -np.inf, axis=1)
    rest[rows, labels] = -np.inf
    with np.errstate(divide="ignore"):
        masses = [np.log(np.exp(rest / temperature).sum(axis=1)) for temperature in temperatures]
    encoded["rest"] = np.maximum(np.stack(masses, axis=1), _LOG_ZERO)
    return encoded


def decode(rows, temperatures):
    """Return encoded rows as a dict of arrays for `expand`."""
    return {
        "classes": rows["classes"].astype("int32"),
        "logits": rows["logits"].astype("float32"),
        "label": np.ascontiguousarray(rows["label"]),
        "rest": {temperature_key(t): np.ascontiguousarray(rows["rest"][:, i]) for i, t in enumerate(temperatures)},
    }


def expand(encoded, labels, classes):
    """Return the `TopKLogits` of a batch.

    Args:
        encoded: Dict of `"classes"` and `"logits"`, `(batch, k)`; `"label"`, the label's logit, `(batch,)`; and
            `"rest"`, a dict of temperatures, as in `temperature_key`, to `(batch,)`.
        labels: Integers, shape `(batch,)`, or distributions, whose most probable class counts.
        classes: Integer, the number of classes.
    """
    label_logit = ops.cast(encoded["label"], "float32")
    empty = label_logit[:, None] * ops.zeros((1, classes))
    top = ops.cast(encoded["classes"], "int32")
    rows = ops.broadcast_to(ops.arange(ops.shape(top)[0], dtype="int32")[:, None], ops.shape(top))
    indices = ops.reshape(ops.stack([rows, top], axis=-1), (-1, 2))
    known = ops.scatter_update(empty, indices, ops.reshape(ops.cast(encoded["logits"], "float32"), (-1,)))
    rest = ops.scatter_update(empty + 1.0, indices, ops.reshape(ops.zeros_like(top, dtype="float32"), (-1,)))
    is_label = is_class(class_indices(labels, empty), empty)
    return TopKLogits(
        ops.where(is_label, label_logit[:, None], known),
        ops.logical_and(rest > 0, ops.logical_not(is_label)),
        {temperature: ops.cast(mass, "float32") for temperature, mass in encoded["rest"].items()},
    )
