"""Knowledge distillation for Keras 3, with a weight for every example's soft label."""

from keras_wsl import (
    analysis,
    callbacks,
    data,
    export,
    losses,
    models,
    online,
    optimizers,
    regularization,
    soft_labels,
    weighting,
)
from keras_wsl.distiller import Distiller
from keras_wsl.endpoints import Endpoints

__version__ = "0.1.0"

__all__ = [
    "Distiller",
    "Endpoints",
    "analysis",
    "callbacks",
    "data",
    "export",
    "losses",
    "models",
    "online",
    "optimizers",
    "regularization",
    "soft_labels",
    "weighting",
]
