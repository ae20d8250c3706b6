"""Callbacks: what is kept, checked and counted while a model trains."""

from keras_wsl.callbacks.backup import Backup
from keras_wsl.callbacks.distillation_warmup import DistillationWarmup
from keras_wsl.callbacks.periodic_checkpoint import Checkpoints
from keras_wsl.callbacks.preemption import PreemptedError, PreemptionHandler
from keras_wsl.callbacks.raise_on_non_finite import NonFiniteLossError, RaiseOnNonFinite
from keras_wsl.callbacks.regularization_samples import RegularizationSamples
from keras_wsl.callbacks.summary_writer import SummaryWriter
from keras_wsl.callbacks.supervision_complexity import SupervisionComplexity
from keras_wsl.callbacks.teacher_schedule import Lockstep, TeacherSchedule
from keras_wsl.callbacks.tensorboard_scalars import TensorBoardScalars

__all__ = [
    "Backup",
    "Checkpoints",
    "DistillationWarmup",
    "Lockstep",
    "NonFiniteLossError",
    "PreemptedError",
    "PreemptionHandler",
    "RaiseOnNonFinite",
    "RegularizationSamples",
    "SummaryWriter",
    "SupervisionComplexity",
    "TeacherSchedule",
    "TensorBoardScalars",
]
