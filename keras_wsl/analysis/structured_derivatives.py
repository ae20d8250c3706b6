"""The tangent kernel layer by layer: each layer's inputs, the gradients of its outputs, and a rule for its weights."""

import contextlib
import math
from typing import NamedTuple

import keras
import numpy as np

from keras_wsl.analysis import weight_gradients
from keras_wsl.analysis.autodiff import LogitFunction, batch_size, slice_batch

_CHUNK = 2**27  # Bytes of layer outputs per backward pass.
# Tolerances for two computations of float32 gradients, relative to the largest gradient of the weight and of all
# weights. Another use of a weight makes a much larger difference. A ReLU whose input changes sign by rounding makes one
# of 2e-3, and some gradients are exactly 0.
_RELATIVE_TOLERANCE, _ROUNDING = 1e-2, 1e-5


class JacobianBlock(NamedTuple):
    """Some columns of the Jacobian: those of one weight, or of a slice of its last axis.

    `sources` are pairs `(call, rule)` whose gradients sum to the weight's gradient. If there are none, the gradient is
    computed from the network's Jacobian. `factored` means that the gradient is an outer product of two vectors, whose
    Gram matrices are multiplied instead.
    """

    variable: keras.Variable
    sources: tuple
    columns: slice
    width: int
    factored: bool = False

    def rows(self, inputs, deltas):
        """Return the gradients of a chunk of examples, shape `(batch, width)`."""
        total = 0.0
        for call, rule in self.sources:
            delta = deltas[call][..., self.columns] if rule.sliced else deltas[call]
            total = total + rule.rows(inputs[call], delta).reshape(len(delta), -1)
        return total


class LayerTrace:
    """A network that records the inputs of its layers and adds a probe to the output of each.

    The probe is added before the activation. The gradient with respect to it is that of the layer's output.

    Args:
        function: `autodiff.LogitFunction`.
        x: Inputs, a structure of arrays.
        strict: Whether a weight without a rule is an error.

    Raises:
        ValueError: If `strict` and a weight has no rule, with its name.
    """

    def __init__(self, function, x, *, strict=False):
        self.function = function
        self.model = function.model
        rules = self._rules()
        layers = [layer for layer, layer_rules in rules if layer_rules]
        # With two and three examples: an output whose size does not grow accordingly is not one output per example.
        calls, calls_with_three = (
            self._output_shapes(layers, keras.tree.map_structure(lambda a, n=n: _repeat_to_length(a, n), x))
            for n in (2, 3)
        )
        per_example = [(a[0], b[0]) == (2, 3) for (_, a), (_, b) in zip(calls, calls_with_three)]
        excluded = {id(layer) for (layer, _), valid in zip(calls, per_example) if not valid}
        self.layers = [layer for layer in layers if id(layer) not in excluded]
        self.calls = [(layer, shape[1:]) for layer, shape in calls if id(layer) not in excluded]
        self.sources = self._find_sources([(layer, r) for layer, r in rules if id(layer) not in excluded])
        self.sources = self._verify_sources(x)
        if strict and (unknown := [v.path for v in function.variables if not self.sources[id(v)]]):
            raise ValueError(
                "method='structured' requires a rule for each weight. Received: "
                f"{self.model.name} with the weights {unknown}, which have none. Use method='auto', which computes "
                "them from the Jacobian, or method='jacobian'."
            )
        self.chunk = max(1, _CHUNK // (4 * sum(math.prod(shape) for _, shape in self.calls) + 1))

    def _rules(self):
        """Return `(layer, rules)` for each layer with weights of its own. `rules` is empty if one is missing."""
        result = []
        for layer in self.model._flatten_layers(include_self=False):
            inner = {id(v) for sub in layer._flatten_layers(include_self=False) for v in sub.trainable_variables}
            if weights := {id(v) for v in layer.trainable_variables} - inner:
                rules = weight_gradients.rules_for(layer) or []
                result.append((layer, rules if weights <= {id(rule.variable) for rule in rules} else []))
        return result

    def _output_shapes(self, layers, x):
        """Return `(layer, output shape)` for each call, in order."""
        with _record_calls(layers, None) as calls:
            self.function(x)
        return [(layer, tuple(outputs.shape)) for layer, _, outputs in calls]

    def _find_sources(self, rules):
        """Return a dict of variable ids to the `(call, rule)` pairs that sum to the gradient; empty if unknown."""
        sources = {id(v): () for v in self.function.variables}
        for layer, layer_rules in rules:
            calls = [i for i, (called, _) in enumerate(self.calls) if called is layer]
            for rule in layer_rules:
                if id(rule.variable) in sources:
                    sources[id(rule.variable)] += tuple((call, rule) for call in calls)
        return sources

    def _verify_sources(self, x):
        """Return the sources that give the true gradient of two examples: a weight may also be used elsewhere."""
        function, x = LogitFunction(self.model, sum_of_logits=True), slice_batch(x, 0, 2)
        inputs, pull_back = self.run(x, function)
        deltas = pull_back(0)
        expected = function.jacobian(x, function.variables)
        rounding = _ROUNDING * max(np.abs(gradient).max() for gradient in expected)
        sources = dict(self.sources)
        for variable, gradient in zip(function.variables, expected):
            gradient = gradient.reshape(len(gradient), -1)
            rows = JacobianBlock(variable, sources[id(variable)], slice(None), gradient.shape[1]).rows(inputs, deltas)
            if np.abs(rows - gradient).max() > _RELATIVE_TOLERANCE * np.abs(gradient).max() + rounding:
                sources[id(variable)] = ()
        return sources

    def split(self, rows, memory):
        """Split the columns of a Jacobian with `rows` rows into blocks of at most `memory` bytes, if possible."""
        blocks = []
        for variable in self.function.variables:
            sources, count = self.sources[id(variable)], math.prod(variable.shape)
            whole = JacobianBlock(variable, sources, slice(None), count)
            if len(sources) == 1 and self._is_outer_product(sources[0]):
                blocks.append(whole._replace(factored=True))
            elif sources and all(rule.sliced for _, rule in sources):
                last = variable.shape[-1]
                step = max(1, memory // (4 * rows * (count // last)))
                for start in range(0, last, step):
                    columns = slice(start, min(start + step, last))
                    blocks.append(JacobianBlock(variable, sources, columns, count // last * (columns.stop - start)))
            else:
                blocks.append(whole)
        return blocks

    def _is_outer_product(self, source):
        call, rule = source
        layer, shape = self.calls[call]
        return isinstance(layer, keras.layers.Dense) and rule.variable is layer.kernel and len(shape) == 1

    def run(self, x, function=None):
        """Return the inputs of each call, and `pull_back(k)`: the gradients of output `k` at each call."""
        function = function or self.function

        def probed(x, probes):
            with _record_calls(self.layers, probes) as calls:
                outputs = function(x)
            return outputs, [inputs for _, inputs, _ in calls]

        return function.vjp(probed, x, [np.zeros((batch_size(x), *shape), "float32") for _, shape in self.calls])


def _repeat_to_length(array, count):
    return np.resize(np.asarray(array)[:count], (count, *array.shape[1:]))


@contextlib.contextmanager
def _record_calls(layers, probes):
    """Record `(layer, inputs, outputs before the activation)` of each call of the layers, and add the probes."""
    calls = []

    def add_hook(layer):
        call = layer.call

        def hooked_call(inputs, *args, **kwargs):
            activation = getattr(layer, "activation", None)
            # object.__setattr__ bypasses Keras's tracking, here and below.
            object.__setattr__(layer, "activation", None) if activation else None
            try:
                outputs = call(inputs, *args, **kwargs)
            finally:
                object.__setattr__(layer, "activation", activation) if activation else None
            if probes is not None:
                outputs = outputs + probes[len(calls)]
            calls.append((layer, inputs, outputs))
            return activation(outputs) if activation else outputs

        object.__setattr__(layer, "call", hooked_call)

    for layer in layers:
        add_hook(layer)
    try:
        yield calls
    finally:
        for layer in layers:
            object.__delattr__(layer, "call")
