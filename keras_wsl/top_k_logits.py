"""Encode a teacher's logits as the k highest, the label's, and the probability mass of the others."""

from typing import NamedTuple

import numpy as np
from keras import ops

from keras_wsl.ops import class_indices, is_class, log_softmax

_NOTHING = -1e30  # The logarithm of zero mass.


class TopKLogits(NamedTuple):
    r"""Logits of which some are known, and the mass of the others at some temperatures.

    Args:
        known: Floats, shape `(batch, classes)`: the known logits, and 0 elsewhere.
        is_rest: Booleans of that shape: whether a logit is not known.
        rest: Dict of temperatures $\tau$, as text, to $\log \sum_{c \in rest} e^{z_c / \tau}$, shape `(batch,)`.
    """

    known: object
    is_rest: object
    rest: dict

    def to_dense(self, temperature, student=None):
        r"""Return logits whose softmax at $\tau$ equals the teacher's for known classes, and its mass for the rest:

        $$z_c = \tau \left( r_\tau + \log \frac{e^{s_c / \tau}}{\sum_{j \in rest} e^{s_j / \tau}} \right)$$

        The mass is distributed over the rest in proportion to the student's softmax of $s_c$, taken as a constant. The
        divergence is then that of the known classes and one class for all others, and its gradient does not change the
        proportions among these.

        Args:
            temperature: Positive float.
            student: The student's logits, shape `(batch, classes)`. Default: the rest have equal probabilities.

        Raises:
            ValueError: If the mass is not known at this temperature.
        """
        key = temperature_key(temperature)
        if key not in self.rest:
            raise ValueError(
                f"The temperature must be one of those of the top-k soft labels, {', '.join(self.rest)}. Received: "
                f"{key}. Write the soft labels again with this temperature, or with all logits."
            )
        shares = ops.zeros_like(self.known) if student is None else ops.cast(student, "float32")
        shares = ops.stop_gradient(log_softmax(ops.where(self.is_rest, shares, _NOTHING), temperature))
        return ops.where(self.is_rest, temperature * (self.rest[key][:, None] + shares), self.known)


def temperature_key(temperature):
    """Return a temperature as a key of dicts: `"4"`, `"0.5"`."""
    return f"{temperature:g}"


def row_type(k, classes, temperatures):
    """Return the NumPy dtype of an encoded row."""
    number = "<u2" if classes <= 2**16 else "<u4"
    shape = (len(temperatures),)
    return np.dtype([("classes", number, (k,)), ("logits", "<f2", (k,)), ("label", "<f4"), ("rest", "<f4", shape)])


def encode(logits, labels, k, temperatures):
    r"""Return rows of `row_type`: the k highest logits, the label's, and $\log \sum_{rest} e^{z / \tau}$.

    The row's highest logit is subtracted from all, which does not change the softmax, so that float16 is precise for
    large probabilities.

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
    found = np.empty(len(z), row_type(k, z.shape[1], temperatures))
    found["classes"] = top
    found["logits"] = np.maximum(np.take_along_axis(z, top, axis=1), np.finfo("float16").min)
    found["label"] = np.maximum(z[rows, labels], np.finfo("float32").min)
    rest = z.copy()
    np.put_along_axis(rest, top, -np.inf, axis=1)
    rest[rows, labels] = -np.inf
    with np.errstate(divide="ignore"):
        masses = [np.log(np.exp(rest / temperature).sum(axis=1)) for temperature in temperatures]
    found["rest"] = np.maximum(np.stack(masses, axis=1), _NOTHING)
    return found


def decode(rows, temperatures):
    """Decode rows to the dict that batches contain, the first argument of `expand`."""
    return {
        "classes": rows["classes"].astype("int32"),
        "logits": rows["logits"].astype("float32"),
        "label": np.ascontiguousarray(rows["label"]),
        "rest": {temperature_key(t): np.ascontiguousarray(rows["rest"][:, i]) for i, t in enumerate(temperatures)},
    }


def expand(kept, labels, classes):
    """Return the `TopKLogits` of a batch.

    Args:
        kept: Dict of `"classes"` and `"logits"`, `(batch, k)`; `"label"`, the label's logit, `(batch,)`; and `"rest"`,
            a dict of temperatures as text to `(batch,)`.
        labels: Integers, shape `(batch,)`, or distributions, of which the most probable class is used.
        classes: Integer, the number of classes.
    """
    label_logit = ops.cast(kept["label"], "float32")
    empty = label_logit[:, None] * ops.zeros((1, classes))
    top = ops.cast(kept["classes"], "int32")
    rows = ops.broadcast_to(ops.arange(ops.shape(top)[0], dtype="int32")[:, None], ops.shape(top))
    places = ops.reshape(ops.stack([rows, top], axis=-1), (-1, 2))
    known = ops.scatter_update(empty, places, ops.reshape(ops.cast(kept["logits"], "float32"), (-1,)))
    rest = ops.scatter_update(empty + 1.0, places, ops.reshape(ops.zeros_like(top, dtype="float32"), (-1,)))
    is_label = is_class(class_indices(labels, empty), empty)
    return TopKLogits(
        ops.where(is_label, label_logit[:, None], known),
        ops.logical_and(rest > 0, ops.logical_not(is_label)),
        {temperature: ops.cast(mass, "float32") for temperature, mass in kept["rest"].items()},
    )
