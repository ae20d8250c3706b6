"""What every distillation loss is: a float32 layer that maps labels and endpoints to one value an example."""

import re

import keras
from keras import ops

from keras_wsl import weighting as weightings
from keras_wsl.ops import (
    InputError,
    check_bool,
    check_non_negative,
    check_temperature,
    common_spatial_size,
    is_number,
    log_mean_softmax,
    masked_mean_over_time,
    shapes_compatible,
    standardize,
)
from keras_wsl.top_k_logits import TopKLogits


class DistillationLoss(keras.layers.Layer):
    r"""Base class: `loss(labels, student, teacher)` is $\omega_i \ell_i$ for each example, without a reduction.

    A subclass writes `per_example(labels, student, teacher)`, and names in `student_layers` and `teacher_layers`
    what it needs beside the logits. Adapters that train with the student are layers that it creates in `build`: the
    Distiller trains and saves them, and no export holds them. Endpoints arrive in float32, whatever made them.

    Args:
        weight: Float, the factor of the loss's mean in the total.
        weighting: `None`, or what `keras_wsl.weighting.get` takes: $\omega$.
        teacher: Of several teachers, the name of the one to listen to, or a dict of names to weights: the weighted
            mean of their probabilities, at the loss's temperature, teaches. `None` for the only one, or for all alike.
        name: Its name in the logs; the class's in snake case by default.

    Raises:
        ValueError: If a setting is out of its range.
    """

    student_layers = ()
    teacher_layers = ()
    temperature = None  # Of the losses that soften; weightings and counts judge at it.
    needs_teacher = True
    requires_example_index = (
        False  # Whether `per_example` is also given `index`, the examples' numbers in their data set.
    )

    def __init__(self, *, weight=1.0, weighting=None, teacher=None, name=None):
        weight = check_non_negative(weight)
        super().__init__(name=name or snake_case(type(self).__name__), dtype="float32")
        self.supports_masking = True
        self.weight = weight
        self.weighting = weighting
        self.teacher = _checked_shares(teacher)
        self._seed = None  # Of a weighting that draws at random: its state is saved with the loss.
        if weightings.draws(weighting):
            self._seed = keras.random.SeedGenerator()
            self._seed_state = self._seed.state  # Else in no file: Keras writes variables there, and no generators.
        self._weigh = None
        if weighting is not None:
            self._weigh = weightings.get(weighting, temperature=self.temperature, seed=self._seed)

    def __call__(self, labels, student, teacher, *args, **kwargs):
        """As `call`; the first one builds the loss, on the shapes of the teacher that it listens to."""
        if not self.built:
            heard = self.heard(teacher, 1.0)
            self.build(
                tuple(labels.shape), *({name: tuple(x.shape) for name, x in ends.items()} for ends in (student, heard))
            )
            self.built = True
        return super().__call__(labels, student, teacher, *args, **kwargs)

    def build(self, labels_shape, student_shape, teacher_shape):
        """Nothing; a loss with adapters creates them here, from dicts of the endpoints' shapes."""

    def meet(self, student, teacher):
        """Nothing; a loss that reads more than endpoints, such as a layer's weights, looks for it in the networks here.

        Args:
            student: The student, a `keras.Model`.
            teacher: The teacher that it listens to, a `keras.Model`.
        """

    def per_example(self, labels, student, teacher):
        """The loss before its weighting.

        Args:
            labels: Integers, shape `(batch,)`, or distributions, shape `(batch, classes)`.
            student: Dict of endpoints, `"logits"` among them.
            teacher: Dict of endpoints, likewise.

        Returns:
            Floats, shape `(batch,)`, or `(batch, time)` for sequences.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement `per_example`.")

    def call(self, labels, student, teacher, index=None, student_mask=None, training=None):
        """One value an example, weighted: shape `(batch,)`. Masked positions of a sequence do not count.

        Args:
            labels: Integers, shape `(batch,)`, or distributions, shape `(batch, classes)`; with a position's axis
                after the batch's for sequences.
            student: Dict of endpoints, `"logits"` among them.
            teacher: Dict of endpoints, likewise; or of several teachers' by name.
            index: `None`, or integers, shape `(batch,)`: the examples' numbers in their data set.
            student_mask: `None`, or a dict whose `"logits"` is a mask, shape `(batch, time)`.
            training: Of the adapters: whether batch normalization uses the batch's statistics.
        """
        mask = (student_mask or {}).get("logits")
        weights = None
        if self.weighting is not None:
            logits = student["logits"]
            weights = self._weigh(labels, logits, self.heard(teacher, 1.0)["logits"])
            _check_values(f"The weighting of {self.name}", weights, logits.shape[:-1])
        settings = {"index": index} if self.requires_example_index else {}
        heard = self.heard(teacher, self.temperature or 1.0, student["logits"])
        values = self.weighted(weights, mask, labels, student, heard, **settings)
        _check_values(f"`per_example` of {self.name}", values, student["logits"].shape[:1], more=True)
        return masked_mean_over_time(values, mask if len(values.shape) > 1 else None)

    def weighted(self, weights, mask, *args, **kwargs):
        """`per_example` of the other arguments, times the `weights`, `None` or `(batch,)` or `(batch, time)`."""
        values = self.per_example(*args, **kwargs)
        if weights is None:
            return values
        return (weights if len(values.shape) > 1 else masked_mean_over_time(weights, mask)) * values

    def heard(self, teacher, temperature, student=None):
        """The endpoints that this loss listens to, of one teacher or of several by name.

        Args:
            teacher: Dict of endpoints, or a dict of names to such.
            temperature: Positive float, at which the probabilities of several are averaged, and the mass of logits
                that are not known is shared out.
            student: The student's logits, as which it is shared; `None` for alike.

        Returns:
            Dict of endpoints.
        """
        if not _are_several(teacher):
            return _at(teacher, temperature, student)
        shares = self.shares(teacher)
        if len(shares) == 1:
            return _at(teacher[next(iter(shares))], temperature, student)
        logits = [_at(teacher[name], temperature, student)["logits"] for name in shares]
        return {"logits": log_mean_softmax(logits, list(shares.values()), temperature)}

    def shares(self, names):
        """The weights, which add up to 1, of the teachers of these `names` that it listens to: a dict.

        Raises:
            ValueError: If it names a teacher that is not there, or needs inner endpoints and does not name one teacher.
        """
        wanted = self.teacher
        if wanted is None:
            wanted = dict.fromkeys(names, 1.0)
        elif isinstance(wanted, str):
            wanted = {wanted: 1.0}
        if missing := sorted(set(wanted) - set(names)):
            raise ValueError(f"{self.name} listens to {missing}. The distiller's teachers are {sorted(names)}.")
        if self.teacher_layers and len(wanted) > 1:
            raise ValueError(
                f"{self.name} needs {self.teacher_layers} of one teacher. Say of which: teacher='{min(wanted)}'."
            )
        total = sum(wanted.values())
        return {name: share / total for name, share in wanted.items()}

    def compute_mask(self, *args, **kwargs):
        """None: what comes out is a value an example."""

    def get_config(self):
        """The constructor's arguments."""
        weighting = _packed(self.weighting)
        teacher = dict(self.teacher) if isinstance(self.teacher, dict) else self.teacher
        return {"weight": self.weight, "weighting": weighting, "teacher": teacher, "name": self.name}

    @classmethod
    def from_config(cls, config):
        """The loss that `get_config` describes."""
        return cls(**{**config, "weighting": _unpacked(config.get("weighting"))})


def _packed(weighting):
    """A weighting as a file has it: functions as Keras writes them."""
    if isinstance(weighting, (list, tuple)):
        return [_packed(one) for one in weighting]
    return keras.saving.serialize_keras_object(weighting) if callable(weighting) else weighting


def _unpacked(weighting):
    if isinstance(weighting, (list, tuple)):
        return [_unpacked(one) for one in weighting]
    if isinstance(weighting, dict) and "class_name" in weighting:
        return keras.saving.deserialize_keras_object(weighting)
    return weighting


class LogitsLoss(DistillationLoss):
    """Base class of the losses on logits that are softened by a temperature.

    Args:
        temperature: Positive float, by which both networks' logits are divided.
        standardize: Whether both networks' logits are first standardized, example by example: `ops.standardize`.
        **kwargs: As of `DistillationLoss`.

    Raises:
        ValueError: When it is built on student and teacher logits of different shapes.
    """

    sequences = True  # Whether it compares positions one by one, so that the logits of a sequence will do.

    def __init__(self, *, temperature=4.0, standardize=False, **kwargs):
        self.temperature = check_temperature(temperature)
        super().__init__(**kwargs)
        self.standardize = check_bool(standardize, "standardize")

    def build(self, labels_shape, student_shape, teacher_shape):
        """Checks that both networks tell the same classes apart."""
        check_same_classes(self.name, student_shape, teacher_shape)
        if not self.sequences and len(student_shape["logits"]) != 2:
            raise ValueError(
                f"{self.name} compares the examples of a batch, with one row of logits each. Received: logits of shape "
                f"{student_shape['logits']}. Use a loss that goes position by position, such as KD, WSL or DKD."
            )

    def logits(self, student, teacher):
        """Both networks' logits as the loss compares them, before the temperature: `(student, teacher)`."""
        student, teacher = student["logits"], teacher["logits"]
        return (standardize(student), standardize(teacher)) if self.standardize else (student, teacher)

    def get_config(self):
        """The constructor's arguments."""
        return {**super().get_config(), "temperature": self.temperature, "standardize": self.standardize}


class FeatureLoss(DistillationLoss):
    """Base class of the losses on inner endpoints, pair by pair.

    Args:
        layers: Layers' names that both networks have, or pairs `(student's, teacher's)`; `"pooled.input"` is what the
            layer `pooled` is given. The class's `default_layers` by default.
        **kwargs: As of `DistillationLoss`.

    Raises:
        ValueError: If `layers` are no such names; or, when it is built, an endpoint has another rank than `rank`.
    """

    default_layers = ("block1", "block2", "block3")
    rank = 4  # Of the endpoints: maps `(batch, height, width, channels)`, or vectors `(batch, channels)`.
    pools = False  # Whether the larger map of a pair is pooled to the smaller one's size.
    single_layer = False  # Whether it compares one layer alone.

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
                f"{self.name} compares one layer. Received: layers={layers!r}. Make one loss a layer, each with a "
                "`name` of its own."
            )
        self.student_layers, self.teacher_layers = (tuple(names) for names in zip(*pairs))

    def build(self, labels_shape, student_shape, teacher_shape):
        """Checks that the endpoints are maps, or vectors; and that maps can be pooled to each other's size."""
        for role, names, shapes in (
            ("student", self.student_layers, student_shape),
            ("teacher", self.teacher_layers, teacher_shape),
        ):
            for name in names:
                if len(shapes[name]) != self.rank:
                    wanted = {2: "a vector, (batch, channels)", 3: "states, (batch, time, channels)"}
                    raise ValueError(
                        f"{self.name} wants {wanted.get(self.rank, 'a map, (batch, height, width, channels)')}. "
                        f"Received: the {role}'s {name!r} of shape {tuple(shapes[name])}. Name another layer in "
                        "`layers`, such as one before or after the pooling."
                    )
        if self.pools:
            for pair in self.pairs(student_shape, teacher_shape):
                common_spatial_size(*pair)

    def pairs(self, student, teacher):
        """The pairs `(student's, teacher's)` of what two dicts hold for the layers: endpoints, or their shapes."""
        return [(student[own], teacher[other]) for own, other in zip(self.student_layers, self.teacher_layers)]

    def get_config(self):
        """The constructor's arguments."""
        pairs = zip(self.student_layers, self.teacher_layers)
        return {**super().get_config(), "layers": [list(pair) for pair in pairs]}


class RelationLoss(FeatureLoss):
    r"""Base class of the losses on relations between the examples of a batch, such as distances.

    A subclass writes `relations(student, teacher)`. An example's value is its row's mean, so that the mean over
    examples is the mean over pairs or triples. A weighting gives each pair or triple the mean of its examples' weights:
    Zhou et al., ICLR 2021, appendix A.3.
    """

    default_layers = ("pooled",)
    rank = 2

    def relations(self, student, teacher):
        """What the loss takes the mean of: a list of floats `(batch, batch)` or `(batch, batch, batch)`, to be added.

        Args:
            student: Dict of endpoints.
            teacher: Dict of endpoints.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement `relations`.")

    def weighted(self, weights, mask, labels, student, teacher):
        """The rows' means, shape `(batch,)`, each pair or triple times the mean of its examples' `weights`."""
        total = 0.0
        for values in self.relations(student, teacher):
            rank = len(values.shape)
            if weights is not None:
                each = masked_mean_over_time(weights, mask)
                shapes = [[-1 if axis == own else 1 for axis in range(rank)] for own in range(rank)]
                values = values * (sum(ops.reshape(each, shape) for shape in shapes) / rank)
            total = total + ops.mean(values, axis=tuple(range(1, rank)))
        return total


def check_same_classes(name, student_shape, teacher_shape):
    """Raises `ValueError` unless the two dicts of shapes have as many classes in their `"logits"`."""
    student_classes, teacher_classes = student_shape["logits"][-1], teacher_shape["logits"][-1]
    if student_classes != teacher_classes:
        raise ValueError(
            f"{name} compares logits class by class. Received: a student of {student_classes} classes and a "
            f"teacher of {teacher_classes}. Build both with the same `classes`."
        )


def _check_values(what, values, shape, more=False):
    """Raises `InputError` unless values have that shape, as far as it is known; `more` axes may come behind it."""
    came = getattr(values, "shape", None)
    fits = came is not None and (len(came) == len(shape) or (more and len(came) > len(shape)))
    if not fits or not shapes_compatible(came, shape):
        raise InputError(
            f"{what} must give one number an example, of shape {tuple(shape)}. Received: "
            f"{type(values).__name__ if came is None else f'shape {tuple(came)}'}. Reduce other axes alone."
        )


def _at(teacher, temperature, student):
    """A teacher's endpoints, with logits of all classes where only the highest are known."""
    logits = teacher.get("logits")
    return {**teacher, "logits": logits.at(temperature, student)} if isinstance(logits, TopKLogits) else teacher


def _are_several(teacher):
    """Whether this is a dict of teachers' endpoints by name, and not one teacher's."""
    return any(isinstance(value, dict) for value in teacher.values())


def _checked_shares(teacher):
    """`teacher` as it is. Raises `ValueError` unless it is a name, a dict of names to positive numbers, or `None`."""
    if isinstance(teacher, dict):
        if teacher and all(is_number(share) and 0 < share < float("inf") for share in teacher.values()):
            return teacher
    elif teacher is None or isinstance(teacher, str):
        return teacher
    raise ValueError(
        f"`teacher` must be a teacher's name, or a dict of names to positive weights. Received: teacher={teacher!r}."
    )


def snake_case(name):
    """`"FitNet"` to `"fit_net"`, `"WSL"` to `"wsl"`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
