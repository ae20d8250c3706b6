"""What Keras lacks to train under MultiWorkerMirroredStrategy, in one place.

Keras 3.15 says that it does not work (https://github.com/keras-team/keras/issues/20585): before the first step it
reduces a tuple of labels and weights as if it were one value, and after each step it takes the mean of scalars over
their axis 0. Both are private to Keras; `TESTED` are the versions with which the repairs were run.
"""

import warnings

import keras
import tensorflow as tf

TESTED = ("3.15.1",)


class MultiWorker:
    """A mixin before `keras.Model`; without such a strategy it changes nothing."""

    def _over_workers(self):
        return isinstance(self.distribute_strategy, tf.distribute.MultiWorkerMirroredStrategy)

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        if not self._over_workers():
            return super()._maybe_symbolic_build(iterator=iterator, data_batch=data_batch)
        if keras.version() not in TESTED:
            warnings.warn(
                f"Training on several workers was tested with Keras {', '.join(TESTED)}, and this is "
                f"{keras.version()}: compare a short run with one on a single worker.",
                stacklevel=4,
            )
        if iterator is not None:
            _, _, batches = next(iter(iterator))
            data_batch = keras.tree.map_structure(self._here, next(batches))
        return super()._maybe_symbolic_build(data_batch=data_batch)

    def _here(self, value):
        """A value of this worker's first replica."""
        return self.distribute_strategy.experimental_local_results(value)[0]

    def reducible(self, logs):
        """A step's logs, equal on all replicas, in the shape of which Keras takes the mean over replicas."""
        if not self._over_workers():
            return logs
        return keras.tree.map_structure(lambda value: tf.reshape(value, (1,)), logs)
