"""A teacher's row of logits by its k highest, the label's, and the mass of the rest."""

from typing import NamedTuple

import numpy as np
from keras import ops

from keras_wsl.ops import class_indices, is_class, log_softmax

_NOTHING = -1e30  # The logarithm of no mass.


class TopKLogits(NamedTuple):
    r"""Logits of which some are known, and of the rest their mass at some temperatures.

    Args:
        known: Floats, shape `(batch, classes)`: the logits that are known, and 0 elsewhere.
        is_rest: Booleans of that shape: which are not.
        rest: Dict of temperatures $\tau$, as text, to $\log \sum_{c \in rest} e^{z_c / \tau}$, shape `(batch,)`.
    """

    known: object
    is_rest: object
    rest: dict

    def to_dense(self, temperature, student=None):
        r"""Logits whose softmax at $\tau$ is the teacher's where known, and has its mass in the rest:

        $$z_c = \tau \left( r_\tau + \log \frac{e^{s_c / \tau}}{\sum_{j \in rest} e^{s_j / \tau}} \right)$$

        The rest share that mass as the student does, $s_c$, taken as a constant: the divergence is then that of the
        known classes and one class for all others, and its gradient pushes none of these against another.

        Args:
            temperature: Positive float.
            student: The student's logits, shape `(batch, classes)`; without them the rest share alike.

        Raises:
            ValueError: If the mass is not known at this temperature.
        """
        key = temperature_key(temperature)
        if key not in self.rest:
            raise ValueError(
                f"These top-k soft labels have the mass of the rest at the temperatures {', '.join(self.rest)}, and it "
                f"is needed at {key}. Write them again for that temperature, or dense."
            )
        shares = ops.zeros_like(self.known) if student is None else ops.cast(student, "float32")
        shares = ops.stop_gradient(log_softmax(ops.where(self.is_rest, shares, _NOTHING), temperature))
        return ops.where(self.is_rest, temperature * (self.rest[key][:, None] + shares), self.known)


def temperature_key(temperature):
    """A temperature as a key of dicts: `"4"`, `"0.5"`."""
    return f"{temperature:g}"


def row_type(k, classes, temperatures):
    """The NumPy dtype of an encoded row."""
    number = "<u2" if classes <= 2**16 else "<u4"
    shape = (len(temperatures),)
    return np.dtype([("classes", number, (k,)), ("logits", "<f2", (k,)), ("label", "<f4"), ("rest", "<f4", shape)])


def encode(logits, labels, k, temperatures):
    r"""Rows of `row_type`: of each example the k highest logits, the label's, and $\log \sum_{rest} e^{z / \tau}$.

    All are less the row's highest, which no softmax sees, so that float16 is precise where probabilities are large.

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
    """What batches bring of encoded rows, as `expand` takes it."""
    return {
        "classes": rows["classes"].astype("int32"),
        "logits": rows["logits"].astype("float32"),
        "label": np.ascontiguousarray(rows["label"]),
        "rest": {temperature_key(t): np.ascontiguousarray(rows["rest"][:, i]) for i, t in enumerate(temperatures)},
    }


def expand(kept, labels, classes):
    """`TopKLogits` logits of a batch.

    Args:
        kept: Dict of `"classes"` and `"logits"`, `(batch, k)`; `"label"`, the label's logit, `(batch,)`; and `"rest"`,
            a dict of temperatures as text to `(batch,)`.
        labels: Integers, shape `(batch,)`, or distributions, of which the likeliest class counts.
        classes: Integer, their number.
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
