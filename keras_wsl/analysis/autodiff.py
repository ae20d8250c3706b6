"""Derivatives of a network's logits on any backend: pullbacks, Jacobians and NTK-vector products."""

import contextlib

import keras
import numpy as np

from keras_wsl.features import FeatureExtractor


class Outputs:
    r"""The outputs of a network whose tangent kernel is asked for, $g(x) = R^T f(x)$ of the logits $f(x)$.

    Runs in inference mode, so that the examples of a batch do not depend on each other, and in float32.

    Args:
        model: A built `keras.Model` that gives logits, `(batch, classes)`.
        sum_of_logits: Whether $R$ is the column $C^{-1/2} (1, \dots, 1)^T$; the identity otherwise.
    """

    def __init__(self, model, *, sum_of_logits=False):
        self.model = model
        self.sum_of_logits = sum_of_logits
        self.variables = model.trainable_variables
        self._endpoints = FeatureExtractor(model)
        self._compiled = {}

    def __call__(self, x):
        """Floats, shape `(batch, outputs)`.

        Raises:
            ValueError: If the logits are not `(batch, classes)`.
        """
        logits = self._endpoints(x, training=False)["logits"]
        if len(logits.shape) != 2:
            raise ValueError(
                f"The kernel of {self.model.name} needs logits of shape (batch, classes). Received: "
                f"{tuple(logits.shape)}."
            )
        if self.sum_of_logits:
            return keras.ops.sum(logits, axis=-1, keepdims=True) * logits.shape[-1] ** -0.5
        return logits

    def pullback(self, function, x, probes):
        r"""Runs `function(x, probes) -> (outputs, others)`; gives the outputs' gradient with respect to the probes.

        Args:
            function: It calls these outputs, and is a function of its arguments and of the model's variables alone.
            x: Inputs, a structure of arrays.
            probes: List of NumPy arrays.

        Returns:
            `(others, pull)`: NumPy arrays, and `pull(k)`, the gradients of $\sum_i g_k(x_i)$, a list of NumPy arrays.
        """
        with full_precision():
            return _backend(_PULLBACKS)(self, function, x, probes)

    def jacobian(self, x, variables):
        """The Jacobian of the outputs with respect to some variables.

        Args:
            x: Inputs, a structure of arrays.
            variables: List of the model's variables.

        Returns:
            List of NumPy arrays, each of shape `(batch, outputs, *variable.shape)`.
        """
        with full_precision():
            return _backend(_JACOBIANS)(self, x, variables)

    def products(self, x, vectors):
        r"""$J(x) v$, forward through the network.

        Args:
            x: Inputs, a structure of arrays.
            vectors: $v$, NumPy arrays shaped as the model's trainable variables.

        Returns:
            A NumPy array, shape `(batch, outputs)`.
        """
        with full_precision():
            return _backend(_PRODUCTS)(self, x, vectors)

    def with_values(self, variables, values, x):
        """The outputs with other values of some variables."""
        with keras.StatelessScope(state_mapping=list(zip(variables, values))):
            return self(x)

    def compiled(self, name, make):
        """What `make` gives, made once."""
        if name not in self._compiled:
            self._compiled[name] = make()
        return self._compiled[name]


def part(x, start, count=1):
    """So many examples of a structure of arrays, from `start` on."""
    return keras.tree.map_structure(lambda array: array[start : start + count], x)


def size(x):
    """How many examples a structure of arrays has.

    Raises:
        ValueError: If its arrays have different lengths, or none has any.
    """
    lengths = {len(array) for array in keras.tree.flatten(x)}
    if len(lengths) != 1 or lengths == {0}:
        raise ValueError(f"Inputs must be arrays of one length, of at least one example. Received lengths {lengths}.")
    return lengths.pop()


@contextlib.contextmanager
def full_precision():
    """Float32 products in float32: GPUs round the factors to ten bits unless they are told not to."""
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        with jax.default_matmul_precision("highest"):
            yield
    elif backend == "torch":
        import torch

        with torch.backends.cudnn.flags(allow_tf32=False), torch.enable_grad():
            yield
    else:
        import tensorflow as tf

        allowed = tf.config.experimental.tensor_float_32_execution_enabled()
        tf.config.experimental.enable_tensor_float_32_execution(False)
        try:
            yield
        finally:
            tf.config.experimental.enable_tensor_float_32_execution(allowed)


def _backend(functions):
    return functions[keras.backend.backend()]


def _numpy(tensors):
    return keras.tree.map_structure(keras.ops.convert_to_numpy, tensors)


def _unit(outputs, k):
    """The cotangent that picks output `k` of every example."""
    unit = np.zeros(outputs.shape, "float32")
    unit[:, k] = 1.0
    return unit


def _pullback_tensorflow(outputs, function, x, probes):
    import tensorflow as tf

    probes = [tf.constant(probe) for probe in probes]
    with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
        tape.watch(probes)
        given, others = function(x, probes)

    def pull(k):
        gradients = tape.gradient(given, probes, output_gradients=tf.constant(_unit(given, k)))
        return [np.zeros(p.shape, "float32") if g is None else g.numpy() for p, g in zip(probes, gradients)]

    return _numpy(others), pull


def _pullback_torch(outputs, function, x, probes):
    import torch

    device = outputs.variables[0].value.device
    probes = [torch.tensor(probe, device=device, requires_grad=True) for probe in probes]
    given, others = function(x, probes)

    def pull(k):
        gradients = torch.autograd.grad(given[:, k].sum(), probes, retain_graph=True, allow_unused=True)
        return [np.zeros(tuple(p.shape), "float32") if g is None else _numpy(g) for p, g in zip(probes, gradients)]

    return _numpy(others), pull


def _pullback_jax(outputs, function, x, probes):
    import jax

    variables = outputs.model.variables

    def make():
        def forward(values, x, probes):
            with keras.StatelessScope(state_mapping=list(zip(variables, values))):
                return jax.vjp(lambda probes: function(x, probes), probes, has_aux=True)

        return jax.jit(forward), jax.jit(lambda pull, cotangent: pull(cotangent)[0])

    forward, backward = outputs.compiled("pullback", make)
    given, pull, others = forward([v.value for v in variables], x, probes)
    return _numpy(others), lambda k: [np.asarray(g) for g in backward(pull, _unit(given, k))]


def _jacobian_tensorflow(outputs, x, variables):
    import tensorflow as tf

    sources = [variable.value for variable in variables]
    rows = []
    for i in range(size(x)):
        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
            tape.watch(sources)
            given = tf.unstack(outputs(keras.tree.map_structure(tf.constant, part(x, i)))[0])
        gradients = [tape.gradient(g, sources, unconnected_gradients="zero") for g in given]
        # Of an embedding they are given row by row.
        rows.append([np.stack([tf.convert_to_tensor(g).numpy() for g in of_source]) for of_source in zip(*gradients)])
    return [np.stack(parts) for parts in zip(*rows)]


def _jacobian_torch(outputs, x, variables):
    import torch

    parameters = [variable.value for variable in variables]
    rows = []
    for i in range(size(x)):
        given = outputs(part(x, i))[0]
        gradients = [torch.autograd.grad(g, parameters, retain_graph=True, allow_unused=True) for g in given]
        rows.append(
            [
                np.stack([np.zeros(tuple(p.shape), "float32") if g is None else _numpy(g) for g in of_parameter])
                for p, of_parameter in zip(parameters, zip(*gradients))
            ]
        )
    return [np.stack(parts) for parts in zip(*rows)]


def _jacobian_jax(outputs, x, variables):
    import jax

    def make():
        def of_one(values, x):
            batch = keras.tree.map_structure(lambda array: array[None], x)
            return outputs.with_values(variables, values, batch)[0]

        return jax.jit(jax.vmap(jax.jacrev(of_one), in_axes=(None, 0)))

    of_all = outputs.compiled(("jacobian", *map(id, variables)), make)
    return [np.asarray(rows) for rows in of_all([v.value for v in variables], x)]


def _products_tensorflow(outputs, x, vectors):
    import tensorflow as tf

    values = [variable.value for variable in outputs.variables]
    with tf.autodiff.ForwardAccumulator(values, [tf.constant(vector) for vector in vectors]) as accumulator:
        given = outputs(x)
    return accumulator.jvp(given).numpy()


def _products_torch(outputs, x, vectors):
    import torch

    values = [variable.value.detach() for variable in outputs.variables]
    tangents = [torch.tensor(vector, device=value.device) for vector, value in zip(vectors, values)]
    given = torch.func.jvp(
        lambda *values: outputs.with_values(outputs.variables, values, x), tuple(values), tuple(tangents)
    )
    return _numpy(given[1])


def _products_jax(outputs, x, vectors):
    import jax

    def make():
        def product(values, x, vectors):
            return jax.jvp(lambda values: outputs.with_values(outputs.variables, values, x), (values,), (vectors,))[1]

        return jax.jit(product)

    return np.asarray(outputs.compiled("product", make)([v.value for v in outputs.variables], x, list(vectors)))


_PULLBACKS = {"tensorflow": _pullback_tensorflow, "torch": _pullback_torch, "jax": _pullback_jax}
_JACOBIANS = {"tensorflow": _jacobian_tensorflow, "torch": _jacobian_torch, "jax": _jacobian_jax}
_PRODUCTS = {"tensorflow": _products_tensorflow, "torch": _products_torch, "jax": _products_jax}
