"""The teachers of a Distiller: which of them run, which inputs they get, and which one a loss sees."""

import keras
from keras import ops

from keras_wsl.argument_checks import InputError
from keras_wsl.features import FeatureExtractor, call_as_constant, check_network, symbolic_inputs
from keras_wsl.ops import log_mean_softmax
from keras_wsl.top_k_logits import TopKLogits, expand

_FILES = (".keras", ".h5")


class Teachers:
    """The teachers that the losses of a Distiller use. Calling it runs them on a batch, each once.

    Keras tracks no attribute of this class: teachers are in no file, are not trained and not exported.

    Args:
        teacher: A built `keras.Model`; a string, the key of cached logits in the targets dict; a dict of several such
            by name; or `None`.
        student: `FeatureExtractor` of the student.
        losses: List of `DistillationLoss`. Teachers that no loss uses do not run.
        inputs: Selector of the teachers' inputs, see `select_inputs`; for several teachers, a dict by their names.
        same_inputs: Whether teachers without a selector must take the same inputs as the student.
        batch_statistics: Whether batch normalization uses the statistics of the batch. No state changes either way.
        counting: Selector of the teacher with which regularization samples are counted, see `get_teacher_weights`. It
            runs even if no loss uses it. By default the teacher of the first loss.

    Attributes:
        weights_by_loss: List of dicts of the names of the teachers that each loss uses to their weights.
        counting_weights: The same for `counting`.

    Raises:
        ValueError: If a teacher is no network, is the student, or returns probabilities; if `inputs` or a loss names a
            teacher that does not exist; or if a loss needs layers of a teacher whose logits are cached.
    """

    def __init__(
        self, teacher, student, losses, *, inputs=None, same_inputs=True, batch_statistics=False, counting=None
    ):
        if teacher == {}:
            raise ValueError("`teacher` must have at least one teacher. Received: teacher={}. Pass None for none.")
        by_name = teacher if isinstance(teacher, dict) else {} if teacher is None else {"teacher": teacher}
        for name, model in by_name.items():
            _check_teacher(name, model, student.model, batch_statistics)
        if isinstance(inputs, dict) and by_name and (unknown := sorted(set(inputs) - set(by_name))):
            raise ValueError(f"`teacher_inputs` has no teachers {unknown}. The teachers are {sorted(by_name)}.")
        self.teacher = teacher
        self._student, self._losses, self._inputs = student, losses, inputs
        self._same_inputs, self._batch_statistics = same_inputs, batch_statistics
        self._extractors = {}
        self.weights_by_loss = [get_teacher_weights(loss.teacher, by_name, loss) if by_name else {} for loss in losses]
        self.counting_weights = self.weights_by_loss[0] if losses else {}
        if by_name and counting is not None:
            self.counting_weights = get_teacher_weights(counting, by_name)
        for name, model in by_name.items():
            users = [loss for loss, names in zip(losses, self.weights_by_loss) if name in names]
            if isinstance(model, str) and (deep := [loss for loss in users if loss.teacher_layers]):
                raise ValueError(
                    f"{deep[0].name} needs the layers {deep[0].teacher_layers} of its teacher. Received: "
                    f"teacher={model!r}, whose logits alone are cached. Use losses on logits, or a network as teacher."
                )
            if users or name in self.counting_weights or not losses:
                layers = {layer for loss in users for layer in loss.teacher_layers}
                self._extractors[name] = model if isinstance(model, str) else FeatureExtractor(model, layers)

    def __bool__(self):
        return bool(self._extractors)

    @property
    def models(self):
        """The networks that run, without teachers whose logits are cached."""
        by_name = self.teacher if isinstance(self.teacher, dict) else {"teacher": self.teacher}
        return [model for model in by_name.values() if isinstance(model, keras.Model)]

    def get_model(self, name):
        """Return the network of this name, or `None` if its logits are cached."""
        return getattr(self._extractors[name], "model", None)

    def shapes(self):
        """Return the shapes of all outputs: a dict by teacher of dicts by layer."""
        cached = {"logits": self._student.shapes()["logits"]} if self._extractors else {}
        return {name: cached if isinstance(e, str) else e.shapes() for name, e in self._extractors.items()}

    def check_inputs(self):
        """Raise `ValueError` if teachers must take the same inputs as the student, and do not."""
        for name in self._extractors if self._same_inputs else ():
            if self._selector(name) is None and (model := self.get_model(name)) is not None:
                _check_same_inputs(self._student.model, model)

    def __call__(self, inputs, targets=None, training=None):
        """Compute the outputs of all teachers as constants.

        Args:
            inputs: The inputs of a batch, before the selectors.
            targets: `Targets` with the cached logits; not needed if every teacher runs.
            training: Whether to use the statistics of the batch; `batch_statistics` by default.

        Returns:
            Dict by teacher of dicts of layer outputs, `"logits"` among them. Empty if there are no losses.

        Raises:
            InputError: If the targets lack cached logits, or these have another number of classes than the student.
        """
        if not self._losses:
            return {}
        training = self._batch_statistics if training is None else training
        outputs = {}
        for name, extractor in self._extractors.items():
            if isinstance(extractor, str):
                outputs[name] = {"logits": self._get_cached_logits(extractor, targets)}
            else:
                selected = select_inputs(self._selector(name), inputs)
                outputs[name] = call_as_constant(extractor, extractor.model, selected, training=training)
        return outputs

    def _selector(self, name):
        return self._inputs.get(name) if isinstance(self._inputs, dict) else self._inputs

    def _get_cached_logits(self, key, targets):
        cached = targets.cached if targets else {}
        if key not in cached:
            raise InputError(
                f"The targets of every batch must be a dict with the teacher's logits as {key!r}. Received: other keys "
                f"than labels, mask and index: {sorted(cached)}. data.train_batches(..., soft_labels=...) adds them."
            )
        num_classes = self._student.shapes()["logits"][-1]
        if isinstance(cached[key], dict):
            return keras.tree.map_structure(ops.stop_gradient, expand(cached[key], targets.labels, num_classes))
        logits = ops.convert_to_tensor(cached[key])
        if logits.shape[-1] != num_classes:
            raise InputError(
                f"{key!r} must have one logit per class of the student, {num_classes}. Received shape: "
                f"{tuple(logits.shape)}."
            )
        return ops.stop_gradient(ops.cast(logits, "float32"))


def get_teacher_weights(selector, names, loss=None):
    """Return which teachers a loss uses, and with which weights.

    Args:
        selector: `None` for all with equal weights, a name, or a dict of names to weights.
        names: Names of all teachers.
        loss: The `DistillationLoss` that has the selector.

    Returns:
        Dict of names to weights, which sum to 1.

    Raises:
        ValueError: If there is no such teacher, or the loss needs layers of one teacher and uses several.
    """
    user = loss.name if loss else "`regularization_teacher`"
    weights = {selector: 1.0} if isinstance(selector, str) else selector or dict.fromkeys(names, 1.0)
    if missing := sorted(set(weights) - set(names)):
        raise ValueError(f"{user} names the teachers {missing}. The distiller's teachers are {sorted(names)}.")
    if loss and loss.teacher_layers and len(weights) > 1:
        raise ValueError(
            f"{user} needs the layers {loss.teacher_layers} of one teacher. Received several: {sorted(weights)}. Name "
            f"one: teacher={min(weights)!r}."
        )
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def select_teacher(weights, outputs, temperature, student_logits=None):
    r"""Return the outputs of one teacher: the only one with a weight, or the mean of several.

    $$z = \tau \log \sum_k w_k \, \mathrm{softmax}(z_k / \tau)$$

    Args:
        weights: Dict of names to weights that sum to 1.
        outputs: Dict by teacher of dicts of layer outputs.
        temperature: Positive float, $\tau$; the probabilities of several teachers are averaged at it, and the rest of
            top-k logits has its mass at it.
        student_logits: Logits that distribute the rest of top-k logits over its classes; `None` for equal parts.

    Returns:
        Dict of layer outputs; empty if there is no teacher.
    """

    def to_dense(output):
        logits = output["logits"]
        dense = logits.to_dense(temperature, student_logits) if isinstance(logits, TopKLogits) else logits
        return {**output, "logits": dense}

    selected = [to_dense(outputs[name]) for name in weights]
    if len(selected) < 2:
        return selected[0] if selected else {}
    logits = [output["logits"] for output in selected]
    return {"logits": log_mean_softmax(logits, list(weights.values()), temperature)}


def select_inputs(selector, inputs):
    """Return the inputs of one network.

    Args:
        selector: `None` for all inputs, a key of a dict of inputs, or a function or layer of the inputs.
        inputs: The inputs of a batch.

    Raises:
        InputError: If the inputs are no dict with that key.
    """
    if not isinstance(selector, str):
        return inputs if selector is None else selector(inputs)
    if not isinstance(inputs, dict) or selector not in inputs:
        received = f"a dict of {sorted(inputs)}" if isinstance(inputs, dict) else type(inputs).__name__
        raise InputError(
            f"The inputs must be a dict with the key {selector!r}. Received: {received}. Add the key to the batches, "
            "or change `student_inputs` or `teacher_inputs`."
        )
    return inputs[selector]


def validate_selector(name, selector):
    """Return a selector of inputs, or a dict of such by teacher; raise `ValueError` if it is something else."""
    selectors = selector.values() if isinstance(selector, dict) and name == "teacher_inputs" else [selector]
    if not all(each is None or isinstance(each, str) or callable(each) for each in selectors):
        raise ValueError(
            f"`{name}` must be a key of the inputs, a function or a layer. Received: {name}={selector!r}. Pass None "
            "for all inputs."
        )
    return selector


def _check_teacher(name, model, student, batch_statistics):
    if isinstance(model, str):
        if model.endswith(_FILES):
            raise ValueError(
                f"`teacher` must be a network, or the key of cached logits in the targets dict. Received: the file "
                f"{model!r}. Load it first: keras_wsl.models.build(..., weights={model!r})."
            )
        if batch_statistics:
            raise ValueError(f"`teacher_batch_statistics` needs a teacher that runs. Received: the key {model!r}.")
        return
    check_network(name, model)
    if model is student:
        raise ValueError("Teacher and student must be two models. Received: the same one. Clone it for the student.")


def _check_same_inputs(student, teacher):
    shapes = [keras.tree.flatten(symbolic_inputs(model)) for model in (student, teacher)]
    shapes = [[tuple(tensor.shape) for tensor in inputs] for inputs in shapes]
    sizes, expected = ([size for shape in inputs for size in (len(shape), *shape)] for inputs in shapes)
    if len(sizes) != len(expected) or any(a != b for a, b in zip(sizes, expected) if None not in (a, b)):
        raise ValueError(
            f"Student and teacher must take the same inputs. Received: a student of inputs {shapes[0]} and a teacher "
            f"of {shapes[1]}. Select the inputs of each with `student_inputs` and `teacher_inputs`."
        )
