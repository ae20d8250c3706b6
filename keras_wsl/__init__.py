"""Knowledge distillation for Keras 3, with a weight for every example's soft label."""

from keras_wsl import (
    adapters,
    analysis,
    callbacks,
    data,
    distribution,
    export,
    losses,
    models,
    ops,
    optimizers,
    regularization_samples,
    soft_labels,
    teacher_checkpoints,
    training,
    weighting,
)
from keras_wsl.distiller import Distiller
from keras_wsl.features import FeatureExtractor

__version__ = "0.1.0"

__all__ = [
    "Distiller",
    "FeatureExtractor",
    "adapters",
    "analysis",
    "callbacks",
    "data",
    "distribution",
    "export",
    "losses",
    "models",
    "ops",
    "optimizers",
    "regularization_samples",
    "soft_labels",
    "teacher_checkpoints",
    "training",
    "weighting",
]
