"""The weight of distillation, ramped up: Zhao et al., CVPR 2022 (DKD), https://arxiv.org/abs/2203.08679."""

import keras


class DistillationWarmup(keras.callbacks.Callback):
    r"""Lets the distillation losses of a `Distiller` count for $r = \min(e / E, 1)$ in epoch $e$, the first one is 1.

    A function of the epoch alone: a resumed run goes on where it was.

    Args:
        epochs: Positive integer $E$; 20 in the code of DKD, RLD and ReviewKD.

    Raises:
        ValueError: If `epochs` is not a positive number, or the model has no `distillation_scale`.
    """

    def __init__(self, epochs=20):
        super().__init__()
        if not isinstance(epochs, (int, float)) or not 0 < epochs < float("inf"):
            raise ValueError(f"`epochs` must be a positive number. Received: epochs={epochs!r}.")
        self.epochs = epochs

    def on_train_begin(self, logs=None):
        """Checks what it is to ramp up."""
        if not hasattr(self.model, "distillation_scale"):
            raise ValueError(f"WarmUp is for a Distiller. Received: {self.model.name}, a {type(self.model).__name__}.")

    def on_epoch_begin(self, epoch, logs=None):
        """Sets the ramp of this epoch."""
        self.model.distillation_scale.assign(min((epoch + 1) / self.epochs, 1.0))
