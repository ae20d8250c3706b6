"""Callbacks that back up, check and log a training run."""

from keras_wsl.callbacks.backup import ExactBackupAndRestore
from keras_wsl.callbacks.distillation_warmup import DistillationWarmup
from keras_wsl.callbacks.periodic_checkpoint import PeriodicCheckpoint
from keras_wsl.callbacks.preemption import PreemptedError, PreemptionHandler
from keras_wsl.callbacks.raise_on_non_finite import NonFiniteLossError, RaiseOnNonFinite
from keras_wsl.callbacks.regularization_samples import RegularizationSamples
from keras_wsl.callbacks.summary_writer import SummaryWriter
from keras_wsl.callbacks.supervision_complexity import SupervisionComplexity
from keras_wsl.callbacks.teacher_schedule import TeacherSchedule
from keras_wsl.callbacks.tensorboard_scalars import TensorBoardScalars

__all__ = [
    "DistillationWarmup",
    "ExactBackupAndRestore",
    "NonFiniteLossError",
    "PeriodicCheckpoint",
    "PreemptedError",
    "PreemptionHandler",
    "RaiseOnNonFinite",
    "RegularizationSamples",
    "SummaryWriter",
    "SupervisionComplexity",
    "TeacherSchedule",
    "TensorBoardScalars",
]
