"""Teachers that change while the student trains: Harutyunyan et al., ICLR 2023, https://arxiv.org/abs/2301.12245."""

import keras

from keras_wsl import teacher_checkpoints
from keras_wsl.argument_checks import check_positive_int
from keras_wsl.callbacks.periodic_checkpoint import steps_of
from keras_wsl.models.weights import load_weights


class TeacherSchedule(keras.callbacks.Callback):
    r"""Online distillation from stored checkpoints: the teacher has the weights of its own training at that time.

    In the student's epoch $e$ (the first is 0) the teacher is its checkpoint after $m (\lfloor e / m \rfloor + 1)$
    epochs, likewise for steps; after the last checkpoint it stays the last. $m$ as long as all epochs is offline
    distillation.
    A function of the epoch alone: a resumed run goes on where it was. The teacher ends as its last checkpoint used.

    Works on every backend and inside an epoch too, since it finds the teacher through its model at each change.

    Args:
        checkpoints: `online.Checkpoints`, or the folder of such; of steps, with `unit`.
        every: Positive integer $m$.
        unit: `"epochs"` or `"steps"`.
        teacher: The name of the one that changes, of several.

    Raises:
        FileNotFoundError: If there are no checkpoints.
        ValueError: If `every` or the unit is out of range, the model has no such teacher, a checkpoint is of another
            network, or steps are counted and `fit` does not know how many an epoch has.
    """

    def __init__(self, checkpoints, every=1, unit="epochs", teacher=None):
        super().__init__()
        every = check_positive_int(every, "every")
        if not isinstance(checkpoints, teacher_checkpoints.Checkpoints):
            checkpoints = teacher_checkpoints.Checkpoints(checkpoints, unit)
        elif checkpoints.unit != unit:
            raise ValueError(f"The checkpoints are of {checkpoints.unit}. Received: unit={unit!r}.")
        self.checkpoints, self.every, self.unit, self.teacher = checkpoints, every, unit, teacher
        self.teaching = None  # The path of the checkpoint that teaches now.
        self._epoch = 0

    def on_train_begin(self, logs=None):
        """Checks whom it is to change."""
        taught_by(self.model, self.teacher, type(self).__name__)
        self.teaching = None  # Whatever the teacher was before, or is after another fit.
        if self.unit == "steps":
            steps_of(self)

    def on_epoch_begin(self, epoch, logs=None):
        """Lets the checkpoint of this epoch teach."""
        self._epoch = epoch
        if self.unit == "epochs":
            self._teach(epoch)

    def on_train_batch_begin(self, batch, logs=None):
        """Lets the checkpoint of this step teach."""
        if self.unit == "steps":
            self._teach(self._epoch * self.params["steps"] + batch)

    def _teach(self, done):
        path = self.checkpoints.teaching(done, self.every)
        if path != self.teaching:
            # Only now through `self.model`: on JAX that brings the model up to date, and lets fit fetch it again.
            load_weights(taught_by(self.model, self.teacher, type(self).__name__), path)
            self.teaching = path


class Lockstep(keras.callbacks.Callback):
    """Online distillation from a teacher that trains at the same time: its steps first, then as many of the student.

    ```python
    teacher.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    distiller.fit(batches, callbacks=[callbacks.Lockstep(teacher, iter(the_same_batches), every=1)])
    ```

    The same as `TeacherSchedule` with a checkpoint after every so many steps, without files. A backup of the student
    does not hold the teacher and its optimizer: to resume such a run, store checkpoints.

    Args:
        trainer: The compiled `keras.Model` whose training trains the distiller's teacher: that teacher itself, or a
            `Distiller` that has it as its student.
        batches: Iterator of batches for `trainer`, `(inputs, labels)`, at least as many as the student's.
        every: Positive integer, the steps of each before it is the other's turn.
        teacher: The name of the one that is trained, of several.

    Raises:
        ValueError: If `every` is out of range, the model has no such teacher, `trainer` does not train it or is not
            compiled, or its batches end before the student's.
    """

    def __init__(self, trainer, batches, every=1, teacher=None):
        super().__init__()
        every = check_positive_int(every, "every")
        self.trainer, self.batches, self.every, self.teacher = trainer, iter(batches), every, teacher
        self._done = 0

    def on_train_begin(self, logs=None):
        """Checks whom it is to train."""
        network = taught_by(self.model, self.teacher, type(self).__name__)
        if {id(v) for v in network.trainable_variables} - {id(v) for v in self.trainer.trainable_variables}:
            raise ValueError(f"{self.trainer.name} does not train the weights of the teacher {network.name}.")
        if not self.trainer.compiled:
            raise ValueError(f"{self.trainer.name} is not compiled. Give it an optimizer and a loss, then fit.")
        self._done = 0

    def on_train_batch_begin(self, batch, logs=None):
        """Trains the teacher where it is its turn."""
        if self._done % self.every == 0:
            # On JAX this brings the model up to date, before the teacher changes, and lets fit fetch it again.
            taught_by(self.model, self.teacher, type(self).__name__)
            for _ in range(self.every):
                batch = next(self.batches, None)
                if batch is None:
                    raise ValueError(f"The teacher's batches have ended after {self._done} steps of the student.")
                self.trainer.train_on_batch(*batch)
        self._done += 1


def taught_by(model, name, callback):
    """A distiller's teacher, or the one of a name.

    Raises:
        ValueError: If there is none.
    """
    teacher = getattr(model, "teacher", None)
    if isinstance(teacher, dict):
        if name not in teacher:
            raise ValueError(f"{callback}: choose one of the teachers {sorted(teacher)}. Received: teacher={name!r}.")
        teacher, name = teacher[name], None
    if isinstance(teacher, str):
        raise ValueError(f"{callback} changes a teacher that runs, and that of {model.name} is given by its logits.")
    if teacher is None or name is not None:
        said = "no teacher" if teacher is None else f"one teacher, and none named {name!r}"
        raise ValueError(f"{callback} changes the teacher of a Distiller, and {model.name} has {said}.")
    return teacher
