"""A strategy from a flag, and which of several workers this process is."""

import contextlib
import functools
import os
import threading

from keras_wsl.backend.tensorflow import multi_worker

NAMES = ("none", "mirrored", "multi_worker", "tpu")


def scope(name="none"):
    """The context in which networks, Distiller and optimizer are made and trained.

    Args:
        name: Of `strategy`.

    Returns:
        A context manager.

    Raises:
        ValueError: As `strategy`.
    """
    chosen = strategy(name)
    return contextlib.nullcontext() if chosen is None else chosen.scope()


def strategy(name="none", *, worker_timeout=multi_worker.TIMEOUT):
    """The strategy of that name, the same at every call; `None` for `"none"`.

    With `"multi_worker"`, the first call waits until all workers have started, and prints which are missing.

    Args:
        name: `"none"`; `"mirrored"`, all local GPUs, or logical CPU devices; `"multi_worker"`, the processes that
            `TF_CONFIG` names, each of which runs the same program: ask for it before anything else of TensorFlow runs;
            `"tpu"`, found as the environment says, which was not tried on hardware.
        worker_timeout: Seconds that `"multi_worker"` waits for the other workers to start, a positive float.

    Returns:
        On TensorFlow a `tf.distribute.Strategy`, on JAX a `keras.distribution.DataParallel`.

    Raises:
        ValueError: If there is no strategy of that name, or none on this backend; there is no TPU; or `TF_CONFIG` is
            missing or does not name this process.
        TimeoutError: If workers have not started within `worker_timeout`.
        OSError: If the port of this worker is not free, or TensorFlow cannot connect the workers.
    """
    import keras

    if name not in NAMES:
        raise ValueError(f"There is no strategy {name!r}. Expected one of {NAMES}.")
    if name == "none":
        return None
    makers = _STRATEGIES.get(keras.backend.backend(), {})
    if name not in makers:
        raise ValueError(
            f"There is no strategy {name!r} on the {keras.backend.backend()} backend. Expected one of "
            f"{('none', *makers)}, or another KERAS_BACKEND: tensorflow has {NAMES[1:]}."
        )
    if name not in _made:
        _made[name] = makers[name](worker_timeout) if name == "multi_worker" else makers[name]()
    return _made[name]


_made = {}


def set_cpu_devices(number):
    """Divide the processor into logical devices, with which a strategy can be tried without GPUs.

    Args:
        number: Of devices, a positive integer.

    Raises:
        ValueError: If the backend has computed something before, or it is Torch, which has no strategy.
    """
    import keras

    if keras.backend.backend() not in _STRATEGIES:
        raise ValueError(f"There are no logical devices on the {keras.backend.backend()} backend.")
    try:
        if keras.backend.backend() == "tensorflow":
            import tensorflow as tf

            [processor] = tf.config.list_physical_devices("CPU")
            parts = [tf.config.LogicalDeviceConfiguration()] * number
            tf.config.set_logical_device_configuration(processor, parts)
        else:
            import jax

            jax.config.update("jax_num_cpu_devices", number)
    except RuntimeError as error:
        raise ValueError(
            f"The number of logical devices must be set before the backend computes anything. Received: {number}. Call "
            f"distribution.set_cpu_devices first of all. The backend's error: {error}"
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
            "MultiWorkerMirroredStrategy must be made before TensorFlow computes anything. Call "
            f"distribution.strategy('multi_worker') first of all. TensorFlow says: {error}"
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


_NO_TPU = "The strategy 'tpu' needs a TPU, and none was found here. Use 'mirrored' for GPUs, or 'none'. It was said: {}"


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
    """Whether this process writes what a run leaves behind: of several workers the chief, else worker 0; else any.

    Args:
        name: Of `strategy`.
    """
    if name != "multi_worker":
        return True
    resolver = strategy(name).cluster_resolver
    return resolver.task_type == "chief" or (
        resolver.task_id == 0 and not resolver.cluster_spec().as_dict().get("chief")
    )


def check_workers_agree(name, what, numbers):
    """Raises `ValueError` on every worker unless all have the same numbers; a worker alone always agrees.

    Args:
        name: Of `strategy`.
        what: What the numbers are, for the error.
        numbers: Integers, as many on every worker.
    """
    if name != "multi_worker":
        return
    import tensorflow as tf

    with multi_worker.ended_by_signals(), multi_worker.reminder(f"waiting for all workers to compare their {what}"):
        everywhere = strategy(name).gather(tf.constant([list(numbers)], "int64"), axis=0).numpy().tolist()
    if any(there != everywhere[0] for there in everywhere):
        raise ValueError(
            f"The workers have different {what}: {everywhere}, from the first worker to the last. They need the same "
            "flags and the same files; --output_dir must be a folder that all of them see."
        )


class WorkerLostError(ConnectionError):
    """Another worker has ended while this one was training with it."""


@contextlib.contextmanager
def reraise_worker_loss(name):
    """Says of TensorFlow's errors that another worker is gone.

    Args:
        name: Of `strategy`.

    Raises:
        WorkerLostError: If one is.
    """
    if name != "multi_worker":
        yield
        return
    import tensorflow as tf

    lost = ("Unavailable", "Aborted", "Internal", "DeadlineExceeded", "Cancelled")
    try:
        yield
    except tuple(getattr(tf.errors, f"{kind}Error") for kind in lost) as error:
        raise WorkerLostError(
            "Another worker has ended, or cannot be reached, so that this one stopped too. Its own log says why; start "
            f"all workers again to go on from the last backup. TensorFlow says: {str(error).splitlines()[0]}"
        ) from error
