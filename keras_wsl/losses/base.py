"""Base classes of distillation losses: float32 layers that return one value per example."""

import inspect
import re

import keras
import numpy as np
from keras import ops

from keras_wsl import weighting as weightings
from keras_wsl.argument_checks import InputError, check_bool, check_non_negative, check_temperature, is_number
from keras_wsl.ops import common_spatial_size, masked_mean_over_time, shapes_compatible, standardize


class DistillationLoss(keras.layers.Layer):
    r"""Base class: `loss(labels, student, teacher)` returns $\omega_i \ell_i$ per example, without a reduction.

    A subclass implements `per_example(labels, student, teacher)`. It names the layers that it needs in addition to the
    logits in `student_layers` and `teacher_layers`. Adapters that train with the student are layers that it creates in
    `build`: the Distiller trains and saves them, and no export has them. All outputs are cast to float32. A subclass
    that keeps each argument of its constructor in an attribute of the same name needs no `get_config`.

    Args:
        weight: Float, the factor of the loss's mean in the total.
        weighting: `None`, or what `keras_wsl.weighting.get` takes: $\omega$.
        teacher: Which teacher the loss uses, if there are several: a name, or a dict of names to weights for the
            weighted mean of their probabilities at the loss's temperature. By default the mean of all.
        name: Name in the logs; by default that of the class in snake case.

    Raises:
        ValueError: If an argument is out of its range.
    """

    student_layers = ()
    teacher_layers = ()
    temperature = None  # Set by losses that soften logits; weightings and counts use it too.
    needs_teacher = True
    requires_example_index = False  # Whether `per_example` takes `index`, the numbers of the examples in the data set.

    def __init__(self, *, weight=1.0, weighting=None, teacher=None, name=None):
        weight = check_non_negative(weight)
        super().__init__(name=name or snake_case(type(self).__name__), dtype="float32")
        self.supports_masking = True
        self.weight = weight
        self.weighting = weighting
        self.teacher = validate_teacher_selector("teacher", teacher)
        seed = None
        if weightings.is_stochastic(weighting):  # Keras saves variables, and no generators.
            seed = self._seed = keras.random.SeedGenerator()
            self._seed_state = seed.state
        self._weighting_fn = None
        if weighting is not None:
            self._weighting_fn = weightings.get(weighting, temperature=self.temperature, seed=seed)

    def __call__(self, labels, student, teacher, *args, **kwargs):
        """Build the loss on the shapes of its first inputs, and call it."""
        if not self.built:
            shapes = ({name: tuple(x.shape) for name, x in outputs.items()} for outputs in (student, teacher))
            self.build(tuple(labels.shape), *shapes)
            self.built = True
        return super().__call__(labels, student, teacher, *args, **kwargs)

    def build(self, labels_shape, student_shape, teacher_shape):
        """Check the shapes. Subclasses also create adapters; the arguments are a shape and dicts of shapes by layer."""
        self.check_shapes(student_shape, teacher_shape)

    def check_shapes(self, student_shape, teacher_shape):
        """Raise `ValueError` if the loss cannot compare outputs of these shapes, dicts by layer.

        It is also called if a built loss gets another teacher. Subclasses implement it.
        """

    def bind_models(self, student, teacher):
        """Read from the networks what is not in their outputs, such as weights. Subclasses implement it.

        Args:
            student: The student, a `keras.Model`.
            teacher: The teacher that the loss uses, a `keras.Model`.
        """

    def per_example(self, labels, student, teacher):
        """Compute the loss before its weighting.

        Args:
            labels: Integers, shape `(batch,)`, or distributions, shape `(batch, classes)`.
            student: Dict of layer outputs, `"logits"` among them.
            teacher: Dict of layer outputs, `"logits"` among them.

        Returns:
            Floats, shape `(batch,)`, or `(batch, time)` for sequences.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement `per_example`.")

    def call(self, labels, student, teacher, weights=None, index=None, mask=None, training=None):
        """Compute the weighted loss per example, shape `(batch,)`. Masked positions of a sequence do not count.

        Args:
            labels: Integers, shape `(batch,)`, or distributions, shape `(batch, classes)`; for sequences with an axis
                of positions after the first.
            student: Dict of layer outputs, `"logits"` among them.
            teacher: Dict of layer outputs of one teacher.
            weights: `None`, or the values of `compute_weights`, if the teacher's logits here are not those at
                temperature 1.
            index: `None`, or integers, shape `(batch,)`: the numbers of the examples in their data set.
            mask: `None`, or booleans, shape `(batch, time)`.
            training: Whether batch normalization in adapters uses the statistics of the batch.
        """
        if weights is None and self.weighting is not None:
            weights = self.compute_weights(labels, student["logits"], teacher["logits"])
        if weights is not None:
            _check_per_example_shape(f"The weighting of {self.name}", weights, student["logits"].shape[:-1])
        kwargs = {"index": index} if self.requires_example_index else {}
        values = self.weighted_per_example(weights, mask, labels, student, teacher, **kwargs)
        _check_per_example_shape(f"`per_example` of {self.name}", values, student["logits"].shape[:1], more=True)
        return masked_mean_over_time(values, mask if len(values.shape) > 1 else None)

    def compute_weights(self, labels, student_logits, teacher_logits):
        """Compute the weights of the examples or positions from logits at temperature 1."""
        student_logits, teacher_logits = (ops.cast(logits, "float32") for logits in (student_logits, teacher_logits))
        return self._weighting_fn(labels, student_logits, teacher_logits)

    def weighted_per_example(self, weights, mask, *args, **kwargs):
        """Compute `per_example` of the other arguments times `weights`: `None`, `(batch,)` or `(batch, time)`."""
        values = self.per_example(*args, **kwargs)
        if weights is None:
            return values
        return (weights if len(values.shape) > 1 else masked_mean_over_time(weights, mask)) * values

    def compute_mask(self, *args, **kwargs):
        """Return `None`: the output is a value per example."""

    def get_config(self):
        """Return the arguments of the constructor, from the attributes of the same names."""
        return {name: _serialize(getattr(self, name)) for name in argument_names(type(self))}

    @classmethod
    def from_config(cls, config):
        """Return the loss that `get_config` describes."""
        return cls(**{**config, "weighting": _deserialize_weighting(config.get("weighting"))})


def argument_names(cls):
    """Return the names of the constructor's arguments, of a class and its base classes: a list.

    Classes with a `get_config` of their own, other than `DistillationLoss`, describe their own arguments there.
    """
    classes = [
        base
        for base in cls.__mro__
        if issubclass(base, DistillationLoss) and (base is DistillationLoss or "get_config" not in vars(base))
    ]
    parameters = (p for base in reversed(classes) for p in inspect.signature(base.__init__).parameters.values())
    return list(dict.fromkeys(p.name for p in parameters if p.kind is not p.VAR_KEYWORD and p.name != "self"))


def _serialize(value):
    """Return a value of JSON; functions and losses as Keras writes them."""
    if isinstance(value, (list, tuple)):
        return [_serialize(item) for item in value]
    if isinstance(value, dict):
        return {key: _serialize(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return value.tolist()
    return keras.saving.serialize_keras_object(value) if callable(value) else value


def _deserialize_weighting(weighting):
    if isinstance(weighting, (list, tuple)):
        return [_deserialize_weighting(each) for each in weighting]
    if isinstance(weighting, dict) and "class_name" in weighting:
        return keras.saving.deserialize_keras_object(weighting)
    return weighting


class LogitsLoss(DistillationLoss):
    """Base class of the losses on logits that a temperature softens.

    Args:
        temperature: Positive float, by which the logits of both networks are divided.
        standardize: Whether to standardize the logits of both networks per example first: `ops.standardize`.
        **kwargs: See `DistillationLoss`.

    Raises:
        ValueError: If it is built on logits of student and teacher with different shapes.
    """

    supports_sequences = True  # Whether it compares positions one by one.

    def __init__(self, *, temperature=4.0, standardize=False, **kwargs):
        self.temperature = check_temperature(temperature)
        super().__init__(**kwargs)
        self.standardize = check_bool(standardize, "standardize")

    def check_shapes(self, student_shape, teacher_shape):
        """Check that both networks have the same classes."""
        check_same_classes(self.name, student_shape, teacher_shape)
        if not self.supports_sequences and len(student_shape["logits"]) != 2:
            raise ValueError(
                f"{self.name} needs logits of shape (batch, classes), because it compares the examples of a batch. "
                f"Received shape: {student_shape['logits']}. Use a loss per position, such as KD, WSL or DKD."
            )

    def logits(self, student, teacher):
        """Return the logits that are compared, before the temperature: `(student, teacher)`."""
        student, teacher = student["logits"], teacher["logits"]
        return (standardize(student), standardize(teacher)) if self.standardize else (student, teacher)


class FeatureLoss(DistillationLoss):
    """Base class of the losses on the outputs of inner layers, pair by pair.

    Args:
        layers: List of names of layers that both networks have, or of pairs `(student's, teacher's)`; `"pooled.input"`
            is the input of the layer `pooled`. The `default_layers` of the class by default.
        **kwargs: See `DistillationLoss`.

    Raises:
        ValueError: If `layers` is no such list; or if it is built on outputs with another number of axes than `ndim`.
    """

    default_layers = ("block1", "block2", "block3")
    ndim = 4  # Of the outputs: maps `(batch, height, width, channels)`, or vectors `(batch, channels)`.
    resize_to_smaller = False  # Whether the larger map of a pair is pooled to the size of the smaller one.
    single_layer = False  # Whether it compares one pair of layers only.

    def __init__(self, *, layers=None, **kwargs):
        super().__init__(**kwargs)
        layers = self.default_layers if layers is None else layers
        if isinstance(layers, str):
            raise ValueError(f"`layers` must be a list of names or of pairs of names. Received: layers={layers!r}.")
        pairs = [(name, name) if isinstance(name, str) else name for name in layers]
        if not pairs or not all(
            isinstance(pair, (list, tuple)) and len(pair) == 2 and all(isinstance(name, str) for name in pair)
            for pair in pairs
        ):
            raise ValueError(f"`layers` must be names, or pairs (student's, teacher's). Received: layers={layers!r}.")
        if self.single_layer and len(pairs) > 1:
            raise ValueError(
                f"`layers` of {self.name} must be one layer. Received: layers={layers!r}. Add one loss per layer, each "
                "with its own `name`."
            )
        self.layers = [tuple(pair) for pair in pairs]
        self.student_layers, self.teacher_layers = zip(*self.layers)

    def check_shapes(self, student_shape, teacher_shape):
        """Check the number of axes of the outputs, and whether maps can be pooled to each other's size."""
        for role, names, shapes in (
            ("student", self.student_layers, student_shape),
            ("teacher", self.teacher_layers, teacher_shape),
        ):
            for name in names:
                if len(shapes[name]) != self.ndim:
                    expected = {2: "vectors, (batch, channels)", 3: "states, (batch, time, channels)"}
                    raise ValueError(
                        f"{self.name} needs {expected.get(self.ndim, 'maps, (batch, height, width, channels)')}. "
                        f"Received: {name!r} of the {role}, of shape {tuple(shapes[name])}. Name another layer in "
                        "`layers`, such as one before or after the pooling."
                    )
        if self.resize_to_smaller:
            for pair in self.pairs(student_shape, teacher_shape):
                common_spatial_size(*pair)

    def pairs(self, student, teacher):
        """Return the pairs `(student's, teacher's)` of two dicts by layer: outputs, or their shapes."""
        return [(student[student_layer], teacher[teacher_layer]) for student_layer, teacher_layer in self.layers]


class RelationLoss(FeatureLoss):
    r"""Base class of the losses on relations between the examples of a batch, such as distances.

    A subclass implements `relations(student, teacher)`. The value of an example is the mean of its row, so that the
    mean over examples is the mean over pairs or triples. A weighting gives each pair or triple the mean of the weights
    of its examples: Zhou et al., ICLR 2021, appendix A.3.
    """

    default_layers = ("pooled",)
    ndim = 2

    def relations(self, student, teacher):
        """Compute the differences of relations: a list of floats `(batch, batch)` or `(batch, batch, batch)`.

        Args:
            student: Dict of layer outputs.
            teacher: Dict of layer outputs.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement `relations`.")

    def weighted_per_example(self, weights, mask, labels, student, teacher):
        """Compute the means of the rows, `(batch,)`; pairs and triples have the mean of their examples' `weights`."""
        total = 0.0
        for values in self.relations(student, teacher):
            ndim = len(values.shape)
            if weights is not None:
                by_example = masked_mean_over_time(weights, mask)
                shapes = [[-1 if axis == i else 1 for axis in range(ndim)] for i in range(ndim)]
                values = values * (sum(ops.reshape(by_example, shape) for shape in shapes) / ndim)
            total = total + ops.mean(values, axis=tuple(range(1, ndim)))
        return total


def check_same_classes(name, student_shape, teacher_shape):
    """Raise `ValueError` unless the `"logits"` of two dicts of shapes have the same number of classes."""
    student_classes, teacher_classes = student_shape["logits"][-1], teacher_shape["logits"][-1]
    if student_classes != teacher_classes:
        raise ValueError(
            f"{name} needs the same classes in both networks. Received: a student of {student_classes} classes and a "
            f"teacher of {teacher_classes}. Build both with the same `classes`."
        )


def _check_per_example_shape(what, values, shape, more=False):
    """Raise `InputError` unless values have a shape, as far as it is known; with `more`, further axes may follow."""
    received = getattr(values, "shape", None)
    fits = received is not None and (len(received) == len(shape) or (more and len(received) > len(shape)))
    if not fits or not shapes_compatible(received, shape):
        raise InputError(
            f"{what} must return one number per example, of shape {tuple(shape)}. Received: "
            f"{type(values).__name__ if received is None else f'shape {tuple(received)}'}. Reduce all other axes."
        )


def validate_teacher_selector(name, selector):
    """Return a selector of teachers: `None`, a teacher's name, or a dict of names to positive numbers.

    Raises:
        ValueError: If it is something else.
    """
    if isinstance(selector, dict):
        if selector and all(is_number(weight) and 0 < weight < float("inf") for weight in selector.values()):
            return selector
    elif selector is None or isinstance(selector, str):
        return selector
    raise ValueError(
        f"`{name}` must be a teacher's name, or a dict of names to positive weights. Received: {name}={selector!r}."
    )


def snake_case(name):
    """Return a class name in snake case: `"FitNet"` as `"fit_net"`, `"WSL"` as `"wsl"`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
