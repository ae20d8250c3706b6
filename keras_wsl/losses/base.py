"""What every distillation loss is: a float32 layer that maps labels and endpoints to one value an example."""

import re

import keras

from keras_wsl import weighting as weightings
from keras_wsl.ops import check_temperature, mean_over_positions


class DistillationLoss(keras.layers.Layer):
    r"""Base class: `loss(labels, student, teacher)` is $\omega_i \ell_i$ for each example, without a reduction.

    A subclass writes `per_example(labels, student, teacher)`, and names in `student_endpoints` and `teacher_endpoints`
    what it needs beside the logits. Adapters that train with the student are layers that it creates in `build`: the
    Distiller trains and saves them, and no export holds them. Endpoints arrive in float32, whatever made them.

    Args:
        weight: Float, the factor of the loss's mean in the total.
        weighting: `None`, or what `keras_wsl.weighting.get` takes: $\omega$.
        name: Its name in the logs; the class's in snake case by default.
    """

    student_endpoints = ()
    teacher_endpoints = ()
    temperature = None  # Of the losses that soften; weightings and counts judge at it.

    def __init__(self, *, weight=1.0, weighting=None, name=None):
        if not isinstance(weight, (int, float)) or not 0 <= weight < float("inf"):
            raise ValueError(f"`weight` must be a number that is not negative. Received: weight={weight!r}.")
        super().__init__(name=name or snake_case(type(self).__name__), dtype="float32")
        self.supports_masking = True
        self.weight = float(weight)
        self.weighting = weighting
        self._seed = None  # Of a weighting that draws at random: its state is saved with the loss.
        if isinstance(weighting, dict) and weighting.get("probability"):
            self._seed = keras.random.SeedGenerator()
        self._weigh = weighting and weightings.get(weighting, temperature=self.temperature, seed=self._seed)

    def build(self, labels_shape, student_shape, teacher_shape):
        """Nothing; a loss with adapters creates them here, from dicts of the endpoints' shapes."""

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

    def call(self, labels, student, teacher, student_mask=None):
        """One value an example, weighted: shape `(batch,)`. Masked positions of a sequence do not count."""
        values = self.per_example(labels, student, teacher)
        if self.weighting is not None:
            values = values * self._weigh(labels, student["logits"], teacher["logits"])
        return mean_over_positions(values, (student_mask or {}).get("logits"))

    def compute_mask(self, *args, **kwargs):
        """None: what comes out is a value an example."""

    def get_config(self):
        """The constructor's arguments."""
        weighting = self.weighting
        if callable(weighting):
            weighting = keras.saving.serialize_keras_object(weighting)
        return {"weight": self.weight, "weighting": weighting, "name": self.name}

    @classmethod
    def from_config(cls, config):
        """The loss that `get_config` describes."""
        weighting = config.get("weighting")
        if isinstance(weighting, dict) and "class_name" in weighting:
            config = {**config, "weighting": keras.saving.deserialize_keras_object(weighting)}
        return cls(**config)


class SoftLabelLoss(DistillationLoss):
    """Base class of the losses on logits that are softened by a temperature.

    Args:
        temperature: Positive float, by which both networks' logits are divided.
        **kwargs: As of `DistillationLoss`.

    Raises:
        ValueError: When it is built on student and teacher logits of different shapes.
    """

    def __init__(self, *, temperature=4.0, **kwargs):
        self.temperature = check_temperature(temperature)
        super().__init__(**kwargs)

    def build(self, labels_shape, student_shape, teacher_shape):
        """Checks that both networks tell the same classes apart."""
        student_classes, teacher_classes = student_shape["logits"][-1], teacher_shape["logits"][-1]
        if student_classes != teacher_classes:
            raise ValueError(
                f"{self.name} compares logits class by class. Received: a student of {student_classes} classes and a "
                f"teacher of {teacher_classes}. Build both with the same `classes`."
            )

    def get_config(self):
        """The constructor's arguments."""
        return {**super().get_config(), "temperature": self.temperature}


def snake_case(name):
    """`"FitNet"` to `"fit_net"`, `"WSL"` to `"wsl"`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
