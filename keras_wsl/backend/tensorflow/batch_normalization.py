"""Batch normalization of maps by one kernel of TensorFlow, instead of the dozen operations of Keras."""

import contextlib
import threading

import keras
import tensorflow as tf

_keras_call = keras.layers.BatchNormalization.call
_lock, _users = threading.Lock(), 0
_thread = threading.local()  # A strategy traces each replica in its own thread.


@contextlib.contextmanager
def fused():
    r"""Let `keras.layers.BatchNormalization` normalize maps by one kernel in this context, with equal results.

    $$y = \gamma \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta$$

    Results are equal up to rounding. The moving variance too is divided by n, as in Keras, though the kernel divides by
    n - 1. Other inputs, settings, subclasses and threads are not affected. Layers and files do not change.
    """
    global _users
    with _lock:
        _users += 1
        keras.layers.BatchNormalization.call = _call
    _thread.depth = getattr(_thread, "depth", 0) + 1
    try:
        yield
    finally:
        _thread.depth -= 1
        with _lock:
            _users -= 1
            if not _users:
                keras.layers.BatchNormalization.call = _keras_call


def _call(self, inputs, training=None, mask=None):
    if not getattr(_thread, "depth", 0) or mask is not None or not _fits(self, inputs, training):
        return _keras_call(self, inputs, training=training, mask=mask)
    inputs = keras.ops.cast(inputs, self.compute_dtype)
    gamma, beta, mean, variance = (
        keras.ops.cast(v, "float32") for v in (self.gamma, self.beta, self.moving_mean, self.moving_variance)
    )
    empty = tf.zeros([0])  # The kernel takes no statistics in training.
    outputs, batch_mean, batch_variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=inputs,
        scale=gamma,
        offset=beta,
        mean=empty if training else mean,
        variance=empty if training else variance,
        epsilon=self.epsilon,
        is_training=bool(training),
    )
    if training:
        count = tf.cast(tf.size(inputs) // inputs.shape[-1], "float32")
        batch_variance *= (count - 1) / count
        self.moving_mean.assign(mean * self.momentum + batch_mean * (1.0 - self.momentum))
        self.moving_variance.assign(variance * self.momentum + batch_variance * (1.0 - self.momentum))
    return outputs


def _fits(layer, inputs, training):
    return (
        type(layer) is keras.layers.BatchNormalization
        and len(inputs.shape) == 4
        and layer.axis in (-1, 3)
        and layer.scale
        and layer.center
        and not layer.renorm
        and not layer.synchronized
        and layer.compute_dtype in ("float32", "float16", "bfloat16")
        # The gradient through fixed statistics has no deterministic kernel on GPUs.
        and (layer.trainable or not training)
    )
