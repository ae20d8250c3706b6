"""Losses of `keras.distillation` among ours, for those who come from there."""

import warnings

import keras
from keras import ops

from keras_wsl.losses.base import DistillationLoss, snake_case
from keras_wsl.losses.logit.kd import KD


def from_keras(loss, **kwargs):
    """The loss that a `keras.distillation.DistillationLoss` means.

    `LogitsDistillation` by a Kullback-Leibler divergence is `KD` at its temperature. Keras's default, the string
    `"kl_divergence"`, takes logits for probabilities there; what it means is used, and a warning says so. Every other
    one is called as it is.

    Args:
        loss: A `keras.distillation.DistillationLoss`.
        **kwargs: As of `DistillationLoss`: `weight`, `name`; for what becomes a `KD`, `weighting` too.
    """
    if not isinstance(loss, keras.distillation.LogitsDistillation):
        return KerasLoss(loss, **kwargs)
    if loss.loss is keras.losses.kl_divergence:
        warnings.warn(
            "keras.distillation.LogitsDistillation(loss='kl_divergence') takes logits for probabilities. "
            "keras_wsl.losses.KD is used in its place: results differ from Keras's.",
            stacklevel=2,
        )
    elif not isinstance(loss.loss, keras.losses.KLDivergence):
        return KerasLoss(loss, **kwargs)
    return KD(temperature=loss.temperature, **{"weight": 1.0, **kwargs})


def from_keras_distiller(distiller):
    """Return the losses of a `keras.distillation.Distiller` with its weights, a list of `DistillationLoss`."""
    scale = 1 - distiller.student_loss_weight
    names = [from_keras(loss).name for loss in distiller.distillation_losses]
    return [
        from_keras(loss, weight=scale * weight, name=name if names.count(name) == 1 else f"{name}_{i}")
        for i, (loss, weight, name) in enumerate(
            zip(distiller.distillation_losses, distiller.distillation_loss_weights, names)
        )
    ]


@keras.saving.register_keras_serializable("keras_wsl")
class KerasLoss(DistillationLoss):
    """A `keras.distillation.DistillationLoss` as it is: its one number for the batch stands for each of its examples.

    Args:
        loss: The `keras.distillation.DistillationLoss`.
        weight: Float, the factor in the total.
        teacher: As of `DistillationLoss`.
        name: Its name in the logs; the class's in snake case by default.

    Raises:
        ValueError: If asked to weigh examples, which a number for the whole batch does not allow.
    """

    def __init__(self, loss, *, weight=1.0, weighting=None, teacher=None, name=None):
        if weighting is not None:
            raise ValueError(
                f"{type(loss).__name__} gives one number for a batch, so its examples have no weights. "
                f"Received: weighting={weighting!r}. Use one of `keras_wsl.losses`, or leave it out."
            )
        super().__init__(weight=weight, teacher=teacher, name=name or snake_case(type(loss).__name__))
        self.loss = loss
        self.student_layer = getattr(loss, "student_layer_name", None)
        self.teacher_layer = getattr(loss, "teacher_layer_name", None)
        self.student_layers = (self.student_layer,) if self.student_layer else ()
        self.teacher_layers = (self.teacher_layer,) if self.teacher_layer else ()

    def per_example(self, labels, student, teacher):
        """The loss of the batch, once for each example."""
        value = self.loss.compute_loss(teacher[self.teacher_layer or "logits"], student[self.student_layer or "logits"])
        return ops.broadcast_to(ops.cast(value, "float32"), (ops.shape(student["logits"])[0],))

    @classmethod
    def from_config(cls, config):
        """The loss that `get_config` describes."""
        return super().from_config({**config, "loss": keras.saving.deserialize_keras_object(config["loss"])})
