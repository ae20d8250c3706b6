"""What the replicas of a strategy have to share in a step."""

import keras
import tensorflow as tf
from keras.src.backend.common.masking import get_keras_mask, set_keras_mask


class Replicas:
    """The replicas of one step, as each of them sees it; where there is one alone, it changes nothing.

    A batch is shared out by rows, and the last ones of a small batch may get none: of those nothing counts, for means
    over no rows are NaN.

    Args:
        layers: All that the step may change beside what the optimizer does: of batch normalization the moving
            statistics become means over all rows, as do variables in a layer's `averaged_over_replicas`; to those in
            its `sum_over_replicas` every replica's change is added.
    """

    def __init__(self, layers):
        self._context = tf.distribute.get_replica_context()
        self.number = self._context.num_replicas_in_sync
        self._averaged, self._summed = [], []
        for layer in layers if self.number > 1 else ():
            if isinstance(layer, keras.layers.BatchNormalization):
                self._averaged += [layer.moving_mean, layer.moving_variance]
            self._averaged += getattr(layer, "averaged_over_replicas", [])
            self._summed += getattr(layer, "sum_over_replicas", [])
        self._before = _values(self._summed)

    def count(self, rows):
        """How many rows all replicas have, a float, of one value for each row here."""
        self._here = self._all = tf.cast(tf.shape(rows)[0], "float32")
        if self.number > 1:
            self._all = self._context.all_reduce("SUM", self._here)
        return self._all

    def without_empty(self, gradients):
        """The gradients, which are zeros where this replica has no rows."""
        if self.number == 1:
            return gradients
        # What is sparse, or None, has no rows then either.
        return [self._unless_empty(value) if isinstance(value, tf.Tensor) else value for value in gradients]

    def agree(self):
        """Gives all replicas the same state, of which files and backups keep one replica's."""
        if self._averaged:
            share = self._here / self._all
            parts = [self._unless_empty(value) * share for value in _values(self._averaged)]
            _assign(self._averaged, self._context.all_reduce("SUM", parts))
        if self._summed:
            changes = [now - before for now, before in zip(_values(self._summed), self._before)]
            changes = self._context.all_reduce("SUM", changes)
            _assign(self._summed, [before + change for before, change in zip(self._before, changes)])

    def _unless_empty(self, value):
        return tf.where(self._here > 0, value, tf.zeros_like(value))


def call_with_rows(function, inputs):
    """Call a network on a replica's part of a batch, on a row of zeros if it has no rows, and return its rows' outputs.

    Not every kernel takes an empty batch: a convolution of oneDNN then returns the number of channels of its input.

    Args:
        function: Function of the inputs, such as a network.
        inputs: Tensors of one number of rows, in any structure.

    Returns:
        What the function returns, tensors in any structure, without that row.
    """
    tensors = keras.tree.flatten(inputs)
    if (
        tf.distribute.get_replica_context().num_replicas_in_sync == 1
        or not all(isinstance(tensor, tf.Tensor) for tensor in tensors)
        or all(tensor.shape[0] for tensor in tensors)  # No part has a static number of rows and none of them.
    ):
        return function(inputs)
    rows = tf.shape(tensors[0])[0]
    missing = tf.maximum(1 - rows, 0)

    def add_row(tensor):
        shape = tf.concat([[missing], tf.shape(tensor)[1:]], axis=0)
        return tf.concat([tensor, tf.zeros(shape, tensor.dtype)], axis=0)

    def remove_row(tensor):
        part, mask = tensor[:rows], get_keras_mask(tensor)
        if mask is not None:
            set_keras_mask(part, mask[:rows])
        return part

    return keras.tree.map_structure(remove_row, function(keras.tree.map_structure(add_row, inputs)))


def _values(variables):
    """Copies of what this replica's variables are now."""
    return [variable.value.read_value() for variable in variables]


def _assign(variables, values):
    for variable, value in zip(variables, values):
        variable.assign(value)
