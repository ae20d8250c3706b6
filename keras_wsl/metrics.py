"""Metrics of a training step: the terms of the loss, and counts of regularization samples."""

import keras
from keras import ops

REGULARIZATION_METRICS = ("regularization_samples", "regularization_sample_rate", "mean_wsl_weight")


class Sum(keras.metrics.Sum):
    """A sum whose result keeps its value when the metric is reset: on Torch, Keras's returns its own variable."""

    def result(self):
        """Return the sum, a new tensor."""
        return super().result() + 0


def make_step_metrics(losses):
    """Return the metrics of a step by their names in the logs, a dict.

    The means are `student_loss`, every distillation loss, `distillation_loss`, `regularization_sample_rate` and
    `mean_wsl_weight`; `regularization_samples` is a sum. Without distillation losses there is only `student_loss`.

    Args:
        losses: List of `DistillationLoss`.

    Raises:
        ValueError: If two names are equal.
    """
    names = ["student_loss", *(loss.name for loss in losses)]
    if losses:
        names += ["distillation_loss", *REGULARIZATION_METRICS]
    if repeated := sorted({name for name in [*names, "loss"] if [*names, "loss"].count(name) > 1}):
        reserved = sorted({"loss", "student_loss", "distillation_loss", *REGULARIZATION_METRICS})
        raise ValueError(
            f"The names in the logs must differ. Received twice: {repeated}. Give each distillation loss a `name` of "
            f"its own, none of {reserved}."
        )
    return {name: (Sum if name == REGULARIZATION_METRICS[0] else keras.metrics.Mean)(name=name) for name in names}


def update_step_metrics(metrics, losses, mask):
    """Add the losses of a batch to the metrics.

    Args:
        metrics: Dict from `make_step_metrics`.
        losses: `Losses` of the batch.
        mask: `None`, or booleans of shape `(batch, time)`: the positions of sequences that count.
    """
    for name, values in losses.terms.items():
        metrics[name].update_state(values)
    if losses.regularization_samples is not None:
        counted = None if mask is None else ops.cast(mask, "float32")
        for name in REGULARIZATION_METRICS[:2]:
            metrics[name].update_state(losses.regularization_samples, counted)
        metrics[REGULARIZATION_METRICS[2]].update_state(losses.wsl_weights, counted)
