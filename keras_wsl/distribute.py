"""A strategy from a flag."""

import contextlib

NAMES = ("none", "mirrored", "tpu")


def scope(name="none"):
    """The context in which networks, Distiller and optimizer are made and trained.

    Args:
        name: `"none"`; `"mirrored"`, all local GPUs, or logical CPU devices; `"tpu"`, found as the environment says,
            which was not tried on hardware.

    Returns:
        A context manager.

    Raises:
        ValueError: If there is no strategy of that name, or the backend is not TensorFlow.
    """
    import keras

    if name not in NAMES:
        raise ValueError(
            f"There is no strategy {name!r}. Expected one of {NAMES}. Keras 3.15 cannot train under "
            "MultiWorkerMirroredStrategy as it is."
        )
    if name == "none":
        return contextlib.nullcontext()
    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            f"The strategy {name!r} is TensorFlow's, and the backend is {keras.backend.backend()}. Set "
            "KERAS_BACKEND=tensorflow, or use none."
        )
    import tensorflow as tf

    if name == "mirrored":
        gpus = len(tf.config.list_logical_devices("GPU"))
        cpus = [f"CPU:{i}" for i in range(len(tf.config.list_logical_devices("CPU")))]
        return tf.distribute.MirroredStrategy(None if gpus else cpus).scope()
    resolver = tf.distribute.cluster_resolver.TPUClusterResolver()
    tf.config.experimental_connect_to_cluster(resolver)
    tf.tpu.experimental.initialize_tpu_system(resolver)
    return tf.distribute.TPUStrategy(resolver).scope()
