"""A network that computes the same by other kernels: would it make a step faster?"""

import collections

import keras
import numpy as np


def folded(model):
    r"""A network in inference mode, with each batch normalization that follows a convolution made part of it.

    $$\gamma \frac{(W * x + b) - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta = (s W) * x + \beta + s (b - \mu), \qquad
      s = \frac{\gamma}{\sqrt{\sigma^2 + \epsilon}}$$

    For a frozen teacher. A normalization stays where its input is a sum, or a convolution whose output others need too:
    most of those of a network with pre-activation. The names of the folded ones are no longer there.

    Args:
        model: A functional `keras.Model`.

    Returns:
        A `keras.Model` with variables of its own.
    """
    pairs = _pairs(model)
    convolutions = {convolution.name: normalization for normalization, convolution in pairs}
    gone = {normalization.name for normalization, _ in pairs}

    def clone(layer):
        config = layer.get_config()
        return type(layer).from_config({**config, "use_bias": True} if layer.name in convolutions else config)

    def call(layer, *args, **kwargs):
        return args[0] if layer.name in gone else layer(*args, **kwargs)

    twin = keras.models.clone_model(model, clone_function=clone, call_function=call)
    for layer in twin.layers:
        original = model.get_layer(layer.name)
        if layer.name in convolutions:
            layer.set_weights(_merged(original, convolutions[layer.name]))
        else:
            layer.set_weights(original.get_weights())
    return twin


def _pairs(model):
    """`(normalization, convolution)` where the one is all that uses the other's output."""
    sources, uses = {}, collections.Counter()
    for layer in model.layers:
        for tensor in (tensor for node in layer._inbound_nodes for tensor in node.arguments.keras_tensors):
            source = tensor._keras_history.operation
            sources[layer.name] = source
            uses[source.name] += 1
    uses.update(tensor._keras_history.operation.name for tensor in model.outputs)
    return [
        (layer, sources[layer.name])
        for layer in model.layers
        if isinstance(layer, keras.layers.BatchNormalization)
        and type(sources[layer.name]) is keras.layers.Conv2D
        and sources[layer.name].activation is keras.activations.linear
        and uses[sources[layer.name].name] == 1
    ]


def _merged(convolution, normalization):
    """Kernel and bias of the two, computed in float64."""
    kernel, *bias = (np.asarray(values, "float64") for values in convolution.get_weights())
    values = {
        variable.name: np.asarray(keras.ops.convert_to_numpy(variable), "float64")
        for variable in normalization.variables
    }
    scale = values.get("gamma", 1.0) / np.sqrt(values["moving_variance"] + normalization.epsilon)
    shift = values.get("beta", 0.0) + scale * (sum(bias) - values["moving_mean"])
    return [kernel * scale, shift]
