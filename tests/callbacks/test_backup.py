"""ExactBackupAndRestore: a run that is killed and resumed ends in the same bits as an uninterrupted run."""

import contextlib
import errno
import hashlib
import inspect
import io
import json
import os
import pathlib
import pty
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
import warnings

import keras
import numpy as np
import pytest

from keras_wsl.callbacks import (
    ExactBackupAndRestore,
    NonFiniteLossError,
    PreemptedError,
    PreemptionHandler,
    backup_file,
)
from keras_wsl.callbacks.backup_state import list_differences
from tests.callbacks import backup_child
from tests.callbacks.backup_child import EPOCHS, EVERY, STEPS, batch, batches, build_model, generate, train
from tests.common import CHILD_SECONDS, largest_file

pytestmark = pytest.mark.usefixtures("default_signals")


ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(autouse=True, scope="module")
def _deterministic():
    backup_child.make_deterministic()


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch):
    """Disable fsync, which matters only for a power failure and can take seconds. The child processes call it."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return train(tmp_path_factory.mktemp("uninterrupted"))


class InterruptedRunError(Exception):
    pass


class InterruptAfter(keras.callbacks.Callback):
    """Raise after this process has trained `steps` steps."""

    def __init__(self, steps):
        super().__init__()
        self.left = steps

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if not self.left:
            raise InterruptedRunError


class Count(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.epochs, self.steps = [], 0

    def on_epoch_end(self, epoch, logs=None):
        self.epochs.append(epoch)

    def on_train_batch_begin(self, batch, logs=None):
        self.steps += 1


def interrupt(directory, steps, **settings):
    with pytest.raises(InterruptedRunError):
        train(directory, callbacks=[InterruptAfter(steps)], **settings)


def backups(directory):
    return sorted(directory.glob("*.backup"))


# In the first epoch before and after a backup, at and near the ends of epochs, and late.
@pytest.mark.parametrize("steps", [1, EVERY + 1, STEPS, 3 * STEPS + 4, EPOCHS * STEPS])
def test_backup_resume_is_bitwise_equal(tmp_path, uninterrupted, steps):
    interrupt(tmp_path, steps)
    assert train(tmp_path) == uninterrupted


def test_backup_repeated_resume_is_bitwise_equal(tmp_path, uninterrupted):
    interrupt(tmp_path, 11)
    assert ExactBackupAndRestore(tmp_path, STEPS).initial_position == [1, 2]
    interrupt(tmp_path, 3)
    assert ExactBackupAndRestore(tmp_path, STEPS).initial_position == [1, 4]
    interrupt(tmp_path, 10)  # Through the end of a resumed epoch.
    assert ExactBackupAndRestore(tmp_path, STEPS).initial_position == [1 + 1, 6]
    assert train(tmp_path) == uninterrupted


def test_backup_without_save_freq_restarts_epoch(tmp_path, uninterrupted):
    interrupt(tmp_path, 2 * STEPS + 5, save_freq=None)
    assert ExactBackupAndRestore(tmp_path, STEPS).initial_position == [2, 0]
    assert train(tmp_path, save_freq=None) == uninterrupted


def test_backup_object_works_for_several_fits(tmp_path, uninterrupted):
    stopping, plateau = keras.callbacks.EarlyStopping("loss"), keras.callbacks.ReduceLROnPlateau("loss")
    backup = ExactBackupAndRestore(tmp_path, STEPS, save_freq=EVERY, stateful_callbacks=[stopping, plateau])
    model = build_model()
    for steps in (4, 12):
        with pytest.raises(InterruptedRunError):
            model.fit(
                batches(backup.initial_position),
                initial_epoch=backup.initial_position[0],
                steps_per_epoch=STEPS,
                epochs=EPOCHS,
                verbose=0,
                shuffle=False,
                callbacks=[backup, InterruptAfter(steps)],
            )
    assert backup.initial_position == [1, 6] and len(backup.history) == 1


def test_backup_applies_learning_rate_schedule_once(tmp_path):
    def decayed():
        return keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.5)

    expected = train(tmp_path / "whole", callbacks=[decayed()], epochs=3)
    with pytest.raises(InterruptedRunError):
        train(tmp_path / "cut", callbacks=[decayed(), InterruptAfter(STEPS + 5)], epochs=3)
    assert train(tmp_path / "cut", callbacks=[decayed()], epochs=3) == expected


def test_backup_history_has_all_logs_once_per_epoch(tmp_path, uninterrupted):
    interrupt(tmp_path, 2 * STEPS + 3)
    backup = ExactBackupAndRestore(tmp_path, STEPS)
    assert [row["epoch"] for row in backup.history] == [0, 1]
    assert backup.history == uninterrupted["history"][:2]
    names = {"epoch", "loss", "accuracy", "val_loss", "val_accuracy", "learning_rate"}
    assert all(set(row) == names for row in uninterrupted["history"])
    assert all(type(value) is float for row in backup.history for name, value in row.items() if name != "epoch")
    assert [row["epoch"] for row in uninterrupted["history"]] == list(range(EPOCHS))


def test_backup_of_complete_run_can_be_extended(tmp_path):
    whole = train(tmp_path / "whole", epochs=4)
    part = train(tmp_path / "part", epochs=2)
    assert part["position"] == [2, 0] and not part["finished"]
    count = Count()
    assert train(tmp_path / "part", epochs=2, callbacks=[count]) == part
    assert (count.epochs, count.steps) == ([], 0)
    assert train(tmp_path / "part", epochs=4, callbacks=[count]) == whole
    assert count.epochs == [2, 3]


def test_backup_does_not_resume_a_stopped_run(tmp_path):
    stopped = train(tmp_path, epochs=50, patience=1)
    assert stopped["finished"] and len(stopped["history"]) < 50
    assert ExactBackupAndRestore(tmp_path, STEPS).finished
    count = Count()
    assert train(tmp_path, epochs=50, patience=1, callbacks=[count]) == stopped
    assert (count.epochs, count.steps) == ([], 0)


def test_backup_keeps_stop_in_last_step_of_resumed_epoch(tmp_path):
    class StopAtEpochEnd(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if int(keras.ops.convert_to_numpy(self.model.optimizer.iterations)) == 2 * STEPS:
                self.model.stop_training = True

    expected = train(tmp_path / "whole", callbacks=[StopAtEpochEnd()])
    assert expected["position"] == [2, 0] and expected["finished"]
    interrupt(tmp_path / "cut", STEPS + 4)
    assert train(tmp_path / "cut", callbacks=[StopAtEpochEnd()]) == expected


def test_backup_treats_stop_inside_epoch_as_interruption(tmp_path, uninterrupted):
    class StopInside(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.stop_training = batch == 4

    backup = ExactBackupAndRestore(tmp_path, STEPS, save_freq=EVERY)
    build_model().fit(
        batches((0, 0)), steps_per_epoch=STEPS, verbose=0, shuffle=False, callbacks=[backup, StopInside()]
    )
    assert backup.initial_position == [0, 4] and not backup.finished


class SignalAfter(InterruptAfter):
    """Send a signal after this process has trained `steps` steps."""

    def __init__(self, steps, number=signal.SIGTERM):
        super().__init__(steps)
        self.number = number

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("steps", [1, STEPS + 3, 2 * STEPS])
def test_backup_saves_before_next_step_after_sigterm(tmp_path, uninterrupted, steps):
    before = signal.getsignal(signal.SIGTERM)
    with PreemptionHandler() as handler:
        with pytest.raises(
            PreemptedError, match=f"SIGTERM was received in epoch {1 + steps // STEPS}. The state after"
        ):
            train(tmp_path, callbacks=[SignalAfter(steps)], save_freq=None, preemption_handler=handler)
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
    assert ExactBackupAndRestore(tmp_path, STEPS).initial_position == list(divmod(steps, STEPS))
    assert train(tmp_path, save_freq=None) == uninterrupted


@pytest.mark.parametrize("name, status", [("SIGINT", 130), ("SIGHUP", 129), ("SIGTERM", 143)])
def test_preemption_handler_saves_for_each_signal(tmp_path, name, status):
    with (
        PreemptionHandler() as handler,
        pytest.raises(PreemptedError, match=f"{name} was received in epoch 1") as ended,
    ):
        train(tmp_path, callbacks=[SignalAfter(3, signal.Signals[name])], save_freq=None, preemption_handler=handler)
    assert ended.value.status == status and ExactBackupAndRestore(tmp_path, STEPS).initial_position == [0, 3]


def test_preemption_handler_raises_at_second_sigint(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    with PreemptionHandler() as handler:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # As `jobs` sends it, until the process ends.
    assert not handler.repeated
    with PreemptionHandler() as handler, pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
        assert handler.requested and handler.name == "SIGINT"
        signal.raise_signal(signal.SIGINT)
    assert handler.repeated and signal.getsignal(signal.SIGINT) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_preemption_handler_keeps_ignored_signals_ignored(number):
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with PreemptionHandler() as handler:
            signal.raise_signal(number)
            assert not handler.requested
        assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, before)


IN_A_TERMINAL = """
import fcntl, os, runpy, signal, sys, termios, time
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # Under nohup it is ignored.
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
with runpy.run_path(sys.argv[1])["PreemptionHandler"]() as handler:
    os.write(1, b"ready")
    while not handler.requested:
        time.sleep(0.01)
    os.write(1, b"progress")
sys.exit(0 if handler.name == "SIGHUP" else 2)
"""


def test_preemption_handler_survives_closed_terminal():
    """If the terminal is closed, all writes fail, such as that of a progress bar before the next backup."""
    terminal, end = pty.openpty()
    command = [sys.executable, "-c", IN_A_TERMINAL, inspect.getfile(PreemptionHandler)]
    child = subprocess.Popen(command, stdin=end, stdout=end, stderr=end, start_new_session=True)
    os.close(end)
    assert os.read(terminal, 100) == b"ready"
    os.close(terminal)
    assert child.wait(CHILD_SECONDS) == 0


def test_backup_finishes_run_if_sigterm_follows_last_step(tmp_path, uninterrupted):
    with PreemptionHandler() as handler:
        ended = train(tmp_path, callbacks=[SignalAfter(EPOCHS * STEPS)], preemption_handler=handler)
    assert handler.requested and ended == uninterrupted


def test_preemption_handler_does_nothing_in_other_threads(tmp_path):
    before, errors = signal.getsignal(signal.SIGTERM), []

    def enter():
        try:
            with PreemptionHandler() as handler:
                assert signal.getsignal(signal.SIGTERM) == before and not handler.requested
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert not errors


@pytest.mark.filterwarnings("ignore:.*is damaged")
def test_backup_detects_flipped_bits_and_truncation(tmp_path):
    backup = ExactBackupAndRestore(tmp_path, STEPS)
    build_model().fit(batches((0, 0)), steps_per_epoch=STEPS, verbose=0, shuffle=False, callbacks=[backup])
    _, newer = backups(tmp_path)
    content = newer.read_bytes()
    generator = random.Random(0)
    ends = [*range(90), *range(len(content) - 30, len(content))]
    for place in ends + generator.sample(range(len(content)), 80):
        flipped = bytearray(content)
        flipped[place] ^= 1 << generator.randrange(8)
        newer.write_bytes(flipped)
        assert ExactBackupAndRestore(tmp_path, STEPS).initial_position == [0, 0], place
    for size in [0, 1, 80, 84, 85, 86, *generator.sample(range(len(content)), 10), len(content) - 1]:
        newer.write_bytes(content[:size])
        assert ExactBackupAndRestore(tmp_path, STEPS).initial_position == [0, 0], size
    newer.write_bytes(content + b"\0")
    assert ExactBackupAndRestore(tmp_path, STEPS).initial_position == [0, 0]
    newer.write_bytes(content)
    assert ExactBackupAndRestore(tmp_path, STEPS).initial_position == [1, 0]


def test_backup_does_not_count_damaged_files_as_kept(tmp_path, uninterrupted):
    interrupt(tmp_path, STEPS + 5)
    older, newer = backups(tmp_path)
    assert [older.stem, newer.stem] == ["000001-00000002", "000001-00000004"]
    newer.write_bytes(newer.read_bytes()[:-1])
    with pytest.warns(UserWarning, match=rf"{newer.stem}.backup is damaged .*SHA-256"):
        backup = ExactBackupAndRestore(tmp_path, STEPS)
    assert backup.initial_position == [1, 2]
    assert backups(tmp_path) == [older, newer]  # The constructor only reads.
    # A stop before the damaged file is overwritten: `older` is the only intact one and must be kept.
    with pytest.warns(UserWarning, match="is damaged"):
        interrupt(tmp_path, 1)
    assert backups(tmp_path) == [older, newer]
    with pytest.warns(UserWarning, match="is damaged"):
        interrupt(tmp_path, 3)
    assert backups(tmp_path) == [older, newer]
    assert ExactBackupAndRestore(tmp_path, STEPS).initial_position == [1, 4]
    assert train(tmp_path) == uninterrupted


def test_backup_restarts_run_if_all_files_are_damaged(tmp_path, uninterrupted):
    interrupt(tmp_path, STEPS + 5)
    damaged = backups(tmp_path)
    for path in damaged:
        path.write_bytes(b"")
    with pytest.warns(UserWarning, match="is damaged") as warned:
        end = train(tmp_path)
    assert sum("is damaged" in str(warning.message) for warning in warned) == 2
    assert end == uninterrupted
    assert not set(damaged) & set(backups(tmp_path))


@pytest.mark.parametrize("keep", [1, 3])
def test_backup_keeps_max_to_keep_files(tmp_path, keep):
    interrupt(tmp_path, 2 * STEPS, max_to_keep=keep)
    assert [path.stem for path in backups(tmp_path)] == ["000001-00000002", "000001-00000004", "000001-00000006"][
        -keep:
    ]


def test_backup_removes_unfinished_writes(tmp_path):
    left = tmp_path / "000000-00000002.backup.0123456789abcdef.writing"
    left.write_bytes(b"half")
    (tmp_path / "writable").write_text("not ours")
    interrupt(tmp_path, 1)
    assert not left.exists() and (tmp_path / "writable").read_text() == "not ours"


def test_backup_refuses_another_fingerprint_in_constructor(tmp_path):
    identity = {"teacher": "abc", "flags": {"seed": 1, "num_views": (1, 2)}}
    interrupt(tmp_path, 3, run_fingerprint=identity)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    ExactBackupAndRestore(tmp_path, STEPS, run_fingerprint=identity)
    with pytest.raises(
        ValueError, match=r"backup of another run. teacher: 'abc' in the backup, 'abd' now\. Use"
    ) as error:
        ExactBackupAndRestore(tmp_path, STEPS, run_fingerprint={**identity, "teacher": "abd"})
    assert "flags" not in str(error.value)
    with pytest.raises(ValueError, match=r"flags: \{'seed': 1.* now; teacher: 'abc' in the backup, absent now"):
        ExactBackupAndRestore(tmp_path, STEPS)
    with pytest.raises(ValueError, match=r"new: absent in the backup, 1 now"):
        ExactBackupAndRestore(tmp_path, STEPS, run_fingerprint={**identity, "new": 1})
    with pytest.raises(ValueError, match=rf"steps_per_epoch: {STEPS} in the backup, 8 now"):
        ExactBackupAndRestore(tmp_path, 8, run_fingerprint=identity)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_backup_uses_defaults_for_missing_fingerprint_entries(tmp_path):
    interrupt(tmp_path, 3, run_fingerprint={"seed": 1})
    ExactBackupAndRestore(tmp_path, STEPS, run_fingerprint={"seed": 1, "new": 0}, defaults={"new": 0, "unused": 2})
    with pytest.raises(ValueError, match="another run. new: 0 in the backup, 1 now"):
        ExactBackupAndRestore(tmp_path, STEPS, run_fingerprint={"seed": 1, "new": 1}, defaults={"new": 0})


def test_backup_warns_about_other_conditions(tmp_path):
    interrupt(tmp_path, 3, conditions={"threads": 2})
    with warnings.catch_warnings(action="error"):
        ExactBackupAndRestore(tmp_path, STEPS, conditions={"threads": 2})
    with pytest.warns(UserWarning, match="threads: 2 in the backup, 1 now. The run may not end in the same bits"):
        assert ExactBackupAndRestore(tmp_path, STEPS, conditions={"threads": 1}).initial_position == [0, 2]


def test_backup_reads_only_regular_files(tmp_path):
    interrupt(tmp_path, 3)
    os.mkfifo(tmp_path / "000009-00000000.backup")
    (tmp_path / "000008-00000000.backup").mkdir()
    assert ExactBackupAndRestore(tmp_path, STEPS).initial_position == [0, 2]


def test_backup_constructor_creates_nothing(tmp_path):
    ExactBackupAndRestore(tmp_path / "new" / "folder", STEPS)
    assert not list(tmp_path.iterdir())


def build_linear():
    model = keras.Sequential([keras.Input((6, 6, 1)), keras.layers.Flatten(), keras.layers.Dense(3)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


@pytest.mark.parametrize(
    "model, message",
    [
        (
            lambda: build_model(width=5),
            r"variables: .*convolution/kernel \(3, 3, 1, 4\) float32 in the backup, .*\(3, 3, 1, 5\)",
        ),
        (build_linear, r"variables: 17 in the backup, \d now; student/conv.* in the backup, .*dense/kernel"),
    ],
)
def test_backup_refuses_another_architecture(tmp_path, model, message):
    interrupt(tmp_path, STEPS + 3)
    before = {path: path.read_bytes() for path in backups(tmp_path)}
    with pytest.raises(ValueError, match=rf"model with other {message}"):
        train(tmp_path, model=model())
    assert {path: path.read_bytes() for path in backups(tmp_path)} == before


def test_backup_refuses_other_metrics(tmp_path):
    interrupt(tmp_path, STEPS + 3)
    model = build_model()
    model.compile(model.optimizer, model.loss, metrics=[keras.metrics.SparseTopKCategoricalAccuracy(k=2, name="top")])
    with pytest.raises(ValueError, match=r"other variables: .*call model.test_on_batch"):
        train(tmp_path, model=model)


def test_backup_refuses_other_stateful_callbacks(tmp_path):
    interrupt(tmp_path, 3)
    with pytest.raises(ValueError, match=r"\['EarlyStopping', 'ReduceLROnPlateau'\].*stateful_callbacks=\[\]"):
        train(tmp_path, stateful_callbacks=[])


def test_backup_restores_state_of_callbacks(tmp_path):
    class Holder(keras.callbacks.Callback):
        def __init__(self, **values):
            super().__init__()
            vars(self).update(values, function=len)

    values = {
        "number": 0.1,
        "infinite": -np.inf,
        "single": np.float32(0.1),
        "none": None,
        "text": "text",
        "flag": True,
        "arrays": [np.arange(3), {"a": (1, None)}],
    }
    interrupt(tmp_path, 1, stateful_callbacks=[Holder(**values)])
    holder = Holder(none=1)
    interrupt(tmp_path, 1, stateful_callbacks=[holder])
    assert holder.function is len
    for name, value in values.items():
        assert type(getattr(holder, name)) is type(value)
        np.testing.assert_equal(getattr(holder, name), value)


def test_backup_does_not_restore_arguments_of_keras_callbacks(tmp_path):
    interrupt(tmp_path, STEPS + 1)
    stopping = keras.callbacks.EarlyStopping("val_loss", patience=9, min_delta=0.001)
    plateau = keras.callbacks.ReduceLROnPlateau("loss")
    backup = ExactBackupAndRestore(tmp_path, STEPS, save_freq=EVERY, stateful_callbacks=[stopping, plateau])
    with pytest.raises(InterruptedRunError):
        train(tmp_path, backup=backup, callbacks=[InterruptAfter(1)])
    assert stopping.patience == 9 and stopping.min_delta == 0.001 and stopping.best is not None


def test_backup_refuses_invalid_directory_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    count = Count()
    with pytest.raises(ValueError, match=r"must be writable.*file.folder \(.*\)\. Pass another"):
        train(tmp_path / "file" / "folder", callbacks=[count])
    assert not count.steps


def test_backup_reads_but_refuses_read_only_directory(tmp_path, monkeypatch):
    interrupt(tmp_path, STEPS + 1)
    if os.getuid():
        tmp_path.chmod(0o555)
    else:  # Permissions do not bind root.

        def refuse(source, target):
            raise PermissionError(13, "Permission denied", str(target))

        monkeypatch.setattr(os, "replace", refuse)
    count = Count()
    with pytest.raises(ValueError, match=r"must be writable.*Permission denied"):
        train(tmp_path, callbacks=[count])
    tmp_path.chmod(0o755)
    assert not count.steps and not list(tmp_path.glob("*.writing"))
    assert len(ExactBackupAndRestore(tmp_path, STEPS).history) == 1


def test_backup_keeps_previous_files_after_failed_write(tmp_path, monkeypatch):
    interrupt(tmp_path, 3)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    calls = []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) > 2:  # The first two are of the check that the directory is writable.
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        train(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_backup_reports_full_disk_and_keeps_previous_file(tmp_path, uninterrupted):
    class Fills(InterruptAfter):
        """Limit the file size to half of a backup after this process has trained some steps."""

        def on_train_batch_end(self, batch, logs=None):
            self.left -= 1
            if not self.left:
                room.enter_context(largest_file(backups(tmp_path)[0].stat().st_size // 2))

    with contextlib.ExitStack() as room, pytest.raises(OSError) as error:
        train(tmp_path, callbacks=[Fills(STEPS + 3)])
    assert error.value.errno == errno.EFBIG
    said = r"File too large: .*000001-00000004.backup does not fit. It has [\d,]{6,} bytes. [\d,]+ bytes are free"
    assert re.search(said, str(error.value))
    assert ExactBackupAndRestore(tmp_path, STEPS).initial_position == [1, 2] and not list(tmp_path.glob("*.writing"))
    assert train(tmp_path) == uninterrupted


def test_backup_does_not_save_non_finite_weights(tmp_path):
    class Spoil(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            bias = self.model.trainable_variables[-1]
            bias.assign(np.array([0, np.nan, 0], "float32"))

    with pytest.raises(
        NonFiniteLossError, match=r"1 trainable variables, first student/logits/bias, .*resume from \[0, 6\]"
    ) as error:
        train(tmp_path, callbacks=[Spoil()])
    assert error.value.terms == ["student/logits/bias"]
    assert ExactBackupAndRestore(tmp_path, STEPS).initial_position == [0, 6]


def fit(directory, *, start=(0, 0), initial_epoch=0, steps=STEPS, data=None, model=None, **settings):
    backup = ExactBackupAndRestore(directory, STEPS, **settings)
    (model or build_model()).fit(
        batches(start) if data is None else data,
        initial_epoch=initial_epoch,
        steps_per_epoch=steps,
        epochs=3,
        verbose=0,
        shuffle=False,
        callbacks=[backup],
    )


def test_backup_refuses_fit_with_other_start_or_length(tmp_path):
    interrupt(tmp_path, STEPS + 1, stateful_callbacks=[])
    with pytest.raises(ValueError, match=r"initial_epoch=0, .* is at \[1, 0\].*initial_epoch=backup.initial_position"):
        fit(tmp_path)
    with pytest.raises(ValueError, match=rf"steps_per_epoch.*8 in `fit`, {STEPS} in the callback"):
        fit(tmp_path, start=(1, 0), initial_epoch=1, steps=8)


@pytest.mark.filterwarnings("ignore:.*ran out of data")
@pytest.mark.parametrize("length", [STEPS - 1, STEPS + 3])
def test_backup_refuses_finite_data(tmp_path, length):
    if length < STEPS and keras.backend.backend() == "torch":
        pytest.skip("On Torch, Keras's fit itself fails with UnboundLocalError where a generator ends early.")
    data = (batch(0, step) for step in range(length))
    with pytest.raises(ValueError, match=rf"must be endless.*ended after step {length % STEPS} of {STEPS}"):
        fit(tmp_path, data=data)


@pytest.mark.parametrize(
    "settings", [{"save_freq": 0}, {"max_to_keep": 0}, {"save_freq": 1.5}, {"run_fingerprint": {"a": object()}}]
)
def test_backup_refuses_invalid_arguments(tmp_path, settings):
    with pytest.raises(ValueError, match=f"Received: {next(iter(settings))}="):
        ExactBackupAndRestore(tmp_path, STEPS, **settings)
    with pytest.raises(ValueError, match="Received: steps_per_epoch=0"):
        ExactBackupAndRestore(tmp_path, 0)


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="Keras has no steps_per_execution on Torch.")
def test_backup_supports_steps_per_execution(tmp_path):
    def build(together):
        keras.utils.set_random_seed(0)
        model = build_model()
        model.compile(model.optimizer, model.loss, metrics=["accuracy"], steps_per_execution=together)
        return model

    def run(directory, *, save_freq=4, steps=8, cut=()):
        backup = ExactBackupAndRestore(directory, steps, save_freq=save_freq)
        model = build(2)
        model.fit(
            (batch(9, i) for i in range(backup.initial_position[0] * steps + backup.initial_position[1], 10**6)),
            initial_epoch=backup.initial_position[0],
            steps_per_epoch=steps,
            epochs=3,
            verbose=0,
            shuffle=False,
            callbacks=[backup, *cut],
        )
        return [keras.ops.convert_to_numpy(v) for v in model.variables], backup.history

    with pytest.raises(ValueError, match="steps_per_execution=2. Received: save_freq=3"):
        run(tmp_path / "a", save_freq=3)
    with pytest.raises(ValueError, match="steps_per_execution=2. Received: steps_per_epoch=7"):
        run(tmp_path / "a", steps=7)
    expected = run(tmp_path / "whole")
    with pytest.raises(InterruptedRunError):
        run(tmp_path / "cut", cut=[InterruptAfter(7)])
    assert ExactBackupAndRestore(tmp_path / "cut", 8).initial_position == [1, 4]
    np.testing.assert_equal(run(tmp_path / "cut"), expected)


@pytest.mark.tensorflow
def test_backup_supports_tf_dataset_and_unbuilt_metrics(tmp_path):
    """Compiled metrics have no variables when an epoch is resumed inside on TensorFlow."""
    import tensorflow as tf

    def data(start):
        signature = (tf.TensorSpec((None, 6, 6, 1), tf.float32), tf.TensorSpec((None,), tf.int32))
        return tf.data.Dataset.from_generator(lambda: generate(start), output_signature=signature)

    def run(directory, cut=()):
        backup = ExactBackupAndRestore(directory, STEPS, save_freq=EVERY)
        keras.utils.set_random_seed(0)
        model = build_model()
        made = len(model.metrics_variables)
        model.fit(
            data(tuple(backup.initial_position)),
            initial_epoch=backup.initial_position[0],
            steps_per_epoch=STEPS,
            epochs=3,
            verbose=0,
            callbacks=[backup, *cut],
        )
        assert len(model.metrics_variables) > made
        return [keras.ops.convert_to_numpy(v) for v in model.variables], backup.history

    expected = run(tmp_path / "whole")
    with pytest.raises(InterruptedRunError):
        run(tmp_path / "cut", [InterruptAfter(STEPS + 5)])
    np.testing.assert_equal(run(tmp_path / "cut"), expected)


def start_child(directory, result, epochs, kill=()):
    command = [sys.executable, "-m", backup_child.__name__, str(directory), str(result), str(epochs), *kill]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(child, expected):
    errors = child.communicate(timeout=CHILD_SECONDS)[1].decode()
    assert child.returncode == expected, errors[-3000:]


def kill_at(directory, random_generator, child, last):
    """Kill the child at a random time after its first backup. Return False if it had finished before."""
    begun = ExactBackupAndRestore(directory, STEPS).initial_position
    target = begun[0] * STEPS + begun[1] + random_generator.randrange(1, 2 * STEPS)
    while child.poll() is None:
        names = [path.stem.split("-") for path in backups(directory)]
        if names and int(names[-1][0]) * STEPS + int(names[-1][1]) >= min(target, last):
            time.sleep(random_generator.random() / 50)
            child.send_signal(signal.SIGKILL)
            child.communicate()
            return child.returncode == -signal.SIGKILL
        time.sleep(0.002)
    child.communicate()
    return False


def killed_run(tmp_path, epochs, in_write, at_random):
    """Return the final state of a run whose processes were killed, and the number of effective kills."""
    directory, generator, kills = tmp_path / "killed", random.Random(epochs), 0
    for kill in in_write:
        finish(start_child(directory, tmp_path / "killed.json", epochs, [kill]), -signal.SIGKILL)
        kills += 1
    for _ in range(at_random):
        child = start_child(directory, tmp_path / "killed.json", epochs)
        kills += kill_at(directory, generator, child, epochs * STEPS - 1)
    finish(start_child(directory, tmp_path / "killed.json", epochs), 0)
    return json.loads((tmp_path / "killed.json").read_text()), kills


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is damaged")
def test_backup_of_killed_process_is_bitwise_equal(tmp_path, uninterrupted):
    killed, kills = killed_run(tmp_path, EPOCHS, ["before:3", "torn:4"], at_random=1)
    assert kills == 3
    assert killed == uninterrupted


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is damaged")
def test_backup_survives_twenty_kills(tmp_path):
    in_write = ["before:3", "after:2", "torn:4", "after:5", "before:6", "torn:2"]
    killed, kills = killed_run(tmp_path, 40, in_write, at_random=14)
    assert kills == 20
    assert killed == train(tmp_path / "whole", epochs=40, patience=40)


def _unchanged(run, arrays):
    pass


def _forged(path, change=_unchanged, write=np.savez):
    """Return a backup's file with other content and a valid digest."""
    content = backup_file.unpack(path.read_bytes())
    arrays, run = content.pop("arrays"), content
    arrays = dict(enumerate(arrays))
    change(run, arrays)
    text = run if isinstance(run, bytes) else json.dumps(run).encode()
    buffer = io.BytesIO()
    write(buffer, run=np.frombuffer(text, "uint8"), **{str(i): array for i, array in arrays.items()})
    payload = buffer.getvalue()
    digest = hashlib.sha256(payload).hexdigest().encode()
    path.write_bytes(backup_file.MAGIC + b"\n" + digest + b"\n" + payload)


def _set(name, value):
    return lambda run, arrays: run.update({name: value})


def _nested(depth):
    value = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "change",
    [
        lambda run, arrays: run.pop("finished"),
        _set("more", 1),
        _set("position", 3),
        _set("position", [1]),
        _set("position", [1.0, 0]),
        _set("position", [-1, 0]),
        _set("finished", 0),
        _set("history", {}),
        _set("history", [{"loss": 1.0}]),
        _set("history", [{"epoch": 0, "loss": "low"}]),
        _set("identity", None),
        _set("setting", [_nested(200)]),
        _set("variables", [[1, 2, 3]]),
        _set("variables", 7),
        _set("metrics", [["a", [10**12], "float32"]]),
        _set("watched", [["Callback", {"best": {"array": 10**6}}]]),
        _set("watched", [["Callback", {"best": {"other": []}}]]),
        _set("watched", [["Callback", {"best": {"list": 3}}]]),
        _set("watched", [["Callback", {"best": {"array": 0, "dict": {}}}]]),
        lambda run, arrays: arrays.pop(1),
        lambda run, arrays: arrays.update({1: np.zeros(7)}),
        lambda run, arrays: arrays.update({1: arrays[1].astype(str)}),
        lambda run, arrays: arrays.clear(),
    ],
    ids=range(23),
)
def test_backup_file_refuses_other_content(one_backup, tmp_path, change):
    """A backup with a valid digest but other content is damaged."""
    (older, newer) = backups(shutil.copytree(one_backup, tmp_path / "copy"))
    _forged(newer)
    assert ExactBackupAndRestore(newer.parent, STEPS).initial_position == [1, 0]
    _forged(newer, change)
    with pytest.warns(UserWarning, match="is damaged .its content is not a backup: .*") as warned:
        assert ExactBackupAndRestore(newer.parent, STEPS).initial_position == [0, 0]
    assert "\n" not in str(warned[0].message)
    assert older.exists()


@pytest.fixture(scope="module")
def one_backup(tmp_path_factory):
    """Return the directory of a run of one epoch, with two backups."""
    folder = tmp_path_factory.mktemp("one")
    backup = ExactBackupAndRestore(folder, STEPS)
    build_model().fit(batches((0, 0)), steps_per_epoch=STEPS, verbose=0, shuffle=False, callbacks=[backup])
    return folder


def test_backup_file_takes_no_more_memory_than_its_size(one_backup, tmp_path):
    newer = backups(shutil.copytree(one_backup, tmp_path / "copy"))[-1]

    def bomb(run, arrays):
        arrays[len(arrays)] = np.zeros(2**27, "uint8")

    _forged(newer, bomb, write=np.savez_compressed)
    assert newer.stat().st_size < 2**20
    tracemalloc.start()
    try:
        with pytest.warns(UserWarning, match="its members are compressed"):
            assert ExactBackupAndRestore(newer.parent, STEPS).initial_position == [0, 0]
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def test_backup_file_refuses_arbitrary_bytes(one_backup, tmp_path):
    folder = shutil.copytree(one_backup, tmp_path / "copy")
    os.mkfifo(folder / "000009-00000000.backup")
    (folder / "000008-00000000.backup").mkdir()
    (folder / "000007-00000000.backup").symlink_to("missing")
    assert ExactBackupAndRestore(folder, STEPS).initial_position == [1, 0]


def test_list_differences_escapes_names():
    assert list_differences({"a\nb": 1}, {}) == ["'a\\nb': 1 in the backup, absent now"]
