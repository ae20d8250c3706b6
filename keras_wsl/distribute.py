"""A strategy from a flag, and which of several workers this process is."""

import contextlib
import functools
import json
import os

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


@functools.cache
def strategy(name="none"):
    """The strategy of that name, the same at every call; `None` for `"none"`.

    Args:
        name: `"none"`; `"mirrored"`, all local GPUs, or logical CPU devices; `"multi_worker"`, the processes that
            `TF_CONFIG` names, each of which runs the same program: ask for it before anything else of TensorFlow runs;
            `"tpu"`, found as the environment says, which was not tried on hardware.

    Returns:
        On TensorFlow a `tf.distribute.Strategy`, on JAX a `keras.distribution.DataParallel`.

    Raises:
        ValueError: If there is no strategy of that name, or none on this backend; there is no TPU; or `TF_CONFIG` is
            missing or does not name this process.
    """
    import keras

    if name not in NAMES:
        raise ValueError(f"There is no strategy {name!r}. Expected one of {NAMES}.")
    if name == "none":
        return None
    makers = _MAKERS.get(keras.backend.backend(), {})
    if name not in makers:
        raise ValueError(
            f"There is no strategy {name!r} on the {keras.backend.backend()} backend. Expected one of "
            f"{('none', *makers)}, or another KERAS_BACKEND: tensorflow has {NAMES[1:]}."
        )
    return makers[name]()


def _mirrored():
    import tensorflow as tf

    gpus = len(tf.config.list_logical_devices("GPU"))
    cpus = [f"CPU:{i}" for i in range(len(tf.config.list_logical_devices("CPU")))]
    return tf.distribute.MirroredStrategy(None if gpus else cpus)


def _multi_worker():
    import tensorflow as tf

    _check_config(os.environ.get("TF_CONFIG"))
    try:
        return tf.distribute.MultiWorkerMirroredStrategy()
    except RuntimeError as error:
        raise ValueError(
            "MultiWorkerMirroredStrategy must be made before TensorFlow computes anything. Call "
            f"distribute.strategy('multi_worker') first of all. TensorFlow says: {error}"
        ) from error


def _check_config(text):
    """Raises `ValueError` unless `TF_CONFIG` names workers, and this process as one of them."""
    example = '{"cluster": {"worker": ["host1:12345", "host2:12345"]}, "task": {"type": "worker", "index": 0}}'
    try:
        config = json.loads(text or "")
        task = config["task"]
        there = config["cluster"][task["type"]][int(task["index"])]
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(
            f"TF_CONFIG must name all workers, and which of them this process is, such as {example}. Received: "
            f"{text!r} ({type(error).__name__})."
        ) from error
    if task["type"] not in ("chief", "worker") or not isinstance(there, str):
        raise ValueError(
            f"TF_CONFIG makes this process the {task['type']!r} {there!r}. Expected a chief or a worker. Set its type."
        )


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

    from keras_wsl.trainers.jax import DataParallel

    try:
        return DataParallel(devices=keras.distribution.list_devices(kind))
    except RuntimeError as error:
        raise ValueError(_NO_TPU.format(error)) from error


_MAKERS = {
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


def check_agreement(name, what, numbers):
    """Raises `ValueError` on every worker unless all have the same numbers; a worker alone always agrees.

    Args:
        name: Of `strategy`.
        what: What the numbers are, for the error.
        numbers: Integers, as many on every worker.
    """
    if name != "multi_worker":
        return
    import tensorflow as tf

    everywhere = strategy(name).gather(tf.constant([list(numbers)], "int64"), axis=0).numpy().tolist()
    if any(there != everywhere[0] for there in everywhere):
        raise ValueError(
            f"The workers have different {what}: {everywhere}, from the first worker to the last. They need the same "
            "flags and the same files; --out must be a folder that all of them see."
        )


class WorkerLost(ConnectionError):
    """Another worker has ended while this one was training with it."""


@contextlib.contextmanager
def with_the_others(name):
    """Says of TensorFlow's errors that another worker is gone.

    Args:
        name: Of `strategy`.

    Raises:
        WorkerLost: If one is.
    """
    if name != "multi_worker":
        yield
        return
    import tensorflow as tf

    try:
        yield
    except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.InternalError) as error:
        raise WorkerLost(
            "Another worker has ended, or cannot be reached, so that this one stopped too. Its own log says why; start "
            f"all workers again to go on from the last backup. TensorFlow says: {str(error).splitlines()[0]}"
        ) from error
