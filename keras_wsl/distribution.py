"""Strategies by name, and the role of this process among several workers."""

import contextlib
import functools
import os
import threading

from keras_wsl.backend.tensorflow import multi_worker

NAMES = ("none", "mirrored", "multi_worker", "tpu")


def scope(name="none"):
    """Return the scope in which to create and train networks, Distiller and optimizer.

    Args:
        name: Same as for `get_strategy`.

    Returns:
        A context manager.

    Raises:
        ValueError: See `get_strategy`.
    """
    strategy = get_strategy(name)
    return contextlib.nullcontext() if strategy is None else strategy.scope()


def get_strategy(name="none", *, worker_timeout=multi_worker.TIMEOUT):
    """Return the strategy of that name, the same object for each call; `None` for `"none"`.

    With `"multi_worker"`, the first call waits until all workers have started, and prints which are missing.

    Args:
        name: `"none"`; `"mirrored"`, all local GPUs, or logical CPU devices; `"multi_worker"`, the processes in
            `TF_CONFIG`, each of which runs the same program, which must be created before TensorFlow computes anything;
            `"tpu"`, a TPU found by the environment, which has not been tested on hardware.
        worker_timeout: Positive float, the number of seconds that `"multi_worker"` waits for the other workers.

    Returns:
        On TensorFlow a `tf.distribute.Strategy`, on JAX a `keras.distribution.DataParallel`.

    Raises:
        ValueError: If the name is unknown or not supported on this backend, there is no TPU, or `TF_CONFIG` is missing
            or does not name this process.
        TimeoutError: If workers have not started within `worker_timeout`.
        OSError: If the port of this worker is in use, or TensorFlow cannot connect the workers.
    """
    import keras

    if name not in NAMES:
        raise ValueError(f"The strategy must be one of {NAMES}. Received: {name!r}.")
    if name == "none":
        return None
    constructors = _STRATEGIES.get(keras.backend.backend(), {})
    if name not in constructors:
        raise ValueError(
            f"The strategy must be one of {('none', *constructors)} on the {keras.backend.backend()} backend. "
            f"Received: {name!r}. Use one of these, or KERAS_BACKEND=tensorflow, which supports {NAMES[1:]}."
        )
    if name not in _created:
        _created[name] = constructors[name](worker_timeout) if name == "multi_worker" else constructors[name]()
    return _created[name]


_created = {}


def set_cpu_devices(number):
    """Split the CPU into logical devices, to test strategies without GPUs.

    Args:
        number: Positive integer, the number of devices.

    Raises:
        ValueError: If the backend has already computed something, or is Torch, which has no strategies.
    """
    import keras

    if keras.backend.backend() not in _STRATEGIES:
        raise ValueError(
            f"set_cpu_devices requires the TensorFlow or JAX backend. Received: {keras.backend.backend()}."
        )
    try:
        if keras.backend.backend() == "tensorflow":
            import tensorflow as tf

            [cpu] = tf.config.list_physical_devices("CPU")
            devices = [tf.config.LogicalDeviceConfiguration()] * number
            tf.config.set_logical_device_configuration(cpu, devices)
        else:
            import jax

            jax.config.update("jax_num_cpu_devices", number)
    except RuntimeError as error:
        raise ValueError(
            f"The number of logical devices must be set before the backend computes anything. Received: {number}. Call "
            f"distribution.set_cpu_devices first. The backend's error: {error}"
        ) from error


def _mirrored():
    import tensorflow as tf

    gpus = len(tf.config.list_logical_devices("GPU"))
    cpus = [f"CPU:{i}" for i in range(len(tf.config.list_logical_devices("CPU")))]
    return tf.distribute.MirroredStrategy(None if gpus else cpus)


def _multi_worker(timeout):
    import tensorflow as tf

    if not 0 < timeout < threading.TIMEOUT_MAX:
        raise ValueError(f"`worker_timeout` must be a positive number of seconds. Received: worker_timeout={timeout}.")
    cluster = multi_worker.read_cluster(os.environ.get("TF_CONFIG"))
    try:
        with multi_worker.ended_by_signals():
            multi_worker.wait(cluster, timeout)
            with multi_worker.ended_after(timeout):
                return tf.distribute.MultiWorkerMirroredStrategy()
    except RuntimeError as error:
        raise ValueError(
            "MultiWorkerMirroredStrategy must be created before TensorFlow computes anything. Call "
            f"distribution.get_strategy('multi_worker') first. TensorFlow's error: {error}"
        ) from error
    except tf.errors.OpError as error:
        raise ConnectionError(
            f"TensorFlow cannot connect the workers {', '.join(cluster.addresses)}. They must reach each other at free "
            f"ports. Start all workers again. TensorFlow's error: {str(error).splitlines()[0]}"
        ) from error


def _tpu():
    import tensorflow as tf

    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver()
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    except (ValueError, tf.errors.NotFoundError, tf.errors.UnavailableError) as error:
        raise ValueError(_NO_TPU.format(error)) from error
    return tf.distribute.TPUStrategy(resolver)


_NO_TPU = "The strategy 'tpu' requires a TPU, but none was found. Use 'mirrored' for GPUs, or 'none'. Error: {}"


def _data_parallel(kind=None):
    import keras

    from keras_wsl.backend.jax.trainer import DataParallel

    try:
        return DataParallel(devices=keras.distribution.list_devices(kind))
    except RuntimeError as error:
        raise ValueError(_NO_TPU.format(error)) from error


_STRATEGIES = {
    "tensorflow": {"mirrored": _mirrored, "multi_worker": _multi_worker, "tpu": _tpu},
    "jax": {"mirrored": _data_parallel, "tpu": functools.partial(_data_parallel, "tpu")},
}


def is_chief(name="none"):
    """Return whether this process writes the files of a run: the chief or else worker 0; True for a single process.

    Args:
        name: Same as for `get_strategy`.
    """
    if name != "multi_worker":
        return True
    resolver = get_strategy(name).cluster_resolver
    return resolver.task_type == "chief" or (
        resolver.task_id == 0 and not resolver.cluster_spec().as_dict().get("chief")
    )


def check_workers_agree(name, what, numbers):
    """Raise `ValueError` on all workers if their numbers differ; do nothing for a single process.

    Args:
        name: Same as for `get_strategy`.
        what: String, what the numbers are, for the error.
        numbers: Integers, the same number of them on each worker.
    """
    if name != "multi_worker":
        return
    import tensorflow as tf

    with multi_worker.ended_by_signals(), multi_worker.reminder(f"waiting for all workers to compare their {what}"):
        gathered = get_strategy(name).gather(tf.constant([list(numbers)], "int64"), axis=0).numpy().tolist()
    if any(values != gathered[0] for values in gathered):
        raise ValueError(
            f"The workers must have the same {what}. Received: {gathered}, from the first worker to the last. Use the "
            "same flags and files, and an --output_dir that all workers can access."
        )


class WorkerLostError(ConnectionError):
    """Another worker ended during training."""


@contextlib.contextmanager
def reraise_worker_loss(name):
    """Re-raise TensorFlow's errors that mean that another worker has ended.

    Args:
        name: Same as for `get_strategy`.

    Raises:
        WorkerLostError: Instead of such an error.
    """
    if name != "multi_worker":
        yield
        return
    import tensorflow as tf

    kinds = ("Unavailable", "Aborted", "Internal", "DeadlineExceeded", "Cancelled")
    try:
        yield
    except tuple(getattr(tf.errors, f"{kind}Error") for kind in kinds) as error:
        raise WorkerLostError(
            "Another worker has ended or cannot be reached, so this one stopped too. See the log of that worker. Start "
            f"all workers again to resume from the last backup. TensorFlow's error: {str(error).splitlines()[0]}"
        ) from error
