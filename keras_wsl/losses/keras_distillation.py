"""Conversion of the losses and distillers of `keras.distillation`."""

import warnings

import keras
from keras import ops

from keras_wsl.losses.base import DistillationLoss, snake_case
from keras_wsl.losses.logit.kd import KD


def from_keras(loss, **kwargs):
    """Convert a `keras.distillation.DistillationLoss`.

    `LogitsDistillation` with a Kullback-Leibler divergence becomes `KD` at its temperature. Keras's default, the string
    `"kl_divergence"`, treats logits as probabilities: it becomes `KD` too, with a warning. Any other loss becomes a
    `KerasLoss`.

    Args:
        loss: A `keras.distillation.DistillationLoss`.
        **kwargs: See `DistillationLoss`. Only `KD` takes a `weighting`.
    """
    if not isinstance(loss, keras.distillation.LogitsDistillation):
        return KerasLoss(loss, **kwargs)
    if loss.loss is keras.losses.kl_divergence:
        warnings.warn(
            "keras.distillation.LogitsDistillation(loss='kl_divergence') treats logits as probabilities. "
            "keras_wsl.losses.KD is used instead: results differ from those of Keras.",
            stacklevel=2,
        )
    elif not isinstance(loss.loss, keras.losses.KLDivergence):
        return KerasLoss(loss, **kwargs)
    return KD(temperature=loss.temperature, **{"weight": 1.0, **kwargs})


def from_keras_distiller(distiller):
    """Convert the losses of a `keras.distillation.Distiller` with its weights: a list of `DistillationLoss`."""
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
    """A wrapper of a `keras.distillation.DistillationLoss`. Each example gets the value of the batch.

    Args:
        loss: The `keras.distillation.DistillationLoss`.
        weight: See `DistillationLoss`, as are the other arguments.

    Raises:
        ValueError: If `weighting` is not `None`: the loss has one value for the batch.
    """

    def __init__(self, loss, *, weight=1.0, weighting=None, teacher=None, name=None):
        if weighting is not None:
            raise ValueError(
                f"`weighting` must be None for {type(loss).__name__}, which returns one number per batch. "
                f"Received: weighting={weighting!r}. Use a loss of `keras_wsl.losses`."
            )
        super().__init__(weight=weight, teacher=teacher, name=name or snake_case(type(loss).__name__))
        self.loss = loss
        self.student_layer = getattr(loss, "student_layer_name", None)
        self.teacher_layer = getattr(loss, "teacher_layer_name", None)
        self.student_layers = (self.student_layer,) if self.student_layer else ()
        self.teacher_layers = (self.teacher_layer,) if self.teacher_layer else ()

    def per_example(self, labels, student, teacher):
        """Return the loss of the batch for each example."""
        value = self.loss.compute_loss(teacher[self.teacher_layer or "logits"], student[self.student_layer or "logits"])
        return ops.broadcast_to(ops.cast(value, "float32"), (ops.shape(student["logits"])[0],))

    @classmethod
    def from_config(cls, config):
        """Return the loss that `get_config` describes."""
        return super().from_config({**config, "loss": keras.saving.deserialize_keras_object(config["loss"])})
