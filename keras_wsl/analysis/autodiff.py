"""Derivatives of a network's logits on any backend: vector-Jacobian products, Jacobians, Jacobian-vector products."""

import contextlib

import keras
import numpy as np

from keras_wsl.features import FeatureExtractor


class LogitFunction:
    r"""The function $g(x) = R^T f(x)$ of the logits $f(x)$ whose tangent kernel is computed.

    It runs in inference mode, so that the examples of a batch do not depend on each other, and in float32.

    Args:
        model: A built `keras.Model` that returns logits, `(batch, classes)`.
        sum_of_logits: Whether $R$ is the column $C^{-1/2} (1, \dots, 1)^T$; otherwise the identity.
    """

    def __init__(self, model, *, sum_of_logits=False):
        self.model = model
        self.sum_of_logits = sum_of_logits
        self.variables = model.trainable_variables
        self._extractor = FeatureExtractor(model)
        self._compiled = {}

    def __call__(self, x):
        """Return the outputs: floats, shape `(batch, outputs)`.

        Raises:
            ValueError: If the logits are not `(batch, classes)`.
        """
        logits = self._extractor(x, training=False)["logits"]
        if len(logits.shape) != 2:
            raise ValueError(
                f"The logits of {self.model.name} must have shape (batch, classes). Received: {tuple(logits.shape)}."
            )
        if self.sum_of_logits:
            return keras.ops.sum(logits, axis=-1, keepdims=True) * logits.shape[-1] ** -0.5
        return logits

    def vjp(self, function, x, probes):
        r"""Run `function(x, probes) -> (outputs, aux)` and return its vector-Jacobian products for the probes.

        Args:
            function: A function that calls this object and depends only on its arguments and the model's variables.
            x: Inputs, a structure of arrays.
            probes: List of NumPy arrays.

        Returns:
            `(aux, pull_back)`: NumPy arrays, and a function. `pull_back(k)` returns the gradients of $\sum_i g_k(x_i)$
            with respect to the probes, a list of NumPy arrays.
        """
        with full_precision():
            return _backend(_VJPS)(self, function, x, probes)

    def jacobian(self, x, variables):
        """Return the Jacobian of the outputs with respect to some variables.

        Args:
            x: Inputs, a structure of arrays.
            variables: List of the model's variables.

        Returns:
            List of NumPy arrays, each of shape `(batch, outputs, *variable.shape)`.
        """
        with full_precision():
            return _backend(_JACOBIANS)(self, x, variables)

    def jvp(self, x, vectors):
        r"""Return $J(x) v$, computed in forward mode.

        Args:
            x: Inputs, a structure of arrays.
            vectors: $v$, NumPy arrays with the shapes of the model's trainable variables.

        Returns:
            A NumPy array, shape `(batch, outputs)`.
        """
        with full_precision():
            return _backend(_JVPS)(self, x, vectors)

    def with_values(self, variables, values, x):
        """Return the outputs with other values of some variables."""
        with keras.StatelessScope(state_mapping=list(zip(variables, values))):
            return self(x)

    def get_compiled(self, name, make):
        """Return the result of `make`, which is called once per name."""
        if name not in self._compiled:
            self._compiled[name] = make()
        return self._compiled[name]


def slice_batch(x, start, count=1):
    """Return `count` examples of a structure of arrays, beginning with `start`."""
    return keras.tree.map_structure(lambda array: array[start : start + count], x)


def batch_size(x):
    """Return the number of examples in a structure of arrays.

    Raises:
        ValueError: If the arrays have different lengths, or no examples.
    """
    lengths = {len(array) for array in keras.tree.flatten(x)}
    if len(lengths) != 1 or lengths == {0}:
        raise ValueError(
            f"Inputs must be arrays of the same length, with at least one example. Received: lengths {lengths}."
        )
    return lengths.pop()


@contextlib.contextmanager
def full_precision():
    """Compute float32 products in float32: by default, GPUs round the factors to 10 bits of mantissa."""
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


def _one_hot_cotangent(outputs, k):
    """Return the cotangent that selects output `k` of each example."""
    cotangent = np.zeros(outputs.shape, "float32")
    cotangent[:, k] = 1.0
    return cotangent


def _vjp_tensorflow(outputs, function, x, probes):
    import tensorflow as tf

    probes = [tf.constant(probe) for probe in probes]
    with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
        tape.watch(probes)
        values, aux = function(x, probes)

    def pull_back(k):
        gradients = tape.gradient(values, probes, output_gradients=tf.constant(_one_hot_cotangent(values, k)))
        return [np.zeros(p.shape, "float32") if g is None else g.numpy() for p, g in zip(probes, gradients)]

    return _numpy(aux), pull_back


def _vjp_torch(outputs, function, x, probes):
    import torch

    device = outputs.variables[0].value.device
    probes = [torch.tensor(probe, device=device, requires_grad=True) for probe in probes]
    values, aux = function(x, probes)

    def pull_back(k):
        gradients = torch.autograd.grad(values[:, k].sum(), probes, retain_graph=True, allow_unused=True)
        return [np.zeros(tuple(p.shape), "float32") if g is None else _numpy(g) for p, g in zip(probes, gradients)]

    return _numpy(aux), pull_back


def _vjp_jax(outputs, function, x, probes):
    import jax

    variables = outputs.model.variables

    def make():
        def forward(values, x, probes):
            with keras.StatelessScope(state_mapping=list(zip(variables, values))):
                return jax.vjp(lambda probes: function(x, probes), probes, has_aux=True)

        return jax.jit(forward), jax.jit(lambda pull_back, cotangent: pull_back(cotangent)[0])

    forward, backward = outputs.get_compiled("vjp", make)
    values, pull_back, aux = forward([v.value for v in variables], x, probes)
    return _numpy(aux), lambda k: [np.asarray(g) for g in backward(pull_back, _one_hot_cotangent(values, k))]


def _jacobian_tensorflow(outputs, x, variables):
    import tensorflow as tf

    sources = [variable.value for variable in variables]
    rows = []
    for i in range(batch_size(x)):
        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
            tape.watch(sources)
            values = tf.unstack(outputs(keras.tree.map_structure(tf.constant, slice_batch(x, i)))[0])
        gradients = [tape.gradient(g, sources, unconnected_gradients="zero") for g in values]
        # Gradients of embeddings are IndexedSlices.
        rows.append([np.stack([tf.convert_to_tensor(g).numpy() for g in per_output]) for per_output in zip(*gradients)])
    return [np.stack(arrays) for arrays in zip(*rows)]


def _jacobian_torch(outputs, x, variables):
    import torch

    parameters = [variable.value for variable in variables]
    rows = []
    for i in range(batch_size(x)):
        values = outputs(slice_batch(x, i))[0]
        gradients = [torch.autograd.grad(g, parameters, retain_graph=True, allow_unused=True) for g in values]
        rows.append(
            [
                np.stack([np.zeros(tuple(p.shape), "float32") if g is None else _numpy(g) for g in per_output])
                for p, per_output in zip(parameters, zip(*gradients))
            ]
        )
    return [np.stack(arrays) for arrays in zip(*rows)]


def _jacobian_jax(outputs, x, variables):
    import jax

    def make():
        def single_example(values, x):
            batch = keras.tree.map_structure(lambda array: array[None], x)
            return outputs.with_values(variables, values, batch)[0]

        return jax.jit(jax.vmap(jax.jacrev(single_example), in_axes=(None, 0)))

    batched = outputs.get_compiled(("jacobian", *map(id, variables)), make)
    return [np.asarray(rows) for rows in batched([v.value for v in variables], x)]


def _jvp_tensorflow(outputs, x, vectors):
    import tensorflow as tf

    values = [variable.value for variable in outputs.variables]
    with tf.autodiff.ForwardAccumulator(values, [tf.constant(vector) for vector in vectors]) as accumulator:
        result = outputs(x)
    return accumulator.jvp(result).numpy()


def _jvp_torch(outputs, x, vectors):
    import torch

    values = [variable.value.detach() for variable in outputs.variables]
    tangents = [torch.tensor(vector, device=value.device) for vector, value in zip(vectors, values)]
    _, result = torch.func.jvp(
        lambda *values: outputs.with_values(outputs.variables, values, x), tuple(values), tuple(tangents)
    )
    return _numpy(result)


def _jvp_jax(outputs, x, vectors):
    import jax

    def make():
        def product(values, x, vectors):
            return jax.jvp(lambda values: outputs.with_values(outputs.variables, values, x), (values,), (vectors,))[1]

        return jax.jit(product)

    return np.asarray(outputs.get_compiled("jvp", make)([v.value for v in outputs.variables], x, list(vectors)))


_VJPS = {"tensorflow": _vjp_tensorflow, "torch": _vjp_torch, "jax": _vjp_jax}
_JACOBIANS = {"tensorflow": _jacobian_tensorflow, "torch": _jacobian_torch, "jax": _jacobian_jax}
_JVPS = {"tensorflow": _jvp_tensorflow, "torch": _jvp_torch, "jax": _jvp_jax}
