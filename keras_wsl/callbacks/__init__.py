"""Callbacks: what is kept, checked and counted while a model trains."""

from keras_wsl.callbacks.backup import Backup
from keras_wsl.callbacks.checkpoints import Checkpoints
from keras_wsl.callbacks.events import Events
from keras_wsl.callbacks.finite import FiniteLoss, NonFiniteLoss
from keras_wsl.callbacks.regularization_samples import RegularizationSamples
from keras_wsl.callbacks.scalars import Scalars
from keras_wsl.callbacks.supervision_complexity import SupervisionComplexity
from keras_wsl.callbacks.teacher_schedule import Lockstep, TeacherSchedule
from keras_wsl.callbacks.termination import Terminated, Termination
from keras_wsl.callbacks.warm_up import WarmUp

__all__ = [
    "Backup",
    "Checkpoints",
    "Events",
    "FiniteLoss",
    "Lockstep",
    "NonFiniteLoss",
    "RegularizationSamples",
    "Scalars",
    "SupervisionComplexity",
    "TeacherSchedule",
    "Terminated",
    "Termination",
    "WarmUp",
]
