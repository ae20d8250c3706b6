"""What a batch has besides its inputs: labels, mask, index, weights and cached logits of teachers."""

import dataclasses

import keras
from keras import ops
from keras.src.backend.common.masking import get_keras_mask

from keras_wsl.argument_checks import InputError
from keras_wsl.backend import check_range
from keras_wsl.ops import class_indices, get_logits, labels_are_categorical, to_int32

LOGITS_MASK = "logits.mask"  # The key of Keras's mask in the student's outputs: on JAX a tensor's own mask is lost.
_KEYS = ("labels", "mask", "index")


@dataclasses.dataclass
class Targets:
    """The targets of one batch.

    Args:
        labels: Integers of shape `(batch,)`, distributions of shape `(batch, classes)`, or the same with an axis of
            positions after the first for sequences.
        mask: `None`, or booleans of shape `(batch, time)`: the positions of sequences that count.
        index: `None`, or integers of shape `(batch,)`: the numbers of the examples in their data set.
        weights: `None`, or float32 of shape `(batch,)`: the weights of the examples.
        cached: Dict of all other entries of the targets, such as cached logits of teachers.
    """

    labels: object
    mask: object = None
    index: object = None
    weights: object = None
    cached: dict = dataclasses.field(default_factory=dict)

    @classmethod
    def parse(cls, y, sample_weight=None):
        """Take apart the targets of a batch.

        Args:
            y: Labels, or a dict of `"labels"` and optionally `"mask"`, `"index"` and cached logits of teachers.
            sample_weight: `None`, or numbers of shape `(batch,)` or `(batch, 1)`, or the dict of such that Keras makes
                for targets that are a dict.

        Raises:
            InputError: If there are no labels, or the weights have another shape.
        """
        entries = y if isinstance(y, dict) else {}
        return cls(
            _get_labels(y),
            mask=entries.get("mask"),
            index=entries.get("index"),
            weights=None if sample_weight is None else _flatten_weights(_get_labels(sample_weight)),
            cached={key: value for key, value in entries.items() if key not in _KEYS},
        )

    def validate(self, outputs, class_weight=None):
        """Return the targets as the step uses them, checked as far as the backend can.

        Integer labels become int32, and 0 where the mask leaves them out. A weight that is negative or not finite
        becomes NaN, and so does the loss.

        Args:
            outputs: The student's outputs, a dict, or its logits: `(batch, classes)` or `(batch, time, classes)`.
            class_weight: `None`, or an array of one weight per class, by which the weight of an example is multiplied.
                For distributions, the class with the highest probability counts.
        """
        logits = get_logits(outputs)
        mask, labels = self._find_mask(outputs, logits), self.labels
        if not labels_are_categorical(labels, logits):
            labels = to_int32(labels)
            if mask is not None:  # Padding often has -1 or -100, which are no classes.
                labels = ops.where(mask, ops.reshape(labels, ops.shape(mask)), 0)
            labels = check_range("Labels", labels, logits.shape[-1])
        weights = self.weights
        if weights is not None:
            weights = check_range("`sample_weight`", weights, float("inf"))
            weights = ops.where(ops.logical_and(weights >= 0, weights < float("inf")), weights, float("nan"))
        if class_weight is not None:
            by_class = ops.take(ops.convert_to_tensor(class_weight), class_indices(labels, logits))
            weights = by_class if weights is None else by_class * weights
        return dataclasses.replace(self, labels=labels, mask=mask, weights=weights)

    def _find_mask(self, outputs, logits):
        """Return the mask of the targets, else the one that Keras keeps with the logits of sequences."""
        if len(logits.shape) < 3:
            return None
        if self.mask is not None:
            return ops.cast(self.mask, "bool")  # As in NumPy, every number but 0 is true.
        if isinstance(outputs, dict) and LOGITS_MASK in outputs:
            return ops.cast(outputs[LOGITS_MASK], "bool")
        return get_keras_mask(logits)

    def get_metric_weights(self):
        """Return the weights of compiled metrics: those of the examples, without positions that the mask leaves out."""
        if self.mask is None:
            return self.weights
        mask = ops.cast(self.mask, "float32")
        return mask if self.weights is None else self.weights[:, None] * mask


def unpack_batch(data):
    """Split a batch into `(x, y, sample_weight)`.

    Raises:
        InputError: If the rank of a tensor is not known, as after `tf.py_function`.
    """
    batch = keras.utils.unpack_x_y_sample_weight(data)
    for path, tensor in keras.tree.flatten_with_path(dict(zip(("inputs", "labels", "sample_weight"), batch))):
        if getattr(getattr(tensor, "shape", None), "rank", 0) is None:  # Only TensorFlow has such shapes.
            name = path[0] + "".join(f"[{key!r}]" for key in path[1:])
            raise InputError(
                f"`{name}` must have a known rank. Received: a tensor of unknown shape, such as tf.py_function "
                "returns. Set its shape in `dataset.map` with tf.ensure_shape(tensor, [None, ...]); None stands for "
                "the batch."
            )
    return batch


def _get_labels(y):
    labels = y.get("labels") if isinstance(y, dict) else y
    if not hasattr(labels, "shape"):
        received = f"a dict of {sorted(y)}" if isinstance(y, dict) else type(y).__name__
        raise InputError(
            "A batch must have labels: integers, distributions, or a dict with the key 'labels'. Received: "
            f"{received}. Pass (inputs, labels)."
        )
    return labels


def _flatten_weights(sample_weight):
    if len(sample_weight.shape) > 2 or (len(sample_weight.shape) == 2 and sample_weight.shape[-1] != 1):
        raise InputError(
            f"`sample_weight` must be one number per example. Received shape: {tuple(sample_weight.shape)}. Pass "
            "shape (examples,)."
        )
    return ops.cast(ops.reshape(sample_weight, (-1,)), "float32")
