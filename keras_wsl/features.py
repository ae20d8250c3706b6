"""What a network computes on its way to the logits, by the name of the layer. No other file knows layers' names."""

import contextlib
import functools
import threading

import keras

from keras_wsl.ops import InputError, shapes_compatible

_recorders = threading.local()  # A strategy traces each replica in a thread of its own.
_lock = threading.Lock()
INPUT = ".input"
_NOT_NORMALIZED = (
    keras.layers.Conv2D,
    keras.layers.DepthwiseConv2D,
    keras.layers.EinsumDense,
    keras.Model,
    keras.layers.InputLayer,
)


class FeatureExtractor:
    """A model that also tells what its inner layers gave: `endpoints(inputs)` is `{"logits": ..., name: ...}`.

    The outputs are recorded while the model is called, once; nothing is rebuilt. So functional, nested, Sequential,
    subclassed, keras-cv and keras-nlp models serve alike. Holds no state, and Keras does not track it. Of a layer that
    the model calls twice, the last call counts. A model that gives a dict has its `"logits"` there.

    Args:
        model: A built `keras.Model`.
        names: Layers' names, at any depth; `"backbone/block3"` where a name is not the only one, and `"pooled.input"`
            for what a layer is given.

    Raises:
        ValueError: If the model has no layer of a name, with those that it has, or several.
    """

    def __init__(self, model, names=()):
        self.model = model
        self.layers = {name: find_layer(model, name.removesuffix(INPUT)) for name in names if name != "logits"}
        self._found, self._updated = None, {}  # To trace a network takes a part of a second.

    def __call__(self, inputs, training=False):
        """The endpoints of one forward pass.

        Raises:
            ValueError: If the forward pass did not reach a named layer, or gave no logits.
        """
        with _record_outputs(self.layers) as outputs, reraise_as_input_error(self.model, inputs):
            logits = self.model(inputs, training=training)
        if missed := sorted(name for name, calls in outputs.items() if not calls):
            raise ValueError(f"{self.model.name} did not call {missed}. Name layers that its forward pass reaches.")
        heads = logits if isinstance(logits, dict) else {"logits": logits}
        if not keras.ops.is_tensor(heads.get("logits")) and not isinstance(heads.get("logits"), keras.KerasTensor):
            raise ValueError(
                f"{self.model.name} must give its logits, or a dict that has them as 'logits'. "
                f"Received: {keras.tree.map_structure(type, logits)}."
            )
        return {**heads, **{name: calls[-1] for name, calls in outputs.items()}}

    def shapes(self):
        """Return the endpoints' shapes by name, found once and without computing anything; `None` stands for the batch.

        Raises:
            ValueError: If the model is not built.
        """
        if self._found is None:
            self._found = self._find_shapes()
        return self._found

    def _find_shapes(self):
        inputs = symbolic_inputs(self.model)
        if keras.backend.backend() == "tensorflow" or not any(map(_has_unknown_length, keras.tree.flatten(inputs))):
            return self._shapes(inputs)
        # Where a length is not known, JAX cannot compare it with the longest one, as position embeddings do; and on
        # Torch Keras tries one of 83, which may be longer than that.
        short, long = (self._shapes(_of_length(inputs, length)) for length in (8, 12))
        return {
            name: tuple(one if one == other else None for one, other in zip(shape, long[name]))
            for name, shape in short.items()
        }

    def updated_in_training(self):
        """Return the ids of the variables that a forward pass in training mode assigns, such as moving statistics.

        Nothing is computed. A frozen batch normalization assigns none.

        Raises:
            ValueError: If the model is not built.
        """
        state = tuple(layer.trainable for layer in self.model._flatten_layers())
        if state not in self._updated:
            self._updated = {state: self._trace_updates()}
        return self._updated[state]

    def _trace_updates(self):
        updated = set()

        def call(inputs):
            with keras.StatelessScope() as scope:
                outputs = self(inputs, training=True)
            updated.update(scope.state_mapping)
            return outputs

        inputs = symbolic_inputs(self.model)
        _spec(call, inputs if keras.backend.backend() == "tensorflow" else _of_length(inputs, 8))
        return updated

    def _shapes(self, inputs):
        return {name: tuple(spec.shape) for name, spec in _spec(self, inputs).items()}


def _spec(call, inputs):
    """What `call` returns for symbolic inputs, as a structure of `keras.KerasTensor`."""
    probe = keras.Operation()
    probe.call = call
    return probe.compute_output_spec(inputs)


def _has_unknown_length(tensor):
    """Whether this is a sequence whose length is not known."""
    return len(tensor.shape) < 4 and None in tensor.shape[1:]


def _of_length(inputs, length):
    """Stand-ins for inputs of which sequences of any length have this one."""

    def of_length(tensor):
        shape = [size or length for size in tensor.shape[1:]] if _has_unknown_length(tensor) else tensor.shape[1:]
        return keras.KerasTensor((*tensor.shape[:1], *shape), tensor.dtype, name=tensor.name)

    return keras.tree.map_structure(of_length, inputs)


def symbolic_inputs(model):
    """Stand-ins for the inputs of a built model: a structure of `keras.KerasTensor`.

    Raises:
        ValueError: If the model is not built.
    """
    inputs = _graph(model, "input")
    if inputs is not None:
        return keras.tree.map_structure(lambda t: keras.KerasTensor(t.shape, t.dtype, name=t.name), inputs)
    shape = (model.get_build_config() or {}).get("input_shape") if model.built else None
    if shape is None:
        raise ValueError(f"{model.name} is not built. Call it on a batch once, or give it an Input, then distil it.")
    return keras.KerasTensor((None, *shape[1:]), model.input_dtype)


@contextlib.contextmanager
def reraise_as_input_error(model, inputs):
    """Where a model fails inside, and these are not the inputs that it was built for, says so by an `InputError`.

    It looks at them only then, so that no step pays for it.
    """
    try:
        yield
    except Exception as error:
        wanted, came = _shapes(symbolic_inputs(model)), _shapes(inputs)
        if wanted.keys() == came.keys() and all(
            len(wanted[key]) == len(came[key]) and shapes_compatible(wanted[key], came[key]) for key in wanted
        ):
            raise
        wanted, came = (shapes.get("", shapes) for shapes in (wanted, came))  # Of a single input, its shape.
        raise InputError(
            f"{model.name} takes inputs of shape {wanted}. Received: {came}. Give it what it was built for; images "
            "are (height, width, channels) each."
        ) from error


def _shapes(inputs):
    """The shapes of inputs by their keys or places."""
    return {
        "/".join(map(str, path)): tuple(getattr(value, "shape", ()))
        for path, value in keras.tree.flatten_with_path(inputs)
    }


def output_layer(model):
    """The layer that gives the model's logits, looked up through nested models; `None` if the graph is not known."""
    output = _graph(model, "output")
    if isinstance(output, dict):
        output = output.get("logits")
    if not isinstance(output, keras.KerasTensor):
        return None
    layer = output._keras_history.operation
    return (output_layer(layer) or layer) if isinstance(layer, keras.Model) else layer


def check_network(role, model):
    """Raises `ValueError` unless `model` is a `keras.Model` that gives logits, as far as its graph shows."""
    if not isinstance(model, keras.Model):
        raise ValueError(f"The {role} must be a keras.Model. Received: {model!r}. Build or load one first.")
    layer = output_layer(model)
    activation = getattr(layer, "activation", None)
    if isinstance(layer, keras.layers.Softmax) or activation in (keras.activations.softmax, keras.activations.sigmoid):
        raise ValueError(
            f"The {role} {model.name!r} gives probabilities: its last layer {layer.name!r} ends in a softmax or "
            f"sigmoid. Distillation needs logits: build it without that activation."
        )


def _graph(model, end):
    """The symbolic `"input"` or `"output"` of a model; `None` if its graph is not known."""
    if isinstance(model, keras.Sequential):
        tensors = getattr(model, f"{end}s") if model.built else None  # It has no `output`.
        return tensors[0] if tensors else None
    try:
        return getattr(model, end)
    except (AttributeError, ValueError):
        return None


def call_as_constant(call, model, inputs, training=False):
    """`call(inputs, training=...)` with `model` as a constant: no gradient reaches it, no update of its state stays.

    With `training=True` batch normalization uses the batch's statistics and keeps its own as they are; dropout, whose
    seed stays too, draws the same mask again in every eager call.
    """
    values = [(variable, keras.ops.stop_gradient(variable.value)) for variable in model.variables]
    with keras.StatelessScope(state_mapping=values):
        outputs = call(inputs, training=training)
    return keras.tree.map_structure(keras.ops.stop_gradient, outputs)


@contextlib.contextmanager
def _record_outputs(layers):
    """Collects the outputs of `layers`, a dict of name to layer, while a model that holds them is called."""
    outputs = {name: [] for name in layers}
    taps = {}
    for name, layer in layers.items():
        taps.setdefault(id(layer), []).append(name)
    stack = _recorders.__dict__.setdefault("stack", [])
    with _lock:
        for layer in layers.values():
            _add_hook(layer)
    stack.append((taps, outputs))
    try:
        yield outputs
    finally:
        stack.pop()
        with _lock:
            for layer in layers.values():
                _remove_hook(layer)


def _add_hook(layer):
    tap = layer.__dict__.get("call")
    if tap is None:
        call = layer.call

        @functools.wraps(call)
        def tap(*args, **kwargs):
            result = call(*args, **kwargs)
            for taps, outputs in _recorders.__dict__.get("stack", ())[-1:]:
                for name in taps.get(id(layer), ()):
                    given = (*args, *kwargs.values())[0] if name.endswith(INPUT) else result
                    outputs[name].append(given)
            return result

        tap.users = 0
        # Past Keras's tracking: an instance's attribute, which `Operation.__call__` finds before the method.
        object.__setattr__(layer, "call", tap)
    tap.users += 1


def _remove_hook(layer):
    tap = layer.__dict__["call"]
    tap.users -= 1
    if not tap.users:
        object.__delattr__(layer, "call")


def preceding_batch_norm(model, endpoint, name=None):
    """The batch normalization whose output a layer gives, or adds to a shortcut.

    Args:
        model: A `keras.Model`.
        endpoint: Name of the layer.
        name: Name of the normalization, where it is known.

    Raises:
        ValueError: If there is none to be found from the layer.
    """
    layer = find_layer(model, name or endpoint)
    while not isinstance(layer, keras.layers.BatchNormalization):
        # What a convolution gives is not normalized, though what it is given may be.
        if layer is None or isinstance(layer, _NOT_NORMALIZED):
            raise ValueError(
                f"{model.name} has no batch normalization just before {endpoint!r} that its graph shows. Name those of "
                "all layers in `normalizations`."
            )
        node = layer._inbound_nodes[-1] if layer._inbound_nodes else None
        before = node.arguments.keras_tensors if node else ()
        # Of a sum, the first summand is the residual branch, here and in the networks of Keras.
        layer = before[0]._keras_history.operation if before and (len(before) == 1 or _is_sum(layer)) else None
    return layer


def _is_sum(layer):
    return isinstance(layer, keras.layers.Add)


def find_layer(model, path):
    """The layer at `"backbone/block3"`, or the only one of that name at any depth.

    Raises:
        ValueError: If there is none, with those that there are, or several.
    """
    name, *rest = path.split("/")
    layers = [layer for layer in model._flatten_layers(include_self=False)]
    found = [layer for layer in layers if layer.name == name]
    if len(found) != 1:
        number = "no layer" if not found else f"{len(found)} layers"
        raise ValueError(
            f"{model.name} has {number} named {name!r}. Expected the name of one layer, or a path such as "
            f"'backbone/{name}': {sorted({layer.name for layer in layers})}."
        )
    return find_layer(found[0], "/".join(rest)) if rest else found[0]
