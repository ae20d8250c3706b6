"""Callbacks: what is kept, checked and counted while a model trains."""

from keras_wsl.callbacks.backup import Backup
from keras_wsl.callbacks.finite import FiniteLoss, NonFiniteLoss

__all__ = ["Backup", "FiniteLoss", "NonFiniteLoss"]
