r"""Per-example gradients with respect to a layer's weights, from the layer's inputs and the gradients of its outputs.

If examples do not depend on each other, only a layer's input $a_i$ and the gradient $\delta_i$ with respect to its
output *before* the activation are needed. Neither must be stored for the whole network at once, and a dense layer's
gradient $a_i \delta_i^T$ need not be computed: its Gram matrix is
$\langle a_i, a_j \rangle \langle \delta_i, \delta_j \rangle$ (Novak et al., 2022, https://arxiv.org/abs/2206.08720).
"""

from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
from keras import layers


class Weight(NamedTuple):
    """The rule for one weight: `rows(inputs, delta)` returns its gradients, shape `(batch, *weight.shape)`.

    `sliced` means that a slice of `delta`'s last axis gives the gradients of the same slice of the weight's last axis.
    """

    variable: keras.Variable
    rows: Callable
    sliced: bool = True


def rules_for(layer):
    """Return the rules of a layer's own weights: a list of `Weight`, or `None` if the layer is not supported."""
    for cls, make_rules in _RULES:
        # A subclass with another computation has no rule.
        if isinstance(layer, cls) and type(layer).call is cls.call:
            return make_rules(layer)
    return None


def _dense(layer):
    weights = [Weight(layer.kernel, _sum_of_outer_products)]
    return weights + ([Weight(layer.bias, _sum_except_last(1))] if layer.use_bias else [])


def _convolution(layer):
    rank, last = layer.rank, layer.data_format != "channels_first"

    def kernel(inputs, delta):
        inputs, delta = (array if last else np.moveaxis(array, 1, -1) for array in (inputs, delta))
        patches = _patches(inputs, layer)
        groups = zip(*(np.split(array, layer.groups, axis=-1) for array in (patches, delta)))
        rows = [_sum_of_outer_products(p.reshape(*p.shape[: rank + 1], -1), d) for p, d in groups]
        rows = rows[0] if len(rows) == 1 else np.concatenate(rows, axis=-1)
        return rows.reshape(len(inputs), *layer.kernel_size, -1, rows.shape[-1])

    sliced = last and layer.groups == 1
    weights = [Weight(layer.kernel, kernel, sliced)]
    return weights + (
        [Weight(layer.bias, _sum_except_last(1) if last else _sum_per_channel, sliced)] if layer.use_bias else []
    )


def _depthwise(layer):
    last = layer.data_format != "channels_first"

    def kernel(inputs, delta):
        inputs, delta = (array if last else np.moveaxis(array, 1, -1) for array in (inputs, delta))
        patches = _patches(inputs, layer)
        delta = delta.reshape(*delta.shape[:-1], patches.shape[-1], -1)
        return np.einsum("bhwijc,bhwcm->bijcm", patches, delta, optimize=True)

    weights = [Weight(layer.kernel, kernel, sliced=False)]
    return weights + (
        [Weight(layer.bias, _sum_except_last(1) if last else _sum_per_channel, False)] if layer.use_bias else []
    )


def _batch_normalization(layer):
    def broadcast(values, rank):
        shape = [1] * rank
        shape[layer.axis] = -1
        return _numpy(values).reshape(shape)

    def sum_positions(rows):
        return np.moveaxis(rows, layer.axis, -1).reshape(len(rows), -1, rows.shape[layer.axis]).sum(1)

    def scale(inputs, delta):
        mean, variance = (broadcast(v, inputs.ndim) for v in (layer.moving_mean, layer.moving_variance))
        return sum_positions(delta * (inputs - mean) / np.sqrt(variance + layer.epsilon))

    weights = [Weight(layer.gamma, scale, sliced=False)] if layer.scale else []
    return weights + ([Weight(layer.beta, lambda _, delta: sum_positions(delta), sliced=False)] if layer.center else [])


def _layer_normalization(layer):
    if layer.rms_scaling:
        return None
    axes = layer.axis if isinstance(layer.axis, (list, tuple)) else [layer.axis]

    def sum_positions(rows):
        weight_axes = {axis % rows.ndim for axis in axes}
        return rows.sum(axis=tuple(axis for axis in range(1, rows.ndim) if axis not in weight_axes))

    def scale(inputs, delta):
        inputs = inputs.astype("float64")
        mean, variance = (moment(axis=tuple(axes), keepdims=True) for moment in (inputs.mean, inputs.var))
        normalized = (inputs - mean) / np.sqrt(variance + layer.epsilon)
        return sum_positions(delta * normalized.astype("float32"))

    weights = [Weight(layer.gamma, scale, sliced=False)] if layer.gamma is not None else []
    has_offset = layer.beta is not None
    return weights + ([Weight(layer.beta, lambda _, delta: sum_positions(delta), sliced=False)] if has_offset else [])


def _embedding(layer):
    def rows(tokens, delta):
        tokens = tokens.astype("int64").reshape(len(tokens), -1)
        delta = delta.reshape(*tokens.shape, -1)
        gradients = np.zeros((len(tokens), layer.input_dim, delta.shape[-1]), "float32")
        np.add.at(gradients, (np.arange(len(tokens))[:, None], tokens), delta)
        return gradients

    return [Weight(layer.embeddings, rows)]


def _einsum(layer):
    terms, _, result = layer.equation.replace(" ", "").partition("->")
    operand, kernel = terms.split(",")
    batch = operand[0]
    if "." in layer.equation or result[0] != batch or batch in kernel:
        return None

    def rows(inputs, delta):
        return np.einsum(f"{operand},{result}->{batch}{kernel}", inputs, delta, optimize=True)

    def bias(_, delta):
        shape = (1,) * (delta.ndim - len(layer.bias.shape)) + tuple(layer.bias.shape)  # Its shape when broadcast.
        total = delta.sum(axis=tuple(axis for axis in range(1, delta.ndim) if shape[axis] == 1))
        return total.reshape(len(delta), *layer.bias.shape)

    weights = [Weight(layer.kernel, rows, sliced=kernel[-1] == result[-1] and kernel[-1] not in operand)]
    return weights + ([Weight(layer.bias, bias, sliced=False)] if layer.bias is not None else [])


def _sum_of_outer_products(inputs, delta):
    """Sum `inputs delta^T` over positions: `(batch, ..., m)` and `(batch, ..., n)` to `(batch, m, n)`."""
    inputs = inputs.reshape(len(inputs), -1, inputs.shape[-1])
    return np.matmul(inputs.transpose(0, 2, 1), delta.reshape(len(delta), -1, delta.shape[-1]))


def _sum_except_last(rank):
    """Return a rule that sums `delta` over all axes except the batch and the last `rank` axes."""
    return lambda _, delta: delta.sum(axis=tuple(range(1, delta.ndim - rank)))


def _sum_per_channel(_, delta):
    return delta.sum(axis=tuple(range(2, delta.ndim)))


def _patches(inputs, layer):
    """Return the input patch of each output of a convolution: `(batch, *positions, *kernel_size, channels)`."""
    spatial = range(1, inputs.ndim - 1)
    sides = zip(inputs.shape[1:-1], layer.kernel_size, layer.strides, layer.dilation_rate)
    extent = [(size - 1) * dilation + 1 for size, dilation in zip(layer.kernel_size, layer.dilation_rate)]
    if layer.padding == "same":
        missing = [
            max((-(-n // stride) - 1) * stride + (size - 1) * dilation + 1 - n, 0)
            for n, size, stride, dilation in sides
        ]
        inputs = np.pad(inputs, [(0, 0), *((m // 2, m - m // 2) for m in missing), (0, 0)])
    windows = np.lib.stride_tricks.sliding_window_view(inputs, extent, axis=tuple(spatial))
    # (batch, *positions, channels, *extent): every stride-th position, every dilation-th element of the extent.
    steps = [slice(None), *(slice(None, None, s) for s in layer.strides), slice(None)]
    windows = windows[(*steps, *(slice(None, None, d) for d in layer.dilation_rate))]
    return np.moveaxis(windows, len(layer.kernel_size) + 1, -1)


def _numpy(value):
    return keras.ops.convert_to_numpy(value)


_RULES = (
    (layers.Dense, _dense),
    (layers.Conv1D, lambda layer: None if layer.padding == "causal" else _convolution(layer)),
    (layers.Conv2D, _convolution),
    (layers.Conv3D, _convolution),
    (layers.DepthwiseConv2D, _depthwise),
    (layers.BatchNormalization, _batch_normalization),
    (layers.LayerNormalization, _layer_normalization),
    (layers.Embedding, _embedding),
    (layers.EinsumDense, _einsum),
)
