"""Outputs of the inner layers of a network by the names of the layers."""

import contextlib
import functools
import threading

import keras

from keras_wsl.argument_checks import InputError
from keras_wsl.ops import shapes_compatible

_recorders = threading.local()  # A strategy traces each replica in its own thread.
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
    """Calls a model and returns the outputs of inner layers too: `{"logits": ..., name: ...}`.

    It records the outputs during one call of the model, and rebuilds nothing: functional, nested, Sequential,
    subclassed, keras-cv and keras-nlp models all work. It has no state, and Keras does not track it. If the model calls
    a layer twice, the last output counts. If the model returns a dict, its `"logits"` are the logits.

    Args:
        model: A built `keras.Model`.
        names: Names of layers at any depth, such as `"block3"`. Use a path, such as `"backbone/block3"`, if several
            layers have the name, and `"pooled.input"` for the input of a layer.

    Raises:
        ValueError: If the model has no layer of a name, or several.
    """

    def __init__(self, model, names=()):
        self.model = model
        self.layers = {name: find_layer(model, name.removesuffix(INPUT)) for name in names if name != "logits"}
        self._shapes, self._updated = None, {}  # Caches, because tracing a network takes a part of a second.

    def __call__(self, inputs, training=False):
        """Compute the outputs of one forward pass.

        Raises:
            ValueError: If the model did not call a named layer, or returned no logits.
        """
        with _record_outputs(self.layers) as records, reraise_as_input_error(self.model, inputs):
            result = self.model(inputs, training=training)
        if missed := sorted(name for name, calls in records.items() if not calls):
            raise ValueError(f"{self.model.name} did not call {missed}. Name layers that its forward pass reaches.")
        outputs = result if isinstance(result, dict) else {"logits": result}
        if not keras.ops.is_tensor(outputs.get("logits")) and not isinstance(outputs.get("logits"), keras.KerasTensor):
            raise ValueError(
                f"{self.model.name} must return logits, or a dict with the logits as 'logits'. "
                f"Received: {keras.tree.map_structure(type, result)}."
            )
        return {**outputs, **{name: calls[-1] for name, calls in records.items()}}

    def shapes(self):
        """Return the shapes of the outputs by name, without a computation; `None` is the size of the batch.

        Raises:
            ValueError: If the model is not built.
        """
        if self._shapes is None:
            self._shapes = self._infer_shapes()
        return self._shapes

    def _infer_shapes(self):
        inputs = symbolic_inputs(self.model)
        if keras.backend.backend() == "tensorflow" or not any(map(_has_unknown_length, keras.tree.flatten(inputs))):
            return self._infer_output_shapes(inputs)
        # JAX cannot compare an unknown length with the largest one, as position embeddings do. On Torch, Keras tries
        # the length 83, which may be too long.
        short, long = (self._infer_output_shapes(_set_length(inputs, length)) for length in (8, 12))
        return {name: tuple(a if a == b else None for a, b in zip(short[name], long[name])) for name in short}

    def updated_in_training(self):
        """Return the ids of the variables that a forward pass in training mode assigns, such as moving statistics.

        It traces the model, without a computation. A frozen batch normalization assigns none.

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
        _compute_spec(call, inputs if keras.backend.backend() == "tensorflow" else _set_length(inputs, 8))
        return updated

    def _infer_output_shapes(self, inputs):
        return {name: tuple(spec.shape) for name, spec in _compute_spec(self, inputs).items()}


def _compute_spec(call, inputs):
    """Return the result of `call` for symbolic inputs, a structure of `keras.KerasTensor`."""
    operation = keras.Operation()
    operation.call = call
    return operation.compute_output_spec(inputs)


def _has_unknown_length(tensor):
    """Return whether a tensor is a sequence of unknown length."""
    return len(tensor.shape) < 4 and None in tensor.shape[1:]


def _set_length(inputs, length):
    """Return symbolic inputs in which the sequences of unknown length have this length."""

    def set_length(tensor):
        shape = [size or length for size in tensor.shape[1:]] if _has_unknown_length(tensor) else tensor.shape[1:]
        return keras.KerasTensor((*tensor.shape[:1], *shape), tensor.dtype, name=tensor.name)

    return keras.tree.map_structure(set_length, inputs)


def symbolic_inputs(model):
    """Return symbolic inputs of a built model, a structure of `keras.KerasTensor`.

    Raises:
        ValueError: If the model is not built.
    """
    inputs = _get_symbolic(model, "input")
    if inputs is not None:
        return keras.tree.map_structure(lambda t: keras.KerasTensor(t.shape, t.dtype, name=t.name), inputs)
    shape = (model.get_build_config() or {}).get("input_shape") if model.built else None
    if shape is None:
        raise ValueError(f"{model.name} is not built. Call it on a batch once, or give it an Input.")
    return keras.KerasTensor((None, *shape[1:]), model.input_dtype)


@contextlib.contextmanager
def reraise_as_input_error(model, inputs):
    """Re-raise an exception from `model` as `InputError` if the inputs do not match its input shapes.

    The inputs are checked after an exception only, which costs no time in a step.
    """
    try:
        yield
    except Exception as error:
        expected, received = _get_shapes(symbolic_inputs(model)), _get_shapes(inputs)
        if expected.keys() == received.keys() and all(
            len(expected[key]) == len(received[key]) and shapes_compatible(expected[key], received[key])
            for key in expected
        ):
            raise
        expected, received = (shapes.get("", shapes) for shapes in (expected, received))  # "" is a single input.
        raise InputError(
            f"{model.name} takes inputs of shape {expected}. Received: {received}. Images are (height, width, "
            "channels) each."
        ) from error


def _get_shapes(inputs):
    """Return the shapes of inputs by their keys or positions."""
    return {
        "/".join(map(str, path)): tuple(getattr(value, "shape", ()))
        for path, value in keras.tree.flatten_with_path(inputs)
    }


def output_layer(model):
    """Return the layer that computes the logits, also in nested models; `None` if the graph is not known."""
    output = _get_symbolic(model, "output")
    if isinstance(output, dict):
        output = output.get("logits")
    if not isinstance(output, keras.KerasTensor):
        return None
    layer = output._keras_history.operation
    return (output_layer(layer) or layer) if isinstance(layer, keras.Model) else layer


def check_network(role, model):
    """Raise `ValueError` unless `model` is a `keras.Model` that returns logits, as far as its graph shows."""
    if not isinstance(model, keras.Model):
        raise ValueError(f"The {role} must be a keras.Model. Received: {model!r}. Build or load one first.")
    layer = output_layer(model)
    activation = getattr(layer, "activation", None)
    if isinstance(layer, keras.layers.Softmax) or activation in (keras.activations.softmax, keras.activations.sigmoid):
        raise ValueError(
            f"The {role} {model.name!r} must return logits. Received: a last layer {layer.name!r} with a softmax or "
            "sigmoid. Build it without that activation."
        )


def _get_symbolic(model, end):
    """Return the symbolic `"input"` or `"output"` of a model; `None` if its graph is not known."""
    if isinstance(model, keras.Sequential):
        tensors = getattr(model, f"{end}s") if model.built else None  # It has no `output`.
        return tensors[0] if tensors else None
    try:
        return getattr(model, end)
    except (AttributeError, ValueError):
        return None


def call_as_constant(call, model, inputs, training=False):
    """Compute `call(inputs, training=...)` with `model` as a constant, without gradients or updates of its state.

    With `training=True`, batch normalization uses the statistics of the batch and keeps its moving statistics. Dropout
    keeps its seed too: its mask is the same in every eager call.
    """
    values = [(variable, keras.ops.stop_gradient(variable.value)) for variable in model.variables]
    with keras.StatelessScope(state_mapping=values):
        outputs = call(inputs, training=training)
    return keras.tree.map_structure(keras.ops.stop_gradient, outputs)


@contextlib.contextmanager
def _record_outputs(layers):
    """Record the outputs of `layers`, a dict by name, while their model is called."""
    outputs = {name: [] for name in layers}
    names_by_layer = {}
    for name, layer in layers.items():
        names_by_layer.setdefault(id(layer), []).append(name)
    stack = _recorders.__dict__.setdefault("stack", [])
    with _lock:
        for layer in layers.values():
            _add_hook(layer)
    stack.append((names_by_layer, outputs))
    try:
        yield outputs
    finally:
        stack.pop()
        with _lock:
            for layer in layers.values():
                _remove_hook(layer)


def _add_hook(layer):
    hook = layer.__dict__.get("call")
    if hook is None:
        call = layer.call

        @functools.wraps(call)
        def hook(*args, **kwargs):
            result = call(*args, **kwargs)
            for names_by_layer, outputs in _recorders.__dict__.get("stack", ())[-1:]:
                for name in names_by_layer.get(id(layer), ()):
                    outputs[name].append((*args, *kwargs.values())[0] if name.endswith(INPUT) else result)
            return result

        hook.users = 0
        # `Operation.__call__` finds the attribute before the method. Keras does not track it.
        object.__setattr__(layer, "call", hook)
    hook.users += 1


def _remove_hook(layer):
    hook = layer.__dict__["call"]
    hook.users -= 1
    if not hook.users:
        object.__delattr__(layer, "call")


def preceding_batch_norm(model, layer_name, name=None):
    """Return the batch normalization whose output a layer returns, or adds to a shortcut.

    Args:
        model: A `keras.Model`.
        layer_name: Name of the layer.
        name: Name of the normalization, if it is known.

    Raises:
        ValueError: If the graph has none before the layer.
    """
    layer = find_layer(model, name or layer_name)
    while not isinstance(layer, keras.layers.BatchNormalization):
        # The output of a convolution is not normalized, though its input may be.
        if layer is None or isinstance(layer, _NOT_NORMALIZED):
            raise ValueError(
                f"{model.name} has no batch normalization just before {layer_name!r} in its graph. Name those of all "
                "layers in `normalizations`."
            )
        node = layer._inbound_nodes[-1] if layer._inbound_nodes else None
        inputs = node.arguments.keras_tensors if node else ()
        # The first input of a sum is the residual branch, here and in the networks of Keras.
        is_sum = isinstance(layer, keras.layers.Add)
        layer = inputs[0]._keras_history.operation if inputs and (len(inputs) == 1 or is_sum) else None
    return layer


def find_layer(model, path):
    """Return the layer at a path such as `"backbone/block3"`, or the only one of a name at any depth.

    Raises:
        ValueError: If there is no such layer, or several.
    """
    name, *rest = path.split("/")
    layers = list(model._flatten_layers(include_self=False))
    matches = [layer for layer in layers if layer.name == name]
    if len(matches) != 1:
        number = "no layer" if not matches else f"{len(matches)} layers"
        raise ValueError(
            f"{model.name} has {number} named {name!r}. Expected the name of one layer, or a path such as "
            f"'backbone/{name}': {sorted({layer.name for layer in layers})}."
        )
    return find_layer(matches[0], "/".join(rest)) if rest else matches[0]
