"""Training on several devices with JAX, as `keras.distribution.DataParallel` has it."""

import contextlib

import jax
import keras
from keras.src.backend.jax import distribution_lib

from keras_wsl.backend.default import DefaultTrainer

TESTED = ("3.15.1",)  # The versions of Keras with which `DataParallel` was run.


class DataParallel(keras.distribution.DataParallel):
    """`keras.distribution.DataParallel` that takes batches of any size.

    What all devices compute together is one step on the whole batch, batch normalization and relations between
    examples included. Keras 3.15 fails on batches that do not divide by the devices, such as the last one of an epoch:
    in the scope here, each device computes those whole.
    """

    @contextlib.contextmanager
    def scope(self):
        """The context in which networks, Distiller and optimizer are made and trained."""
        share_out = distribution_lib.distribute_data_input
        distribution_lib.distribute_data_input = _or_whole(share_out)
        try:
            with super().scope():
                yield
        finally:
            distribution_lib.distribute_data_input = share_out


def _or_whole(share_out):
    """Keras's function that puts a batch's array on the devices, and a copy on each where it cannot be shared out."""

    def put(array, layout, batch_dim_name):
        if array is None:
            return None
        sharding = getattr(layout, "backend_layout", layout)
        if array.shape[0] % sharding.mesh.size:
            return jax.device_put(array, jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec()))
        return share_out(array, layout, batch_dim_name)

    return put


class JaxTrainer(DefaultTrainer):
    """Keras's step, on one device or many."""

    def make_train_function(self, force=False):
        """Refuses networks that are not on the devices on which they are to train, before JAX would."""
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
