"""Communication between the replicas of a strategy in a step."""

import keras
import tensorflow as tf
from keras.src.backend.common.masking import get_keras_mask, set_keras_mask


class Replicas:
    """The replicas of one step, from the view of one of them. With a single replica, it changes nothing.

    A batch is split by rows, and the last replicas may get no rows. Means over no rows are NaN: they do not count.

    Args:
        layers: Layers whose state the step may change, in addition to the optimizer. The moving statistics of batch
            normalization, and variables in a layer's `averaged_over_replicas`, become means over all rows. The changes
            of variables in `sum_over_replicas` are summed over replicas.
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
        self._before = _read(self._summed)

    def count(self, rows):
        """Return the number of rows of all replicas, a float; `rows` has one value for each row of this replica."""
        self._local_count = self._count = tf.cast(tf.shape(rows)[0], "float32")
        if self.number > 1:
            self._count = self._context.all_reduce("SUM", self._local_count)
        return self._count

    def zero_if_empty(self, gradients):
        """Return the gradients, or zeros if this replica has no rows."""
        if self.number == 1:
            return gradients
        # Sparse gradients of no rows are empty.
        return [self._zero_if_empty(value) if isinstance(value, tf.Tensor) else value for value in gradients]

    def synchronize(self):
        """Assign the same state on all replicas, because files and backups have that of one replica."""
        if self._averaged:
            fraction = self._local_count / self._count
            parts = [self._zero_if_empty(value) * fraction for value in _read(self._averaged)]
            _assign(self._averaged, self._context.all_reduce("SUM", parts))
        if self._summed:
            changes = [after - before for after, before in zip(_read(self._summed), self._before)]
            changes = self._context.all_reduce("SUM", changes)
            _assign(self._summed, [before + change for before, change in zip(self._before, changes)])

    def _zero_if_empty(self, value):
        return tf.where(self._local_count > 0, value, tf.zeros_like(value))


def call_with_rows(function, inputs):
    """Call a network on a replica's part of a batch, or on a row of zeros if it has no rows.

    Some kernels fail on an empty batch: a convolution of oneDNN then returns the number of channels of its input.

    Args:
        function: Function of the inputs, such as a network.
        inputs: Tensors with the same number of rows, in any structure.

    Returns:
        The outputs of the function, tensors in any structure, without the row of zeros.
    """
    tensors = keras.tree.flatten(inputs)
    if (
        tf.distribute.get_replica_context().num_replicas_in_sync == 1
        or not all(isinstance(tensor, tf.Tensor) for tensor in tensors)
        or all(tensor.shape[0] for tensor in tensors)  # A static number of rows is never 0.
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


def _read(variables):
    """Return copies of the values of variables on this replica."""
    return [variable.value.read_value() for variable in variables]


def _assign(variables, values):
    for variable, value in zip(variables, values):
        variable.assign(value)
