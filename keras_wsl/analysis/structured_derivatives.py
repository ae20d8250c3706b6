"""The tangent kernel layer by layer: what each layer was given, what comes back to it, and a rule for its weights."""

import contextlib
import math
from typing import NamedTuple

import keras
import numpy as np

from keras_wsl.analysis import weight_gradients
from keras_wsl.analysis.autodiff import Outputs, part, size

_CHUNK = 2**27  # Bytes of layers' outputs that one backward pass goes through.
# Of float32 gradients made in two ways, of the weight's largest and of all: another use of a weight makes a far larger
# difference, one ReLU whose input rounding takes across 0 one of 2e-3, and some gradients are 0 in truth.
_AGREEMENT, _ROUNDING = 1e-2, 1e-5


class Columns(NamedTuple):
    """Some columns of the Jacobian: those of one weight, or of some of the last axis of it.

    `sources` are `(call, rule)`, a weight's gradient being their sum; of none, it comes from the network's Jacobian.
    `factored` where the gradient is a product of two vectors, whose Gram matrices are multiplied instead.
    """

    variable: keras.Variable
    sources: tuple
    columns: slice
    width: int
    factored: bool = False

    def rows(self, inputs, deltas):
        """The gradients of a chunk of examples, shape `(batch, width)`."""
        total = 0.0
        for call, rule in self.sources:
            delta = deltas[call][..., self.columns] if rule.sliced else deltas[call]
            total = total + rule.rows(inputs[call], delta).reshape(len(delta), -1)
        return total


class Recording:
    """A network that tells what its layers were given, and takes a probe that is added to what each gives.

    The probe is added before the activation. The gradient with respect to it is what comes back to the layer.

    Args:
        outputs: `autodiff.Outputs`.
        x: Inputs, a structure of arrays.
        strict: Whether a weight without a rule is an error.

    Raises:
        ValueError: If `strict` and a layer has no rule, with its name.
    """

    def __init__(self, outputs, x, *, strict=False):
        self.outputs = outputs
        self.model = outputs.model
        rules = self._rules()
        layers = [layer for layer, of_layer in rules if of_layer]
        # Of two and of three examples: what does not grow with them is not a layer's output for each example.
        calls, again = (
            self._shapes(layers, keras.tree.map_structure(lambda a, n=n: _repeated(a, n), x)) for n in (2, 3)
        )
        for_each = [(a[0], b[0]) == (2, 3) for (_, a), (_, b) in zip(calls, again)]
        lonely = {id(layer) for (layer, _), fits in zip(calls, for_each) if not fits}
        self.layers = [layer for layer in layers if id(layer) not in lonely]
        self.calls = [(layer, shape[1:]) for layer, shape in calls if id(layer) not in lonely]
        self.sources = self._sources([(layer, of_layer) for layer, of_layer in rules if id(layer) not in lonely])
        self.sources = self._agreeing(x)
        if strict and (unknown := [v.path for v in outputs.variables if not self.sources[id(v)]]):
            raise ValueError(
                f"method='structured' has no rule for the weights {unknown} of {self.model.name}. Use method='auto', "
                "which takes their part from the Jacobian, or method='jacobian'."
            )
        self.chunk = max(1, _CHUNK // (4 * sum(math.prod(shape) for _, shape in self.calls) + 1))

    def _rules(self):
        """Every layer that has trainable weights of its own, with their rules, or with none."""
        found = []
        for layer in self.model._flatten_layers(include_self=False):
            inner = {id(v) for other in layer._flatten_layers(include_self=False) for v in other.trainable_variables}
            if own := {id(v) for v in layer.trainable_variables} - inner:
                rules = weight_gradients.of(layer) or []
                found.append((layer, rules if own <= {id(rule.variable) for rule in rules} else []))
        return found

    def _shapes(self, layers, x):
        """`(layer, shape of what it gave)` of every call, in order."""
        with _tapped(layers, None) as calls:
            self.outputs(x)
        return [(layer, tuple(given.shape)) for layer, _, given in calls]

    def _sources(self, rules):
        """By the variable's id: the `(call, rule)` whose sum is its gradient, or nothing if that is not known."""
        sources = {id(v): () for v in self.outputs.variables}
        for layer, of_layer in rules:
            calls = [i for i, (called, _) in enumerate(self.calls) if called is layer]
            for rule in of_layer:
                if id(rule.variable) in sources:
                    sources[id(rule.variable)] += tuple((call, rule) for call in calls)
        return sources

    def _agreeing(self, x):
        """The sources whose sum is the gradient in truth, of two examples: a weight may be used in other places too."""
        outputs, x = Outputs(self.model, sum_of_logits=True), part(x, 0, 2)
        inputs, pull = self.run(x, outputs)
        deltas = pull(0)
        expected = outputs.jacobian(x, outputs.variables)
        rounding = _ROUNDING * max(np.abs(gradient).max() for gradient in expected)
        sources = dict(self.sources)
        for variable, gradient in zip(outputs.variables, expected):
            gradient = gradient.reshape(len(gradient), -1)
            found = Columns(variable, sources[id(variable)], slice(None), gradient.shape[1]).rows(inputs, deltas)
            if np.abs(found - gradient).max() > _AGREEMENT * np.abs(gradient).max() + rounding:
                sources[id(variable)] = ()
        return sources

    def parts(self, rows, memory):
        """The Jacobian's columns in parts, each of which needs at most `memory` bytes for so many rows if it can."""
        parts = []
        for variable in self.outputs.variables:
            sources, count = self.sources[id(variable)], math.prod(variable.shape)
            everything = Columns(variable, sources, slice(None), count)
            if len(sources) == 1 and self._is_vector(sources[0]):
                parts.append(everything._replace(factored=True))
            elif sources and all(rule.sliced for _, rule in sources):
                last = variable.shape[-1]
                step = max(1, memory // (4 * rows * (count // last)))
                for start in range(0, last, step):
                    columns = slice(start, min(start + step, last))
                    parts.append(Columns(variable, sources, columns, count // last * (columns.stop - start)))
            else:
                parts.append(everything)
        return parts

    def _is_vector(self, source):
        call, rule = source
        layer, shape = self.calls[call]
        return isinstance(layer, keras.layers.Dense) and rule.variable is layer.kernel and len(shape) == 1

    def run(self, x, outputs=None):
        """What the layers were given, and `pull(k)`, which gives what comes back to them from output `k`."""
        outputs = outputs or self.outputs

        def probed(x, probes):
            with _tapped(self.layers, probes) as calls:
                given = outputs(x)
            return given, [inputs for _, inputs, _ in calls]

        return outputs.pullback(probed, x, [np.zeros((size(x), *shape), "float32") for _, shape in self.calls])


def _repeated(array, count):
    return np.resize(np.asarray(array)[:count], (count, *array.shape[1:]))


@contextlib.contextmanager
def _tapped(layers, probes):
    """Collects `(layer, inputs, outputs before the activation)` of every call of the layers, and adds the probes."""
    calls = []

    def tap(layer):
        call = layer.call

        def tapped(inputs, *args, **kwargs):
            activation = getattr(layer, "activation", None)
            # Past Keras's tracking, as the tap itself.
            object.__setattr__(layer, "activation", None) if activation else None
            try:
                given = call(inputs, *args, **kwargs)
            finally:
                object.__setattr__(layer, "activation", activation) if activation else None
            if probes is not None:
                given = given + probes[len(calls)]
            calls.append((layer, inputs, given))
            return activation(given) if activation else given

        object.__setattr__(layer, "call", tapped)

    for layer in layers:
        tap(layer)
    try:
        yield calls
    finally:
        for layer in layers:
            object.__delattr__(layer, "call")
