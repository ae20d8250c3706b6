"""Linear warmup of the distillation losses: Zhao et al., CVPR 2022 (DKD), https://arxiv.org/abs/2203.08679."""

import keras


class DistillationWarmup(keras.callbacks.Callback):
    r"""Scale the distillation losses of a `Distiller` by $\min(e / E, 1)$ in epoch $e$, counted from 1.

    Depends only on the epoch, so that a resumed run continues with the same scale.

    Args:
        epochs: Positive number $E$; 20 in the code of DKD, RLD and ReviewKD.

    Raises:
        ValueError: If `epochs` is not a positive number, or the model has no `distillation_scale`.
    """

    def __init__(self, epochs=20):
        super().__init__()
        if not isinstance(epochs, (int, float)) or not 0 < epochs < float("inf"):
            raise ValueError(f"`epochs` must be a positive number. Received: epochs={epochs!r}.")
        self.epochs = epochs

    def on_train_begin(self, logs=None):
        """Check that the model is a `Distiller`."""
        if not hasattr(self.model, "distillation_scale"):
            raise ValueError(
                "DistillationWarmup must be used with a Distiller. Received: "
                f"{self.model.name}, a {type(self.model).__name__}."
            )

    def on_epoch_begin(self, epoch, logs=None):
        """Set the scale for this epoch."""
        self.model.distillation_scale.assign(min((epoch + 1) / self.epochs, 1.0))
