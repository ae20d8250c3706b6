"""The compiled forward pass of a network in inference mode."""

import weakref

import tensorflow as tf

from keras_wsl.backend.tensorflow.batch_normalization import fused

_functions = weakref.WeakKeyDictionary()


def compile_forward(model):
    """Return the `tf.function` of inputs that computes a model's outputs; it is deleted with the model."""
    if model not in _functions:
        reference = weakref.ref(model)  # A value of the dictionary must not keep its key alive.

        @tf.function(reduce_retracing=True)
        def forward(inputs):
            with fused():
                return reference()(inputs, training=False)

        _functions[model] = forward
    return _functions[model]
