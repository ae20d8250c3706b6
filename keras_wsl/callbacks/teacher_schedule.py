"""Teachers that change while the student trains: Harutyunyan et al., ICLR 2023, https://arxiv.org/abs/2301.12245."""

import keras

from keras_wsl import teacher_checkpoints
from keras_wsl.argument_checks import check_positive_int
from keras_wsl.callbacks.periodic_checkpoint import get_steps_per_epoch
from keras_wsl.models.weights import load_weights


class TeacherSchedule(keras.callbacks.Callback):
    r"""Load the teacher's successive checkpoints during the student's training: online distillation.

    In the student's epoch $e$ (counted from 0), the teacher has the weights of its checkpoint after
    $m (\lfloor e / m \rfloor + 1)$ epochs; likewise for steps. After the last checkpoint, the teacher does not change
    any more. If $m$ is the number of all epochs, this is offline distillation. The teacher depends only on the epoch,
    so that a resumed run continues with the same teacher. After training, the teacher keeps the last loaded weights.

    Works on all backends and also inside an epoch, because it accesses the teacher through its model at each change.

    Args:
        checkpoints: `teacher_checkpoints.Checkpoints`, or the path of their directory.
        update_freq: Positive integer $m$, the number of epochs or steps between two changes.
        update_freq_unit: `"epochs"` or `"steps"`.
        teacher: The name of the teacher that changes, if there are several.

    Raises:
        FileNotFoundError: If there are no checkpoints.
        ValueError: If `update_freq` or the unit is out of range, the model has no such teacher, a checkpoint is of
            another network, or the unit is `"steps"` and `fit` does not know the number of steps per epoch.
    """

    def __init__(self, checkpoints, update_freq=1, update_freq_unit="epochs", teacher=None):
        super().__init__()
        self.update_freq = check_positive_int(update_freq, "update_freq")
        teacher_checkpoints.check_unit(update_freq_unit, "update_freq_unit")
        if not isinstance(checkpoints, teacher_checkpoints.Checkpoints):
            checkpoints = teacher_checkpoints.Checkpoints(checkpoints, update_freq_unit)
        elif checkpoints.unit != update_freq_unit:
            raise ValueError(
                f"`update_freq_unit` must be the unit of the checkpoints, {checkpoints.unit!r}. Received: "
                f"update_freq_unit={update_freq_unit!r}."
            )
        self.checkpoints, self.update_freq_unit, self.teacher = checkpoints, update_freq_unit, teacher
        self.current_path = None  # Of the checkpoint whose weights the teacher has.
        self._epoch = 0

    def on_train_begin(self, logs=None):
        """Check that the model has the teacher."""
        self._resolve_teacher()
        self.current_path = None  # The teacher's weights may have been changed before, or since another fit.
        if self.update_freq_unit == "steps":
            get_steps_per_epoch(self)

    def on_epoch_begin(self, epoch, logs=None):
        """Load the checkpoint for this epoch."""
        self._epoch = epoch
        if self.update_freq_unit == "epochs":
            self._load_checkpoint(epoch)

    def on_train_batch_begin(self, batch, logs=None):
        """Load the checkpoint for this step."""
        if self.update_freq_unit == "steps":
            self._load_checkpoint(self._epoch * self.params["steps"] + batch)

    def _load_checkpoint(self, count):
        path = self.checkpoints.checkpoint_at(count, self.update_freq)
        if path != self.current_path:
            # `self.model` is read only here: on JAX this brings the model up to date and lets fit fetch it again.
            load_weights(self._resolve_teacher(), path)
            self.current_path = path

    def _resolve_teacher(self):
        """Return the distiller's teacher, or the one named `self.teacher` if there are several."""
        model, name = self.model, self.teacher
        teacher = getattr(model, "teacher", None)
        if isinstance(teacher, dict):
            if name not in teacher:
                raise ValueError(
                    f"`teacher` must be the name of one of the teachers {sorted(teacher)}. Received: teacher={name!r}."
                )
            teacher, name = teacher[name], None
        if isinstance(teacher, str):
            raise ValueError(
                f"TeacherSchedule requires a teacher that is a network. Received: {model.name}, whose teacher is "
                f"{teacher!r}, the key of precomputed logits."
            )
        if teacher is None or name is not None:
            received = "has no teacher" if teacher is None else f"has one teacher, and none named {name!r}"
            raise ValueError(
                f"TeacherSchedule requires a Distiller with the teacher that changes. Received: {model.name}, which "
                f"{received}."
            )
        return teacher
