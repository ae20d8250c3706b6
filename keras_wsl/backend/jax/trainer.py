"""Training on several devices with JAX, by `keras.distribution.DataParallel`."""

import contextlib

import jax
import keras
from keras.src.backend.jax import distribution_lib

from keras_wsl.backend.default import DefaultTrainer

TESTED = ("3.15.1",)  # The versions of Keras with which `DataParallel` was tested.


class DataParallel(keras.distribution.DataParallel):
    """A `keras.distribution.DataParallel` that takes batches of any size.

    The devices together compute one step on the whole batch, with batch normalization and relations between examples.
    Keras 3.15 fails on batches that do not divide by the number of devices, such as the last one of an epoch. In this
    scope, each device computes such a batch as a whole.
    """

    @contextlib.contextmanager
    def scope(self):
        """Return the context in which networks, Distiller and optimizer are made and trained."""
        distribute = distribution_lib.distribute_data_input
        distribution_lib.distribute_data_input = _distribute_or_copy(distribute)
        try:
            with super().scope():
                yield
        finally:
            distribution_lib.distribute_data_input = distribute


def _distribute_or_copy(distribute):
    """Return a function that distributes an array, or copies it to each device if it does not divide."""

    def put(array, layout, batch_dim_name):
        if array is None:
            return None
        sharding = getattr(layout, "backend_layout", layout)
        if array.shape[0] % sharding.mesh.size:
            return jax.device_put(array, jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec()))
        return distribute(array, layout, batch_dim_name)

    return put


class JaxTrainer(DefaultTrainer):
    """The training step of Keras, on one device or several."""

    def make_train_function(self, force=False):
        """Raise `ValueError` if variables are not on the devices of the distribution."""
        distribution = keras.distribution.distribution()
        if distribution is not None:
            for variable in self.variables + self.non_trainable_variables:
                if variable.value.sharding.device_set != set(distribution.device_mesh.backend_mesh.devices.flat):
                    raise ValueError(
                        f"{variable.path} was made outside of the {type(distribution).__name__} in which the Distiller "
                        "trains. Make both networks and the Distiller, and call `compile` and `fit`, inside the same "
                        "`distribution.scope(...)`."
                    )
        return super().make_train_function(force=force)
