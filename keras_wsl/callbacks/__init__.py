"""Callbacks: what is kept, checked and counted while a model trains."""

from keras_wsl.callbacks.backup import Backup
from keras_wsl.callbacks.events import Events
from keras_wsl.callbacks.finite import FiniteLoss, NonFiniteLoss
from keras_wsl.callbacks.regularization_samples import RegularizationSamples
from keras_wsl.callbacks.scalars import Scalars
from keras_wsl.callbacks.warm_up import WarmUp

__all__ = ["Backup", "Events", "FiniteLoss", "NonFiniteLoss", "RegularizationSamples", "Scalars", "WarmUp"]
