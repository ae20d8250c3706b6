"""What the replicas of a strategy have to share in a step."""

import keras
import tensorflow as tf


class Replicas:
    """The replicas of one step, as each of them sees it; where there is one alone, it changes nothing.

    A batch is shared out by rows, and the last ones of a small batch may get none: of those nothing counts, for means
    over no rows are NaN.

    Args:
        layers: All that the step may change beside what the optimizer does: of batch normalization the moving
            statistics become means over all rows, as do variables in a layer's `averaged_over_replicas`; to those in
            its `summed_over_replicas` every replica's change is added.
    """

    def __init__(self, layers):
        self._context = tf.distribute.get_replica_context()
        self.number = self._context.num_replicas_in_sync
        self._averaged, self._summed = [], []
        for layer in layers if self.number > 1 else ():
            if isinstance(layer, keras.layers.BatchNormalization):
                self._averaged += [layer.moving_mean, layer.moving_variance]
            self._averaged += getattr(layer, "averaged_over_replicas", [])
            self._summed += getattr(layer, "summed_over_replicas", [])
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


def _values(variables):
    """Copies of what this replica's variables are now."""
    return [variable.value.read_value() for variable in variables]


def _assign(variables, values):
    for variable, value in zip(variables, values):
        variable.assign(value)
