"""The objective of one training step: named losses per example and their weighted total."""

import inspect
from typing import NamedTuple

import keras
from keras import ops

from keras_wsl import regularization_samples, weighting
from keras_wsl.argument_checks import InputError
from keras_wsl.backend import check_range
from keras_wsl.ops import labels_are_categorical, masked_mean_over_time, to_int32
from keras_wsl.teachers import get_teacher_weights, select_teacher


class Losses(NamedTuple):
    """What the objective computes of a batch.

    Args:
        total: Floats of shape `(batch,)`, the loss of each example.
        terms: Dict by name in the logs of floats of shape `(batch,)`.
        regularization_samples: `None`, or floats of shape `(batch,)` or `(batch, time)`: 1 for regularization samples.
        wsl_weights: `None`, or floats of that shape: the weights of WSL.
    """

    total: object
    terms: dict
    regularization_samples: object = None
    wsl_weights: object = None


class Objective:
    r"""The weighted sum of the student's loss and the distillation losses, per example.

    $$L_i = v_i \left( w_s \, \mathrm{CE}_i + s \sum_k w_k \ell_{ki} \right)$$

    $v_i$ is the weight of the example, $w_s$ the `student_loss_weight`, $s$ the scale of all distillation losses, $w_k$
    the `weight` of a loss.

    Args:
        losses: List of `DistillationLoss`.
        teachers: `Teachers`.
        student: `FeatureExtractor` of the student.
        student_loss_weight: Float, $w_s$.
        temperature: Positive float, the temperature at which regularization samples are counted.
    """

    def __init__(self, losses, teachers, student, *, student_loss_weight=1.0, temperature=1.0):
        self._losses, self._teachers, self._student = losses, teachers, student
        self._student_loss_weight, self._temperature = student_loss_weight, temperature
        self.counts_samples = False  # Whether student and teacher have the same classes, so that they can be compared.
        if losses and (teachers or not any(loss.needs_teacher for loss in losses)):
            self._build()

    def _build(self):
        """Build the losses on the shapes of the networks' outputs."""
        shapes, student_shapes = self._teachers.shapes(), self._student.shapes()
        self._teachers.check_inputs()
        for loss, weights in zip(self._losses, self._teachers.weights_by_loss):
            used = [shapes[name] for name in weights]
            if any(each["logits"] != used[0]["logits"] for each in used):
                raise ValueError(
                    f"The teachers of {loss.name} must have the same classes. Received: "
                    f"{ {name: shapes[name]['logits'][-1] for name in weights} }. Select teachers with `teacher`."
                )
            if loss.built:  # Of another teacher, or from a file.
                loss.check_shapes(student_shapes, used[0] if used else {})
            else:
                loss.build((None,), student_shapes, used[0] if used else {})
                loss.built = True
            if len(weights) == 1 and (model := self._teachers.get_model(next(iter(weights)))) is not None:
                loss.bind_models(self._student.model, model)
        classes = {shapes[name]["logits"][-1] for name in self._teachers.counting_weights}
        self.counts_samples = classes == {student_shapes["logits"][-1]}

    def __call__(self, targets, student, teacher, *, student_loss, scale=1.0):
        """Compute the losses of a batch.

        Args:
            targets: `Targets`, validated.
            student: Dict of the student's outputs.
            teacher: Dict by teacher of dicts of outputs, from `Teachers`.
            student_loss: The compiled loss, see `validate_student_loss`.
            scale: Float or scalar tensor, the factor of all distillation losses.

        Returns:
            `Losses`.
        """
        labels, logits = targets.labels, student["logits"]
        samples, wsl_weights = self._count_samples(labels, logits, teacher)
        terms = {"student_loss": compute_student_loss(student_loss, targets, logits)}
        weighted = []
        for loss, weights in zip(self._losses, self._teachers.weights_by_loss):
            # The weights that are logged are those of a loss by WSL whose teacher is the one that is compared.
            shared = wsl_weights if loss.weighting == "wsl" and weights == self._teachers.counting_weights else None
            terms[loss.name] = compute_distillation_loss(loss, targets, student, teacher, weights, shared)
            weighted.append(loss.weight * terms[loss.name])
        total = []
        if self._student_loss_weight:  # Without it, no gradient reaches an output layer that no other loss trains.
            total.append(self._student_loss_weight * terms["student_loss"])
        if weighted:
            terms["distillation_loss"] = scale * sum(weighted[1:], weighted[0])
            total.append(terms["distillation_loss"])
        total = sum(total[1:], total[0]) if total else 0.0 * terms["student_loss"]
        if targets.weights is not None:
            total, terms = targets.weights * total, {name: targets.weights * v for name, v in terms.items()}
        return Losses(total, terms, samples, wsl_weights)

    def _count_samples(self, labels, logits, teacher):
        if not self.counts_samples:
            return None, None
        logits = ops.cast(logits, "float32")
        softened, plain = (self.combine_teachers(teacher, temperature) for temperature in (self._temperature, 1.0))
        mask = regularization_samples.mask(labels, logits, softened, self._temperature)
        return ops.cast(mask, "float32"), weighting.wsl(labels, logits, plain)

    def combine_teachers(self, teacher, temperature):
        """Return the float32 logits of the teacher with which samples are counted, of several their mean."""
        return ops.cast(select_teacher(self._teachers.counting_weights, teacher, temperature)["logits"], "float32")


def compute_distillation_loss(loss, targets, student, teachers, teacher_weights=None, wsl_weights=None):
    """Compute one distillation loss of a batch, `(batch,)`, before its `weight`.

    Args:
        loss: `DistillationLoss`.
        targets: `Targets`.
        student: Dict of the student's outputs.
        teachers: Dict by teacher of dicts of outputs.
        teacher_weights: Dict of the names of the teachers it uses to their weights; by default of its selector.
        wsl_weights: `None`, or the weights of the examples, if they are known already.
    """
    if teacher_weights is None:
        teacher_weights = get_teacher_weights(loss.teacher, teachers, loss) if teachers else {}
    teacher = select_teacher(teacher_weights, teachers, loss.temperature or 1.0, student["logits"])
    weights = wsl_weights
    if loss.weighting is not None and weights is None:
        plain = select_teacher(teacher_weights, teachers, 1.0)["logits"]
        weights = loss.compute_weights(targets.labels, student["logits"], plain)
    index = None
    if targets.index is not None and loss.requires_example_index:
        index = to_int32(ops.reshape(targets.index, (-1,)))
        index = check_range("The index of an example", index, loss.num_examples)
    return loss(targets.labels, student, teacher, weights=weights, index=index, mask=targets.mask, training=True)


def compute_student_loss(loss, targets, logits):
    """Compute the compiled loss of each example in float32, `(batch,)`, without the examples' weights.

    An integer label that is out of range gives NaN. Positions of sequences that the mask leaves out do not count.

    Raises:
        InputError: If the loss is one of Keras's and takes labels of the other format, or it reduces the batch.
    """
    labels, logits = targets.labels, ops.cast(logits, "float32")
    _check_label_format(loss, labels, logits)
    values = loss.call(labels, logits) if isinstance(loss, keras.losses.Loss) else loss(labels, logits)
    if not len(values.shape):
        raise InputError(
            f"The compiled loss {_name(loss)!r} must return one number per example. Received: one number for the "
            "batch. Take the mean over the last axis alone."
        )
    if not labels_are_categorical(labels, logits):
        in_range = ops.logical_and(labels >= 0, labels < logits.shape[-1])
        values = ops.where(ops.reshape(in_range, ops.shape(values)), values, float("nan"))
    return masked_mean_over_time(values, targets.mask if len(values.shape) > 1 else None)


def validate_student_loss(loss):
    """Return a compiled loss as a function or `keras.losses.Loss` of labels and logits.

    Raises:
        ValueError: If there is none, or there are several; it expects probabilities; or it sums over examples.
    """
    if loss is None or isinstance(loss, (dict, list, tuple)):
        raise ValueError(
            "The distiller must be compiled with one loss of the labels, such as "
            "keras.losses.SparseCategoricalCrossentropy(from_logits=True). Received: "
            f"{'none' if loss is None else 'several'}."
        )
    loss = keras.losses.get(loss)
    if isinstance(loss, keras.losses.Loss):
        config = loss.get_config()
        if loss.reduction == "sum":
            raise ValueError(
                "The compiled loss must not sum over examples, because the distiller takes their mean. Received: "
                "reduction='sum'. Leave `reduction` out."
            )
    else:
        config = {name: p.default for name, p in inspect.signature(loss).parameters.items()}
    if config.get("from_logits", True) is False:
        raise ValueError(
            f"The compiled loss {_name(loss)!r} must take logits. Received: from_logits=False. Compile it with "
            "from_logits=True, such as keras.losses.SparseCategoricalCrossentropy(from_logits=True)."
        )
    return loss


def _name(loss):
    return getattr(loss, "name", None) or getattr(loss, "__name__", type(loss).__name__)


def _check_label_format(loss, labels, logits):
    if not loss.__module__.startswith("keras.src"):
        return
    formats = {True: "integer labels", False: "labels that are distributions"}
    integers = not labels_are_categorical(labels, logits)
    if _name(loss).startswith("sparse") != integers:
        fitting = "SparseCategoricalCrossentropy" if integers else "CategoricalCrossentropy"
        raise InputError(
            f"The compiled loss {_name(loss)!r} takes {formats[not integers]}. Received: {formats[integers]}, of shape "
            f"{tuple(labels.shape)}. Compile the distiller with keras.losses.{fitting}(from_logits=True)."
        )
