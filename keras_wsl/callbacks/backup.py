"""Exact resume: a run that is killed and started again ends in the same bits as an uninterrupted run."""

import json
import pathlib
import warnings

import keras
import numpy as np

from keras_wsl import files
from keras_wsl.callbacks.backup_file import CorruptBackupError, decode, pack, unpack
from keras_wsl.callbacks.backup_state import (
    describe_variables,
    get_callback_state,
    list_differences,
    to_array,
    variables_match,
)
from keras_wsl.callbacks.preemption import PreemptedError
from keras_wsl.callbacks.raise_on_non_finite import NonFiniteLossError


class _EndEpochEarly:
    """The value of `stop_training` that ends a resumed epoch. Other callbacks set it to True to stop the run."""


class ExactBackupAndRestore(keras.callbacks.Callback):
    """Save and restore all state of a run: weights, optimizer, random states, logs and callbacks.

    Put it first in the list of callbacks. The data must be endless and must be able to start at any step::

        backup = ExactBackupAndRestore("backup", steps_per_epoch=n, save_freq=100, stateful_callbacks=[early_stopping])
        model.fit(
            batches(start=backup.initial_position),
            initial_epoch=backup.initial_position[0], steps_per_epoch=n, epochs=m,
            callbacks=[backup, early_stopping, ...],
        )

    The same lines start a run and resume it. `batches(start=(epoch, step))` must return an endless `tf.data.Dataset` or
    generator that begins with that step. A `PyDataset` does not work, because it cannot start inside an epoch.

    The state is saved at the end of each epoch, after all callbacks have run, and every `save_freq` steps. A backup is
    one file with a SHA-256 of its content. It is renamed to its final name after it has been written to the disk. If a
    file is damaged, a warning is issued and the previous backup is used.

    For bitwise equality, call `keras.utils.set_random_seed`, on TensorFlow also
    `tf.config.experimental.enable_op_determinism`, and on Torch use `Dropout(rate, seed=...)`, because an unseeded
    `Dropout` uses a global generator there. With a multi-worker strategy, each worker needs its own directory.

    Args:
        directory: Path of a directory that holds only this run's backups. It is created when training starts.
        steps_per_epoch: Positive integer, the same as for `fit`.
        save_freq: Positive integer, the number of steps between two backups within an epoch, or `None` to save at the
            end of epochs only. Must be a multiple of the model's `steps_per_execution`.
        stateful_callbacks: Callbacks whose state is part of the run, such as `EarlyStopping` or `ReduceLROnPlateau`.
            Attributes are saved if they are numbers, strings, `None`, NumPy arrays, or lists, tuples and dicts of
            these. Constructor arguments of Keras's own callbacks are configuration and are not saved.
        max_to_keep: Positive integer, the number of files to keep. With at least 2, a damaged file loses only the
            steps since the previous backup.
        run_fingerprint: JSON-serializable dict that identifies the run, such as its flags and the teacher's SHA-256. A
            backup with another fingerprint is refused.
        defaults: Dict of the values to assume for entries of `run_fingerprint` that an older backup does not have.
        conditions: JSON-serializable dict of what may change the last bits of the result, such as the number of
            threads. A warning is issued if it differs from the backup's.
        preemption_handler: A `PreemptionHandler`, or `None`. After it has received a signal, the state is saved and
            `PreemptedError` is raised before the next step.

    Attributes:
        initial_position: List `[epoch, step]`, both counted from 0: where training continues. Updated by each backup.
        history: List of dicts, one per finished epoch: `"epoch"` (from 0) and the logs as floats. CSV files and plots
            are rewritten from it, so that no row is duplicated.
        finished: Whether a callback set `model.stop_training` at the end of an epoch. `fit` then restores the last
            state and does not train.

    Raises:
        ValueError: In the constructor, before anything is written: if an argument is out of range, or if the directory
            holds a backup of another run. In `fit`: if the model, `initial_epoch` or `steps_per_epoch` does not match
            the backup, the directory is not writable, or the data end.
        NonFiniteLossError: In `fit`: if a trainable weight is NaN or infinite. Such a state is not saved.
        PreemptedError: In `fit`: if `preemption_handler` has received a signal.
    """

    # Keras may then call on_train_batch_end from its own threads and need not wait for each step's logs.
    async_safe = True

    def __init__(
        self,
        directory,
        steps_per_epoch,
        *,
        save_freq=None,
        stateful_callbacks=(),
        max_to_keep=2,
        run_fingerprint=None,
        defaults=None,
        conditions=None,
        preemption_handler=None,
    ):
        super().__init__()
        numbers = {"steps_per_epoch": steps_per_epoch, "save_freq": save_freq, "max_to_keep": max_to_keep}
        for name, value in numbers.items():
            if not (name == "save_freq" and value is None) and (not isinstance(value, int) or value < 1):
                raise ValueError(f"`{name}` must be a positive integer. Received: {name}={value!r}. Pass at least 1.")
        dicts = [run_fingerprint or {}, defaults or {}, conditions or {}]
        try:
            self.run_fingerprint, self.defaults, self.conditions = json.loads(json.dumps(dicts))
        except TypeError as error:
            raise ValueError(
                "`run_fingerprint`, `defaults` and `conditions` must be JSON-serializable. Received: "
                f"run_fingerprint={run_fingerprint!r} ({error}). Use strings, numbers and lists."
            ) from error
        self.directory = pathlib.Path(directory)
        self.steps_per_epoch, self.save_freq, self.max_to_keep = steps_per_epoch, save_freq, max_to_keep
        self.stateful_callbacks, self.preemption_handler = tuple(stateful_callbacks), preemption_handler
        self._used = False
        self._load()

    def _load(self):
        """Read the newest backup. Writes nothing."""
        self._damaged = set()
        self._backup = self._read_newest()
        run = self._backup or {"position": [0, 0], "history": [], "finished": False}
        self.initial_position, self.history, self.finished = run["position"], run["history"], run["finished"]
        self._logs, self._epoch, self._first_step, self._finished_batches = None, None, 0, []
        different = list_differences(run.get("conditions", self.conditions), self.conditions)
        if different and self.initial_position != [0, 0] and not self.finished:
            warnings.warn(
                f"{'; '.join(different)}. The run may not end in the same bits as without an interruption.",
                stacklevel=3,
            )

    def on_train_begin(self, logs=None):
        """Raise an error before the first step if the run could not be resumed."""
        if self._used:  # A second fit continues from the files, as a new process would.
            self._load()
        self._used = True
        if self.params.get("steps") != self.steps_per_epoch:
            raise ValueError(
                "`steps_per_epoch` must be the same in `fit` and in the callback. Received: "
                f"{self.params.get('steps')} in `fit`, {self.steps_per_epoch} in the callback."
            )
        files.remove_orphans(self.directory)
        steps_per_execution = self._steps_per_execution = self.model.steps_per_execution
        for name, value in {"steps_per_epoch": self.steps_per_epoch, "save_freq": self.save_freq}.items():
            if value is not None and value % steps_per_execution:
                raise ValueError(
                    f"`{name}` must be a multiple of the model's steps_per_execution={steps_per_execution}. Received: "
                    f"{name}={value}. Change one of them."
                )
        if self.finished:
            # Same as keras.callbacks.BackupAndRestore: fit reads it after this hook and finds no epoch to train.
            self.model._initial_epoch = self.params["epochs"]
        else:
            self._check_writable()

    def on_epoch_begin(self, epoch, logs=None):
        """Restore or save: all callbacks have finished the previous epoch, and fit has reset the metrics."""
        self._epoch, self._first_step, self._finished_batches = epoch, 0, []
        if not self._backup:
            self._save(epoch, 0)
            return
        if self.finished or epoch != self.initial_position[0]:
            stopped = ", of a run that a callback stopped" if self.finished else ""
            raise ValueError(
                f"`fit` must start where the backup ends. Received: initial_epoch={epoch}, but the backup in "
                f"{self.directory} is at {self.initial_position}{stopped}. Call "
                "fit(batches(start=backup.initial_position), initial_epoch=backup.initial_position[0], ...)."
            )
        self._first_step = self.initial_position[1]
        self._restore(metrics=False)
        if not self._first_step:
            self._backup = None

    def on_train_batch_begin(self, batch, logs=None):
        """Save every `save_freq` steps, and before the run ends because of a signal."""
        step, handler = self._first_step + batch, self.preemption_handler
        preempted = handler is not None and handler.requested
        if self._backup:
            # Restore again inside the epoch: a schedule may have changed the learning rate as the epoch began.
            self._restore_inside_epoch()
        elif (self.save_freq and batch and step % self.save_freq == 0) or (batch and preempted):
            self._save(self._epoch, step)
        if preempted:
            epoch, saved_step = self.initial_position
            raise PreemptedError(
                f"{handler.name} was received in epoch {epoch + 1}. The state after step {saved_step} of "
                f"{self.steps_per_epoch} of the epoch is saved in {self.directory}.",
                handler.number,
            )
        # Reading self.model brings a JAX model up to date, which takes time: only in the last step.
        if self._first_step and step + self._steps_per_execution >= self.steps_per_epoch:
            # fit would run steps_per_epoch steps here too. This ends its loop; on_epoch_end lets training continue.
            self.model.stop_training = _EndEpochEarly

    def on_train_batch_end(self, batch, logs=None):
        """Record the steps that were run."""
        # Keras's threads may call this out of order and concurrently; append is atomic.
        self._finished_batches.append(batch)

    def on_epoch_end(self, epoch, logs=None):
        """Keep a reference to the logs. They are read after the other callbacks have added theirs."""
        if self.model.stop_training is _EndEpochEarly:
            self.model.stop_training = False
        if self._steps_done() >= self.steps_per_epoch:
            self._logs = logs
        elif not self.model.stop_training:
            raise ValueError(
                f"The data must be endless. Received: epoch {epoch} ended after step {self._steps_done()} of "
                f"{self.steps_per_epoch}. Use, for example, dataset.repeat()."
            )

    def on_train_end(self, logs=None):
        """Save the last epoch, or restore if there was no epoch to train."""
        self.model._initial_epoch = None
        if self._backup:
            self._restore(metrics=False)
            self._backup = None
        elif self._steps_done() >= self.steps_per_epoch:  # A stop inside an epoch keeps the last backup.
            self._save(self._epoch + 1, 0, finished=bool(self.model.stop_training))

    def _save(self, epoch, step, *, finished=False):
        history = list(self.history)
        if self._logs is not None:
            floats = {name: np.asarray(value, dtype=float).tolist() for name, value in self._logs.items()}
            history.append({"epoch": epoch - 1, **floats})
        variables, metrics = self._variables(), self.model.metrics_variables if step else []
        arrays = [to_array(variable) for variable in variables + metrics]
        self._check_finite(variables, arrays, epoch, step)
        run = {
            "position": [epoch, step],
            "finished": finished,
            "history": history,
            "identity": self.run_fingerprint,
            "conditions": self.conditions,
            "setting": self._environment(),
            "variables": describe_variables(variables),
            "metrics": describe_variables(metrics),
            "watched": [
                [type(callback).__name__, get_callback_state(callback, arrays)] for callback in self.stateful_callbacks
            ],
        }
        path = self.directory / f"{epoch:06d}-{step:08d}.backup"
        content = pack(run, arrays)
        files.atomic_write(path, lambda file: file.writelines(content), size=sum(len(part) for part in content))
        self._damaged.discard(path)
        intact = sorted(set(self._files()) - self._damaged)
        for old in [*intact[: -self.max_to_keep], *self._damaged]:
            old.unlink(missing_ok=True)
        self._damaged.clear()
        self._logs = None
        self.initial_position, self.history, self.finished = [epoch, step], history, finished

    def _files(self):
        return [path for path in self.directory.glob("*.backup") if path.is_file()]

    def _read_newest(self):
        """Return the newest intact backup, or `None`.

        Raises:
            ValueError: If it is a backup of another run.
        """
        for path in sorted(self._files(), reverse=True):
            try:
                run = unpack(path.read_bytes())
            except CorruptBackupError as error:
                self._damaged.add(path)
                warnings.warn(
                    f"{path} is damaged ({error}). The previous backup is used, if there is one. The next backup "
                    "removes the file.",
                    stacklevel=4,
                )
                continue
            known = {name: value for name, value in self.defaults.items() if name in self.run_fingerprint}
            different = list_differences(run["setting"], self._environment())
            different += list_differences({**known, **run["identity"]}, self.run_fingerprint)
            if different:
                raise ValueError(
                    f"{path} is a backup of another run. {'; '.join(different)}. Use the settings of the backup to "
                    "resume that run, or another directory for a new run."
                )
            return run
        return None

    def _environment(self):
        # A position has no meaning for epochs of another length, and backends draw different random numbers.
        return {"backend": keras.backend.backend(), "steps_per_epoch": self.steps_per_epoch}

    def _variables(self):
        """Return weights, BatchNorm statistics, dropout generators and optimizer variables; no Distiller's teacher."""
        model = self.model  # On JAX this getter also brings the model up to date with the step.
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        # Not non_trainable_variables: a Distiller has its teacher there, so that JAX does not compile it as constants.
        return [*model.variables, *model.optimizer.variables]

    def _restore(self, *, metrics):
        variables, backup = self._variables(), self._backup
        expected = backup["variables"] + (backup["metrics"] if metrics else [])
        variables += self.model.metrics_variables if metrics else []
        self._check_variables(describe_variables(variables), expected)
        names = [type(callback).__name__ for callback in self.stateful_callbacks]
        saved_names = [name for name, _ in backup["watched"]]
        if names != saved_names:
            raise ValueError(
                f"`stateful_callbacks` must be those of the backup in {self.directory}, {saved_names}, in this order. "
                f"Received: stateful_callbacks={names}."
            )
        for variable, array in zip(variables, backup["arrays"]):
            variable.assign(array)
        for callback, (_, state) in zip(self.stateful_callbacks, backup["watched"]):
            vars(callback).update({name: decode(value, backup["arrays"]) for name, value in state.items()})

    def _restore_inside_epoch(self):
        model = self.model
        if len(model.metrics_variables) == len(self._backup["metrics"]):
            self._restore(metrics=True)
            self._backup = None
            return
        # TensorFlow creates the variables of compiled metrics when it traces the first step, from a batch's shapes.
        # fit reads train_function at each step, so this function replaces it once and receives the iterator.
        train_function = model.train_function

        def build_then_train(iterator):
            model.train_function = train_function
            if hasattr(iterator, "element_spec"):
                model._symbolic_build(data_batch=iterator.element_spec)
            self._restore(metrics=True)
            self._backup = None
            return train_function(iterator)

        model.train_function = build_then_train

    def _steps_done(self):
        """Return the number of finished steps of this epoch, including those before a resume."""
        return self._first_step + max(self._finished_batches, default=-1) + 1

    def _check_variables(self, current, saved):
        pairs = [(a, b) for a, b in zip(saved, current) if not variables_match(a, b)]
        if not pairs and len(current) == len(saved):
            return
        shown = [f"{_format(a)} in the backup, {_format(b)} now" for a, b in pairs[:3]]
        counts = f"{len(saved)} in the backup, {len(current)} now"
        raise ValueError(
            f"{self.directory} holds a backup of a model with other variables: {'; '.join([counts, *shown])}"
            f"{', ...' if len(pairs) > 3 else ''}. Build the same model with the same optimizer and metrics, or use "
            "another directory. If only metrics are missing, which TensorFlow creates in the first step, call "
            "model.test_on_batch(x, y) with two examples before fit."
        )

    def _check_finite(self, variables, arrays, epoch, step):
        broken = [v.path for v, array in zip(variables, arrays) if v.trainable and not np.isfinite(array).all()]
        if broken:
            raise NonFiniteLossError(
                f"Weights must be finite. Received: NaN or infinite values in {len(broken)} trainable variables, first "
                f"{broken[0]}, in epoch {epoch + 1}, after step {step}. This state was not saved. Lower the learning "
                f"rate or clip gradients, and resume from {self.initial_position} in {self.directory}. "
                "RaiseOnNonFinite names the term that caused it.",
                terms=broken,
                epoch=epoch + 1,
                step=step,
            )

    def _check_writable(self):
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            files.check_writable(self.directory)
        except OSError as error:
            raise ValueError(
                f"The backup directory must be writable. Received: {self.directory} ({error}). Pass another directory."
            ) from error


def _format(description):
    path, shape, dtype = description
    return f"{path} {tuple(shape)} {dtype}"
