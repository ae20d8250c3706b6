"""Distillation losses: `loss(labels, student, teacher)` gives one value an example. A new one is a file and a line."""

import keras

from keras_wsl.losses.base import DistillationLoss, SoftLabelLoss
from keras_wsl.losses.keras_distillation import KerasLoss, from_keras
from keras_wsl.losses.logit.kd import KD, soft_label_loss
from keras_wsl.losses.logit.wsl import WSL

NAMES = {
    "kd": KD,
    "wsl": WSL,
}


def get(spec, **kwargs):
    """The loss of a name, with settings; or a loss as it is; or what a `keras.distillation` loss means.

    Args:
        spec: `"kd"`, `"wsl"`, a `DistillationLoss`, or a `keras.distillation.DistillationLoss`.
        **kwargs: Settings of the loss.

    Raises:
        ValueError: If there is no loss of that name, with those that exist; or settings come with a finished loss.
    """
    if isinstance(spec, DistillationLoss):
        if kwargs:
            raise ValueError(f"{spec.name} is a finished loss. Give its settings where it is made, not {kwargs}.")
        return spec
    if isinstance(spec, keras.distillation.DistillationLoss):
        return from_keras(spec, **kwargs)
    if not isinstance(spec, str) or spec not in NAMES:
        raise ValueError(f"There is no distillation loss {spec!r}. Expected one of {sorted(NAMES)}, or a loss.")
    return NAMES[spec](**kwargs)


__all__ = ["KD", "WSL", "DistillationLoss", "KerasLoss", "SoftLabelLoss", "from_keras", "get", "soft_label_loss"]
