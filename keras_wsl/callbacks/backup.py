"""Exact resume: a run that is killed and started again ends in the same bits as one that was not."""

import inspect
import json
import pathlib
import re
import warnings

import keras
import numpy as np

from keras_wsl import files
from keras_wsl.callbacks.backup_file import Damaged, decode, encode, pack, unpack
from keras_wsl.callbacks.preemption import PreemptedError
from keras_wsl.callbacks.raise_on_non_finite import NonFiniteLossError


class _CutShort:
    """The value of `stop_training` that ends a resumed epoch; any other callback's stop is plain True."""


class Backup(keras.callbacks.Callback):
    """Saves all that a run depends on, and goes on from there: weights, optimizer, random states, logs, callbacks.

    It is the first of the callbacks, and the data are endless and can start anywhere::

        backup = Backup("backup", steps_per_epoch=n, every=100, watch=[early_stopping])
        model.fit(
            batches(start=backup.position),
            initial_epoch=backup.position[0], steps_per_epoch=n, epochs=m,
            callbacks=[backup, early_stopping, ...],
        )

    The same lines start a run and resume it. `batches(start=(epoch, step))` yields the batches from that step on,
    for ever, as a `tf.data.Dataset` or a generator; not a `PyDataset`, which cannot be left in the middle of an epoch.

    A state is saved as each epoch ends (when all callbacks are done with it) and after every `every` steps. It is
    one file with a SHA-256 over all of it, which takes its name once it is wholly on the disk. A damaged file is
    warned about, and the one before it is used.

    For a resumed run that is equal bit for bit: `keras.utils.set_random_seed`;
    `tf.config.experimental.enable_op_determinism` on TensorFlow; on Torch, where an unseeded `Dropout` draws from a
    global generator, `Dropout(rate, seed=...)`. Under a multi-worker strategy each worker has its own directory.

    Args:
        directory: Path of a folder for this run's backups alone. It is made when training starts.
        steps_per_epoch: Positive integer, as given to `fit`.
        every: Positive integer, steps between two backups inside an epoch, or None for none. A multiple of the
            model's `steps_per_execution`.
        watch: Callbacks whose state belongs to the run, such as `EarlyStopping` or `ReduceLROnPlateau`: their
            attributes that are numbers, text, None, NumPy arrays, or lists, tuples and dicts of these. The
            constructor's arguments of Keras's own callbacks are settings, not state, and stay as given.
        keep: Positive integer, files kept. With 2 or more a damaged file costs only the steps since the one before.
        identity: Dict that JSON can hold, of what makes this run this run: flags, the teacher's SHA-256. A backup
            with another identity is refused.
        defaults: Dict: the value of an entry of `identity` in backups that were written before there was such an entry.
        conditions: Dict that JSON can hold, of what may change the last bits of the result, such as the number of
            threads. Other conditions than the backup's are warned about.
        termination: A `PreemptionHandler`, or `None`: whether to save and raise `PreemptedError` before the next step.

    Attributes:
        position: List `[epoch, step]`, both counted from 0: where training goes on. Every save moves it.
        history: List of dicts, one for each finished epoch: `"epoch"` (from 0) and its logs as floats. CSV files and
            plots are made from it, anew each time, so that no row comes twice.
        finished: Whether a callback asked to stop (`model.stop_training`) at an epoch's end. `fit` then restores the
            last state and trains no more.

    Raises:
        ValueError: In the constructor, before anything is written: arguments out of range, or the directory holds a
            backup of another run. In `fit`: the model, `initial_epoch` or `steps_per_epoch` is not the backup's, the
            directory cannot be written to, or the data end.
        NonFiniteLossError: In `fit`: a trainable weight is NaN or infinite. Such a state is not saved.
        PreemptedError: In `fit`, if `termination` says so.
    """

    # Keras may then call on_train_batch_end from its own threads and need not wait for each step's logs.
    async_safe = True

    def __init__(
        self,
        directory,
        steps_per_epoch,
        *,
        every=None,
        watch=(),
        keep=2,
        identity=None,
        defaults=None,
        conditions=None,
        termination=None,
    ):
        super().__init__()
        for name, value in {"steps_per_epoch": steps_per_epoch, "every": every, "keep": keep}.items():
            if not (name == "every" and value is None) and (not isinstance(value, int) or value < 1):
                raise ValueError(f"Backup: {name}={value!r} came, a positive integer was expected. Give at least 1.")
        try:
            identity, defaults, conditions = json.loads(json.dumps([identity or {}, defaults or {}, conditions or {}]))
        except TypeError as error:
            raise ValueError(
                f"Backup: identity={identity!r} is not JSON ({error}). Pass text, numbers and lists."
            ) from error
        self.directory = pathlib.Path(directory)
        self.steps_per_epoch, self.every, self.watch, self.keep = steps_per_epoch, every, tuple(watch), keep
        self.identity, self.termination = identity, termination
        self.defaults, self.conditions = defaults, conditions
        self._used = False
        self._begin()

    def _begin(self):
        """Reads what there is; writes nothing."""
        self._damaged = set()
        self._found = self._newest()
        run = self._found or {"position": [0, 0], "history": [], "finished": False}
        self.position, self.history, self.finished = run["position"], run["history"], run["finished"]
        self._logs, self._epoch, self._first_step, self._ended = None, None, 0, []
        different = differences(run.get("conditions", self.conditions), self.conditions)
        if different and self.position != [0, 0] and not self.finished:
            warnings.warn(
                f"Backup: {'; '.join(different)}. The run may not end in the same bits as without an interruption.",
                stacklevel=3,
            )

    def on_train_begin(self, logs=None):
        """Refuses, before the first step, what could not be resumed."""
        if self._used:  # A second fit goes on from the files, as a new process would.
            self._begin()
        self._used = True
        if self.params.get("steps") != self.steps_per_epoch:
            raise ValueError(
                f"Backup: fit takes steps_per_epoch={self.params.get('steps')}, Backup has {self.steps_per_epoch}. "
                "Pass the same number to both."
            )
        files.remove_orphans(self.directory)
        together = self._together = self.model.steps_per_execution
        for name, value in {"steps_per_epoch": self.steps_per_epoch, "every": self.every}.items():
            if value is not None and value % together:
                raise ValueError(
                    f"Backup: {name}={value} came, a multiple of the model's steps_per_execution={together} was "
                    "expected. Change one of them."
                )
        if self.finished:
            # As keras.callbacks.BackupAndRestore does: fit reads it after this hook, and finds no epoch to train.
            self.model._initial_epoch = self.params["epochs"]
        else:
            self._check_writable()

    def on_epoch_begin(self, epoch, logs=None):
        """Restores or saves: every callback is done with the epoch before, and fit has reset the metrics."""
        self._epoch, self._first_step, self._ended = epoch, 0, []
        if not self._found:
            self._save(epoch, 0)
            return
        if self.finished or epoch != self.position[0]:
            raise ValueError(
                f"Backup: fit begins with epoch {epoch}, {self.directory} is at {self.position}"
                f"{' of a run that a callback stopped' if self.finished else ''}. "
                "Call fit(batches(start=backup.position), initial_epoch=backup.position[0], ...)."
            )
        self._first_step = self.position[1]
        self._restore(metrics=False)
        if not self._first_step:
            self._found = None

    def on_train_batch_begin(self, batch, logs=None):
        """Saves before every `every`-th step, and before the run ends because it was asked to."""
        step, ending = self._first_step + batch, self.termination is not None and self.termination.asked
        if self._found:
            # Again, where this state was saved: a schedule may have moved the learning rate as the epoch began.
            self._restore_inside_epoch()
        elif (self.every and batch and step % self.every == 0) or (batch and ending):
            self._save(self._epoch, step)
        if ending:
            epoch, done = self.position
            raise PreemptedError(
                f"Backup: {self.termination.name} was received in epoch {epoch + 1}. The state after step {done} of "
                f"{self.steps_per_epoch} of the epoch is saved in {self.directory}.",
                self.termination.number,
            )
        # Reading self.model brings a JAX model up to date, which costs time: only in the last step.
        if self._first_step and step + self._together >= self.steps_per_epoch:
            # fit would take steps_per_epoch steps here too. This ends its loop over them; on_epoch_end lets it go on.
            self.model.stop_training = _CutShort

    def on_train_batch_end(self, batch, logs=None):
        """Counts the steps that were really taken."""
        # Keras's threads call this out of order, and two at a time; an append is atomic.
        self._ended.append(batch)

    def on_epoch_end(self, epoch, logs=None):
        """Keeps the logs, which the other callbacks still add to; they are read when all are done."""
        if self.model.stop_training is _CutShort:
            self.model.stop_training = False
        if self._done() >= self.steps_per_epoch:
            self._logs = logs
        elif not self.model.stop_training:
            raise ValueError(
                f"Backup: epoch {epoch} ended after step {self._done()} of {self.steps_per_epoch}: the data ended. "
                "Endless data were expected, such as dataset.repeat()."
            )

    def on_train_end(self, logs=None):
        """Saves the last epoch, or restores where none was left to train."""
        self.model._initial_epoch = None
        if self._found:
            self._restore(metrics=False)
            self._found = None
        elif self._done() >= self.steps_per_epoch:  # A stop inside an epoch is an interruption: the last backup stays.
            self._save(self._epoch + 1, 0, finished=bool(self.model.stop_training))

    def _save(self, epoch, step, *, finished=False):
        history = list(self.history)
        if self._logs is not None:
            history.append({"epoch": epoch - 1, **_floats(self._logs)})
        variables, metrics = self._variables(), self.model.metrics_variables if step else []
        arrays = [_array(variable) for variable in variables + metrics]
        self._check_finite(variables, arrays, epoch, step)
        run = {
            "position": [epoch, step],
            "finished": finished,
            "history": history,
            "identity": self.identity,
            "conditions": self.conditions,
            "setting": self._setting(),
            "variables": _describe(variables),
            "metrics": _describe(metrics),
            "watched": [[type(callback).__name__, _state(callback, arrays)] for callback in self.watch],
        }
        path = self.directory / f"{epoch:06d}-{step:08d}.backup"
        content = pack(run, arrays)
        files.atomic_write(path, lambda file: file.writelines(content), size=sum(len(part) for part in content))
        self._damaged.discard(path)
        whole = sorted(set(self._files()) - self._damaged)
        for old in [*whole[: -self.keep], *self._damaged]:
            old.unlink(missing_ok=True)
        self._damaged.clear()
        self._logs = None
        self.position, self.history, self.finished = [epoch, step], history, finished

    def _files(self):
        return [path for path in self.directory.glob("*.backup") if path.is_file()]

    def _newest(self):
        """The newest whole backup, or None; refuses one of another run."""
        for path in sorted(self._files(), reverse=True):
            try:
                run = unpack(path.read_bytes())
            except Damaged as damage:
                self._damaged.add(path)
                warnings.warn(
                    f"Backup: {path} is damaged ({damage}). The one before it is used, where there is one; the file "
                    "will be removed with the next backup.",
                    stacklevel=4,
                )
                continue
            known = {name: value for name, value in self.defaults.items() if name in self.identity}
            different = differences(run["setting"], self._setting())
            different += differences({**known, **run["identity"]}, self.identity)
            if different:
                raise ValueError(
                    f"Backup: {path} is of another run. {'; '.join(different)}. Use the settings of the backup to "
                    "go on with it, or another directory for a new run."
                )
            return run
        return None

    def _setting(self):
        # A position means nothing in epochs of another length, and backends draw different random numbers.
        return {"backend": keras.backend.backend(), "steps_per_epoch": self.steps_per_epoch}

    def _variables(self):
        """Weights, BatchNorm statistics, dropout's generators, optimizer; not a Distiller's teacher."""
        model = self.model  # On JAX this getter also brings the model up to date with the step.
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        # Not non_trainable_variables: there a Distiller has its teacher, so that JAX does not compile it in.
        return [*model.variables, *model.optimizer.variables]

    def _restore(self, *, metrics):
        variables, found = self._variables(), self._found
        expected = found["variables"] + (found["metrics"] if metrics else [])
        variables += self.model.metrics_variables if metrics else []
        self._check_same(_describe(variables), expected)
        names = [type(callback).__name__ for callback in self.watch]
        if names != [name for name, _ in found["watched"]]:
            raise ValueError(
                f"Backup: watch={names} came, the backup in {self.directory} has "
                f"{[name for name, _ in found['watched']]}. Watch the same callbacks in the same order."
            )
        for variable, array in zip(variables, found["arrays"]):
            variable.assign(array)
        for callback, (_, state) in zip(self.watch, found["watched"]):
            vars(callback).update({name: decode(value, found["arrays"]) for name, value in state.items()})

    def _restore_inside_epoch(self):
        model = self.model
        if len(model.metrics_variables) == len(self._found["metrics"]):
            self._restore(metrics=True)
            self._found = None
            return
        # TensorFlow makes the variables of compiled metrics as it traces the first step, from a batch's shapes.
        # fit reads train_function at every step, so this one replaces it once, and sees where the batches come from.
        step = model.train_function

        def build_then_step(iterator):
            model.train_function = step
            if hasattr(iterator, "element_spec"):
                model._symbolic_build(data_batch=iterator.element_spec)
            self._restore(metrics=True)
            self._found = None
            return step(iterator)

        model.train_function = build_then_step

    def _done(self):
        """Steps of this epoch that are done, those before a resume too."""
        return self._first_step + max(self._ended, default=-1) + 1

    def _check_same(self, ours, theirs):
        pairs = [(a, b) for a, b in zip(theirs, ours) if not _same(a, b)]
        if not pairs and len(ours) == len(theirs):
            return
        shown = "; ".join(f"{_show(a)} in the backup, {_show(b)} now" for a, b in pairs[:3])
        raise ValueError(
            f"Backup: {self.directory} is of a model with other variables: {len(theirs)} in the backup, {len(ours)} now"
            f"{'; ' if shown else ''}{shown}{', ...' if len(pairs) > 3 else ''}. Build the same model with the same "
            "optimizer and metrics, or use another directory. If only metrics are missing, which TensorFlow makes in "
            "the first step, call model.test_on_batch(x, y) on two rows before fit."
        )

    def _check_finite(self, variables, arrays, epoch, step):
        broken = [v.path for v, array in zip(variables, arrays) if v.trainable and not np.isfinite(array).all()]
        if broken:
            raise NonFiniteLossError(
                f"Backup: NaN or infinite values in {len(broken)} trainable variables, first {broken[0]}, in epoch "
                f"{epoch + 1}, after step {step}. Finite weights were expected; this state was not saved. Lower the "
                f"learning rate or clip gradients, and go on from {self.position} in {self.directory}; FiniteLoss "
                "names the term that caused it.",
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
                f"Backup: {self.directory} cannot be written to ({error}). Pass a directory that can."
            ) from error


def _array(variable):
    array = keras.ops.convert_to_numpy(variable)
    # NumPy's files know no bfloat16; float32 holds all its values, and assign turns them back.
    return array.astype("float32") if array.dtype.kind == "V" else array


def _describe(variables):
    return [[variable.path, list(variable.shape), variable.dtype] for variable in variables]


def _same(theirs, ours):
    # Keras counts names up within a process (dense, dense_1), and those of dropout's generators nobody can choose.
    paths = [re.sub(r"_\d+(?=/|$)", "", described[0]) for described in (theirs, ours)]
    return paths[0] == paths[1] and theirs[1:] == ours[1:]


def _show(described):
    path, shape, dtype = described
    return f"{path} {tuple(shape)} {dtype}"


def differences(theirs, ours, where="the backup"):
    """List the entries in which two dicts differ, as text with both values.

    Args:
        theirs: Dict of what was saved.
        ours: Dict of what is asked for now.
        where: What `theirs` is from.

    Returns:
        List of strings, sorted by the entries' names.
    """
    return [
        f"{name if name.isprintable() else repr(name)}: {_value(theirs, name)} in {where}, {_value(ours, name)} now"
        for name in sorted(theirs.keys() | ours.keys())
        if _value(theirs, name) != _value(ours, name)
    ]


def _value(values, name):
    return repr(values[name]) if name in values else "absent"


def _floats(logs):
    return {name: np.asarray(value, dtype=float).tolist() for name, value in logs.items()}


def _state(callback, arrays):
    """What JSON can hold of a callback's attributes; their arrays are appended to `arrays`."""
    # EarlyStopping turns its min_delta round in its first epoch: given back as state, it would be turned twice.
    settings = {"params"}
    for kind in type(callback).__mro__:
        if kind.__module__.split(".")[0] == "keras" and "__init__" in vars(kind):
            settings.update(inspect.signature(kind.__init__).parameters)
    state = {}
    for name, value in vars(callback).items():
        if name not in settings and _is_plain(value):
            state[name] = encode(value, arrays)
    return state


def _is_plain(value):
    """Whether a value consists of what a backup can hold: no functions, models or open files."""
    if isinstance(value, (np.ndarray, np.generic)):
        return value.dtype.kind in "biufcSU"
    if type(value) in (list, tuple):
        return all(_is_plain(item) for item in value)
    if type(value) is dict:
        return all(type(name) is str and _is_plain(item) for name, item in value.items())
    return value is None or type(value) in (bool, int, float, str)
