"""Fixes of Keras for training under a `tf.distribute` strategy.

Before the first step, Keras 3.15 computes the mean of the first batch over the replicas, to get its shapes. This fails
if the replicas have different numbers of rows, and always with several workers
(https://github.com/keras-team/keras/issues/20585). A Python generator loses that batch. With several workers, Keras
also computes the mean of the scalar logs of a step over their axis 0. Both are private functions of Keras, so that
`TESTED` lists the versions with which the fixes were tested.
"""

import warnings

import keras
import tensorflow as tf

TESTED = ("3.15.1",)


class StrategyFixes:
    """A mixin before `keras.Model`. Without a strategy it changes nothing."""

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        if self._distribute_strategy is None:
            return
        if keras.version() not in TESTED:
            warnings.warn(
                f"Training under {type(self.distribute_strategy).__name__} was tested with Keras {', '.join(TESTED)}, "
                f"and this is {keras.version()}. Compare a short run with one on a single device.",
                stacklevel=4,
            )
        if iterator is not None:  # Keras needs only shapes and dtypes.
            data_batch = keras.tree.map_structure(_replica_spec, iterator._distributed_dataset.element_spec)
        super()._maybe_symbolic_build(data_batch=data_batch)

    def reducible(self, logs):
        """Return a step's logs, equal on all replicas, in the shape of which Keras takes the mean over replicas."""
        if not isinstance(self.distribute_strategy, tf.distribute.MultiWorkerMirroredStrategy):
            return logs
        return keras.tree.map_structure(lambda value: tf.reshape(value, (1,)), logs)


def _replica_spec(spec):
    """Return the spec of one replica's part of a component of the batches; `None` for a component that is missing."""
    if issubclass(spec.value_type, tf.distribute.DistributedValues):
        spec = spec._component_specs[0]
    return None if isinstance(spec, tf.OptionalSpec) else spec
