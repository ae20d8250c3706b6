"""Backup: a run that is killed and resumed ends in the bits of one that was not."""

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

from keras_wsl.callbacks import Backup, NonFiniteLossError, PreemptedError, PreemptionHandler, backup_file
from keras_wsl.callbacks.backup import differences
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
    """Only a power cut needs fsync, which takes seconds where others write; the children call it."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return train(tmp_path_factory.mktemp("uninterrupted"))


class Interrupted(Exception):
    pass


class InterruptAfter(keras.callbacks.Callback):
    """Raises when this process has trained so many steps."""

    def __init__(self, steps):
        super().__init__()
        self.left = steps

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if not self.left:
            raise Interrupted


class Count(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.epochs, self.steps = [], 0

    def on_epoch_end(self, epoch, logs=None):
        self.epochs.append(epoch)

    def on_train_batch_begin(self, batch, logs=None):
        self.steps += 1


def interrupt(directory, steps, **settings):
    with pytest.raises(Interrupted):
        train(directory, callbacks=[InterruptAfter(steps)], **settings)


def backups(directory):
    return sorted(directory.glob("*.backup"))


# In the first epoch before and after a backup, at and around the ends of epochs, late.
@pytest.mark.parametrize("steps", [1, EVERY + 1, STEPS, 3 * STEPS + 4, EPOCHS * STEPS])
def test_a_run_resumed_by_fresh_objects_ends_in_the_same_bits(tmp_path, uninterrupted, steps):
    interrupt(tmp_path, steps)
    assert train(tmp_path) == uninterrupted


def test_a_run_interrupted_every_few_steps_ends_in_the_same_bits(tmp_path, uninterrupted):
    interrupt(tmp_path, 11)
    assert Backup(tmp_path, STEPS).position == [1, 2]
    interrupt(tmp_path, 3)
    assert Backup(tmp_path, STEPS).position == [1, 4]
    interrupt(tmp_path, 10)  # Through the end of a resumed epoch.
    assert Backup(tmp_path, STEPS).position == [1 + 1, 6]
    assert train(tmp_path) == uninterrupted


def test_without_every_an_epoch_begins_again(tmp_path, uninterrupted):
    interrupt(tmp_path, 2 * STEPS + 5, every=None)
    assert Backup(tmp_path, STEPS).position == [2, 0]
    assert train(tmp_path, every=None) == uninterrupted


def test_one_object_serves_several_fits(tmp_path, uninterrupted):
    stopping, plateau = keras.callbacks.EarlyStopping("loss"), keras.callbacks.ReduceLROnPlateau("loss")
    backup = Backup(tmp_path, STEPS, every=EVERY, watch=[stopping, plateau])
    model = build_model()
    for steps in (4, 12):
        with pytest.raises(Interrupted):
            model.fit(
                batches(backup.position),
                initial_epoch=backup.position[0],
                steps_per_epoch=STEPS,
                epochs=EPOCHS,
                verbose=0,
                shuffle=False,
                callbacks=[backup, InterruptAfter(steps)],
            )
    assert backup.position == [1, 6] and len(backup.history) == 1


def test_a_schedule_that_moves_the_rate_at_each_epoch_is_applied_once(tmp_path):
    def decayed():
        return keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.5)

    expected = train(tmp_path / "whole", callbacks=[decayed()], epochs=3)
    with pytest.raises(Interrupted):
        train(tmp_path / "cut", callbacks=[decayed(), InterruptAfter(STEPS + 5)], epochs=3)
    assert train(tmp_path / "cut", callbacks=[decayed()], epochs=3) == expected


def test_history_has_each_epoch_once_with_what_other_callbacks_add(tmp_path, uninterrupted):
    interrupt(tmp_path, 2 * STEPS + 3)
    backup = Backup(tmp_path, STEPS)
    assert [row["epoch"] for row in backup.history] == [0, 1]
    assert backup.history == uninterrupted["history"][:2]
    names = {"epoch", "loss", "accuracy", "val_loss", "val_accuracy", "learning_rate"}
    assert all(set(row) == names for row in uninterrupted["history"])
    assert all(type(value) is float for row in backup.history for name, value in row.items() if name != "epoch")
    assert [row["epoch"] for row in uninterrupted["history"]] == list(range(EPOCHS))


def test_a_complete_run_trains_no_more_and_can_be_extended(tmp_path):
    whole = train(tmp_path / "whole", epochs=4)
    part = train(tmp_path / "part", epochs=2)
    assert part["position"] == [2, 0] and not part["finished"]
    count = Count()
    assert train(tmp_path / "part", epochs=2, callbacks=[count]) == part
    assert (count.epochs, count.steps) == ([], 0)
    assert train(tmp_path / "part", epochs=4, callbacks=[count]) == whole
    assert count.epochs == [2, 3]


def test_a_run_that_a_callback_stopped_does_not_train_on(tmp_path):
    stopped = train(tmp_path, epochs=50, patience=1)
    assert stopped["finished"] and len(stopped["history"]) < 50
    assert Backup(tmp_path, STEPS).finished
    count = Count()
    assert train(tmp_path, epochs=50, patience=1, callbacks=[count]) == stopped
    assert (count.epochs, count.steps) == ([], 0)


def test_a_stop_in_the_last_step_of_a_resumed_epoch_is_a_stop(tmp_path):
    class StopAtEpochEnd(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if int(keras.ops.convert_to_numpy(self.model.optimizer.iterations)) == 2 * STEPS:
                self.model.stop_training = True

    expected = train(tmp_path / "whole", callbacks=[StopAtEpochEnd()])
    assert expected["position"] == [2, 0] and expected["finished"]
    interrupt(tmp_path / "cut", STEPS + 4)
    assert train(tmp_path / "cut", callbacks=[StopAtEpochEnd()]) == expected


def test_a_stop_inside_an_epoch_is_an_interruption(tmp_path, uninterrupted):
    class StopInside(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.stop_training = batch == 4

    backup = Backup(tmp_path, STEPS, every=EVERY)
    build_model().fit(
        batches((0, 0)), steps_per_epoch=STEPS, verbose=0, shuffle=False, callbacks=[backup, StopInside()]
    )
    assert backup.position == [0, 4] and not backup.finished


class SignalAfter(InterruptAfter):
    """Send a signal when this process has trained `steps` steps."""

    def __init__(self, steps, number=signal.SIGTERM):
        super().__init__(steps)
        self.number = number

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("steps", [1, STEPS + 3, 2 * STEPS])
def test_sigterm_saves_before_the_next_step_and_ends_the_run(tmp_path, uninterrupted, steps):
    before = signal.getsignal(signal.SIGTERM)
    with PreemptionHandler() as termination:
        with pytest.raises(
            PreemptedError, match=f"SIGTERM was received in epoch {1 + steps // STEPS}. The state after"
        ):
            train(tmp_path, callbacks=[SignalAfter(steps)], every=None, termination=termination)
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
    assert Backup(tmp_path, STEPS).position == list(divmod(steps, STEPS))
    assert train(tmp_path, every=None) == uninterrupted


@pytest.mark.parametrize("name, status", [("SIGINT", 130), ("SIGHUP", 129), ("SIGTERM", 143)])
def test_termination_saves_for_each_signal_and_gives_its_status(tmp_path, name, status):
    with (
        PreemptionHandler() as termination,
        pytest.raises(PreemptedError, match=f"{name} was received in epoch 1") as ended,
    ):
        train(tmp_path, callbacks=[SignalAfter(3, signal.Signals[name])], every=None, termination=termination)
    assert ended.value.status == status and Backup(tmp_path, STEPS).position == [0, 3]


def test_termination_ends_at_once_at_the_second_sigint(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    with PreemptionHandler() as termination:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # As `jobs` sends it, until the process ends.
    assert not termination.repeated
    with PreemptionHandler() as termination, pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
        assert termination.asked and termination.name == "SIGINT"
        signal.raise_signal(signal.SIGINT)
    assert termination.repeated and signal.getsignal(signal.SIGINT) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_termination_leaves_an_ignored_signal_ignored(number):
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with PreemptionHandler() as termination:
            signal.raise_signal(number)
            assert not termination.asked
        assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, before)


IN_A_TERMINAL = """
import fcntl, os, runpy, signal, sys, termios, time
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # Under nohup it is ignored.
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
with runpy.run_path(sys.argv[1])["PreemptionHandler"]() as termination:
    os.write(1, b"ready")
    while not termination.asked:
        time.sleep(0.01)
    os.write(1, b"progress")
sys.exit(0 if termination.name == "SIGHUP" else 2)
"""


def test_termination_survives_the_end_of_the_terminal():
    """A closed terminal fails every write, such as that of a progress bar before the next backup."""
    terminal, end = pty.openpty()
    command = [sys.executable, "-c", IN_A_TERMINAL, inspect.getfile(PreemptionHandler)]
    child = subprocess.Popen(command, stdin=end, stdout=end, stderr=end, start_new_session=True)
    os.close(end)
    assert os.read(terminal, 100) == b"ready"
    os.close(terminal)
    assert child.wait(CHILD_SECONDS) == 0


def test_sigterm_after_the_last_step_lets_the_run_end(tmp_path, uninterrupted):
    with PreemptionHandler() as termination:
        ended = train(tmp_path, callbacks=[SignalAfter(EPOCHS * STEPS)], termination=termination)
    assert termination.asked and ended == uninterrupted


def test_another_thread_hears_no_signals(tmp_path):
    before, errors = signal.getsignal(signal.SIGTERM), []

    def enter():
        try:
            with PreemptionHandler() as termination:
                assert signal.getsignal(signal.SIGTERM) == before and not termination.asked
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert not errors


@pytest.mark.filterwarnings("ignore:.*is damaged")
def test_flipped_bits_and_cuts_are_found(tmp_path):
    backup = Backup(tmp_path, STEPS)
    build_model().fit(batches((0, 0)), steps_per_epoch=STEPS, verbose=0, shuffle=False, callbacks=[backup])
    _, newer = backups(tmp_path)
    content = newer.read_bytes()
    generator = random.Random(0)
    ends = [*range(90), *range(len(content) - 30, len(content))]
    for place in ends + generator.sample(range(len(content)), 80):
        flipped = bytearray(content)
        flipped[place] ^= 1 << generator.randrange(8)
        newer.write_bytes(flipped)
        assert Backup(tmp_path, STEPS).position == [0, 0], place
    for size in [0, 1, 80, 84, 85, 86, *generator.sample(range(len(content)), 10), len(content) - 1]:
        newer.write_bytes(content[:size])
        assert Backup(tmp_path, STEPS).position == [0, 0], size
    newer.write_bytes(content + b"\0")
    assert Backup(tmp_path, STEPS).position == [0, 0]
    newer.write_bytes(content)
    assert Backup(tmp_path, STEPS).position == [1, 0]


def test_a_damaged_file_is_named_and_does_not_count_among_those_kept(tmp_path, uninterrupted):
    interrupt(tmp_path, STEPS + 5)
    older, newer = backups(tmp_path)
    assert [older.stem, newer.stem] == ["000001-00000002", "000001-00000004"]
    newer.write_bytes(newer.read_bytes()[:-1])
    with pytest.warns(UserWarning, match=rf"{newer.stem}.backup is damaged .*SHA-256"):
        backup = Backup(tmp_path, STEPS)
    assert backup.position == [1, 2]
    assert backups(tmp_path) == [older, newer]  # The constructor only reads.
    # A stop before the damaged name is written again: `older` is the only whole one and must stay.
    with pytest.warns(UserWarning, match="is damaged"):
        interrupt(tmp_path, 1)
    assert backups(tmp_path) == [older, newer]
    with pytest.warns(UserWarning, match="is damaged"):
        interrupt(tmp_path, 3)
    assert backups(tmp_path) == [older, newer]
    assert Backup(tmp_path, STEPS).position == [1, 4]
    assert train(tmp_path) == uninterrupted


def test_where_all_are_damaged_the_run_begins_anew_with_warnings(tmp_path, uninterrupted):
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
def test_keep(tmp_path, keep):
    interrupt(tmp_path, 2 * STEPS, keep=keep)
    assert [path.stem for path in backups(tmp_path)] == ["000001-00000002", "000001-00000004", "000001-00000006"][
        -keep:
    ]


def test_unfinished_writes_are_cleared(tmp_path):
    left = tmp_path / "000000-00000002.backup.0123456789abcdef.writing"
    left.write_bytes(b"half")
    (tmp_path / "writable").write_text("not ours")
    interrupt(tmp_path, 1)
    assert not left.exists() and (tmp_path / "writable").read_text() == "not ours"


def test_another_identity_is_refused_in_the_constructor(tmp_path):
    identity = {"teacher": "abc", "flags": {"seed": 1, "num_views": (1, 2)}}
    interrupt(tmp_path, 3, identity=identity)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    Backup(tmp_path, STEPS, identity=identity)
    with pytest.raises(ValueError, match=r"another run. teacher: 'abc' in the backup, 'abd' now\. Use") as error:
        Backup(tmp_path, STEPS, identity={**identity, "teacher": "abd"})
    assert "flags" not in str(error.value)
    with pytest.raises(ValueError, match=r"flags: \{'seed': 1.* now; teacher: 'abc' in the backup, absent now"):
        Backup(tmp_path, STEPS)
    with pytest.raises(ValueError, match=r"new: absent in the backup, 1 now"):
        Backup(tmp_path, STEPS, identity={**identity, "new": 1})
    with pytest.raises(ValueError, match=rf"steps_per_epoch: {STEPS} in the backup, 8 now"):
        Backup(tmp_path, 8, identity=identity)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_backup_knows_the_default_of_a_newer_entry_of_the_identity(tmp_path):
    interrupt(tmp_path, 3, identity={"seed": 1})
    Backup(tmp_path, STEPS, identity={"seed": 1, "new": 0}, defaults={"new": 0, "unused": 2})
    with pytest.raises(ValueError, match="another run. new: 0 in the backup, 1 now"):
        Backup(tmp_path, STEPS, identity={"seed": 1, "new": 1}, defaults={"new": 0})


def test_backup_warns_of_other_conditions_and_goes_on(tmp_path):
    interrupt(tmp_path, 3, conditions={"threads": 2})
    with warnings.catch_warnings(action="error"):
        Backup(tmp_path, STEPS, conditions={"threads": 2})
    with pytest.warns(UserWarning, match="threads: 2 in the backup, 1 now. The run may not end in the same bits"):
        assert Backup(tmp_path, STEPS, conditions={"threads": 1}).position == [0, 2]


def test_backup_reads_regular_files_only(tmp_path):
    interrupt(tmp_path, 3)
    os.mkfifo(tmp_path / "000009-00000000.backup")
    (tmp_path / "000008-00000000.backup").mkdir()
    assert Backup(tmp_path, STEPS).position == [0, 2]


def test_the_constructor_makes_nothing(tmp_path):
    Backup(tmp_path / "new" / "folder", STEPS)
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
def test_another_architecture_is_refused_and_nothing_is_written(tmp_path, model, message):
    interrupt(tmp_path, STEPS + 3)
    before = {path: path.read_bytes() for path in backups(tmp_path)}
    with pytest.raises(ValueError, match=rf"model with other {message}"):
        train(tmp_path, model=model())
    assert {path: path.read_bytes() for path in backups(tmp_path)} == before


def test_other_metrics_are_refused(tmp_path):
    interrupt(tmp_path, STEPS + 3)
    model = build_model()
    model.compile(model.optimizer, model.loss, metrics=[keras.metrics.SparseTopKCategoricalAccuracy(k=2, name="top")])
    with pytest.raises(ValueError, match=r"other variables: .*call model.test_on_batch"):
        train(tmp_path, model=model)


def test_other_watched_callbacks_are_refused(tmp_path):
    interrupt(tmp_path, 3)
    with pytest.raises(ValueError, match=r"watch=\[\] came, .* has \['EarlyStopping', 'ReduceLROnPlateau'\]"):
        train(tmp_path, watch=[])


def test_the_state_of_any_callback_comes_back_as_it_was(tmp_path):
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
    interrupt(tmp_path, 1, watch=[Holder(**values)])
    holder = Holder(none=1)
    interrupt(tmp_path, 1, watch=[holder])
    assert holder.function is len
    for name, value in values.items():
        assert type(getattr(holder, name)) is type(value)
        np.testing.assert_equal(getattr(holder, name), value)


def test_settings_of_keras_callbacks_stay_as_given(tmp_path):
    interrupt(tmp_path, STEPS + 1)
    stopping = keras.callbacks.EarlyStopping("val_loss", patience=9, min_delta=0.001)
    plateau = keras.callbacks.ReduceLROnPlateau("loss")
    backup = Backup(tmp_path, STEPS, every=EVERY, watch=[stopping, plateau])
    with pytest.raises(Interrupted):
        train(tmp_path, backup=backup, callbacks=[InterruptAfter(1)])
    assert stopping.patience == 9 and stopping.min_delta == 0.001 and stopping.best is not None


def test_a_directory_that_cannot_be_written_is_refused_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    count = Count()
    with pytest.raises(ValueError, match=r"file.folder cannot be written to \(.*\)\. Pass a directory"):
        train(tmp_path / "file" / "folder", callbacks=[count])
    assert not count.steps


def test_a_read_only_directory_is_refused_before_training_but_can_be_read(tmp_path, monkeypatch):
    interrupt(tmp_path, STEPS + 1)
    if os.getuid():
        tmp_path.chmod(0o555)
    else:  # Permissions do not bind root.

        def refuse(source, target):
            raise PermissionError(13, "Permission denied", str(target))

        monkeypatch.setattr(os, "replace", refuse)
    count = Count()
    with pytest.raises(ValueError, match=r"cannot be written to \(.*Permission denied"):
        train(tmp_path, callbacks=[count])
    tmp_path.chmod(0o755)
    assert not count.steps and not list(tmp_path.glob("*.writing"))
    assert len(Backup(tmp_path, STEPS).history) == 1


def test_a_failed_write_leaves_the_backups_before_it(tmp_path, monkeypatch):
    interrupt(tmp_path, 3)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    calls = []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) > 2:  # The first two are of the probe and its folder.
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        train(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_backup_without_room_is_named_and_the_one_before_stays(tmp_path, uninterrupted):
    class Fills(InterruptAfter):
        """Lets files be half as large as a backup, when this process has trained so many steps."""

        def on_train_batch_end(self, batch, logs=None):
            self.left -= 1
            if not self.left:
                room.enter_context(largest_file(backups(tmp_path)[0].stat().st_size // 2))

    with contextlib.ExitStack() as room, pytest.raises(OSError) as error:
        train(tmp_path, callbacks=[Fills(STEPS + 3)])
    assert error.value.errno == errno.EFBIG
    said = r"File too large: .*000001-00000004.backup does not fit. It has [\d,]{6,} bytes. [\d,]+ bytes are free"
    assert re.search(said, str(error.value))
    assert Backup(tmp_path, STEPS).position == [1, 2] and not list(tmp_path.glob("*.writing"))
    assert train(tmp_path) == uninterrupted


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    class Spoil(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            bias = self.model.trainable_variables[-1]
            bias.assign(np.array([0, np.nan, 0], "float32"))

    with pytest.raises(
        NonFiniteLossError, match=r"1 trainable variables, first student/logits/bias, .*go on from \[0, 6\]"
    ) as error:
        train(tmp_path, callbacks=[Spoil()])
    assert error.value.terms == ["student/logits/bias"]
    assert Backup(tmp_path, STEPS).position == [0, 6]


def fit(directory, *, start=(0, 0), initial_epoch=0, steps=STEPS, data=None, model=None, **settings):
    backup = Backup(directory, STEPS, **settings)
    (model or build_model()).fit(
        batches(start) if data is None else data,
        initial_epoch=initial_epoch,
        steps_per_epoch=steps,
        epochs=3,
        verbose=0,
        shuffle=False,
        callbacks=[backup],
    )


def test_fit_with_another_beginning_or_length_is_refused(tmp_path):
    interrupt(tmp_path, STEPS + 1, watch=[])
    with pytest.raises(ValueError, match=r"fit begins with epoch 0, .* is at \[1, 0\].*initial_epoch=backup.position"):
        fit(tmp_path)
    with pytest.raises(ValueError, match=rf"fit takes steps_per_epoch=8, Backup has {STEPS}"):
        fit(tmp_path, start=(1, 0), initial_epoch=1, steps=8)


@pytest.mark.filterwarnings("ignore:.*ran out of data")
@pytest.mark.parametrize("length", [STEPS - 1, STEPS + 3])
def test_data_that_end_are_refused(tmp_path, length):
    if length < STEPS and keras.backend.backend() == "torch":
        pytest.skip("On Torch, Keras's fit itself fails with UnboundLocalError where a generator ends early.")
    data = (batch(0, step) for step in range(length))
    with pytest.raises(ValueError, match=rf"ended after step {length % STEPS} of {STEPS}: the data ended. Endless"):
        fit(tmp_path, data=data)


@pytest.mark.parametrize("settings", [{"every": 0}, {"keep": 0}, {"every": 1.5}, {"identity": {"a": object()}}])
def test_arguments_out_of_range(tmp_path, settings):
    with pytest.raises(ValueError, match=f"Backup: {next(iter(settings))}="):
        Backup(tmp_path, STEPS, **settings)
    with pytest.raises(ValueError, match="steps_per_epoch=0 came"):
        Backup(tmp_path, 0)


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="Keras has no steps_per_execution on Torch.")
def test_several_steps_in_one_execution(tmp_path):
    def build(together):
        keras.utils.set_random_seed(0)
        model = build_model()
        model.compile(model.optimizer, model.loss, metrics=["accuracy"], steps_per_execution=together)
        return model

    def run(directory, *, every=4, steps=8, cut=()):
        backup = Backup(directory, steps, every=every)
        model = build(2)
        model.fit(
            (batch(9, i) for i in range(backup.position[0] * steps + backup.position[1], 10**6)),
            initial_epoch=backup.position[0],
            steps_per_epoch=steps,
            epochs=3,
            verbose=0,
            shuffle=False,
            callbacks=[backup, *cut],
        )
        return [keras.ops.convert_to_numpy(v) for v in model.variables], backup.history

    with pytest.raises(ValueError, match="every=3 came, a multiple of the model's steps_per_execution=2"):
        run(tmp_path / "a", every=3)
    with pytest.raises(ValueError, match="steps_per_epoch=7 came, a multiple of the model's steps_per_execution=2"):
        run(tmp_path / "a", steps=7)
    expected = run(tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(tmp_path / "cut", cut=[InterruptAfter(7)])
    assert Backup(tmp_path / "cut", 8).position == [1, 4]
    np.testing.assert_equal(run(tmp_path / "cut"), expected)


@pytest.mark.tensorflow
def test_a_tensorflow_dataset_and_metrics_that_the_first_step_makes(tmp_path):
    """Compiled metrics have no variables when a TensorFlow epoch is resumed in the middle."""
    import tensorflow as tf

    def data(start):
        signature = (tf.TensorSpec((None, 6, 6, 1), tf.float32), tf.TensorSpec((None,), tf.int32))
        return tf.data.Dataset.from_generator(lambda: generate(start), output_signature=signature)

    def run(directory, cut=()):
        backup = Backup(directory, STEPS, every=EVERY)
        keras.utils.set_random_seed(0)
        model = build_model()
        made = len(model.metrics_variables)
        model.fit(
            data(tuple(backup.position)),
            initial_epoch=backup.position[0],
            steps_per_epoch=STEPS,
            epochs=3,
            verbose=0,
            callbacks=[backup, *cut],
        )
        assert len(model.metrics_variables) > made
        return [keras.ops.convert_to_numpy(v) for v in model.variables], backup.history

    expected = run(tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(tmp_path / "cut", [InterruptAfter(STEPS + 5)])
    np.testing.assert_equal(run(tmp_path / "cut"), expected)


def start_child(directory, result, epochs, kill=()):
    command = [sys.executable, "-m", backup_child.__name__, str(directory), str(result), str(epochs), *kill]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(child, expected):
    errors = child.communicate(timeout=CHILD_SECONDS)[1].decode()
    assert child.returncode == expected, errors[-3000:]


def kill_at(directory, random_generator, child, last):
    """SIGKILL at a random moment after this child's first backup; False where it was done before that."""
    begun = Backup(directory, STEPS).position
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
    """The end of a run of several processes that were killed, and how many kills met one."""
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
def test_killed_processes_end_in_the_same_bits(tmp_path, uninterrupted):
    killed, kills = killed_run(tmp_path, EPOCHS, ["before:3", "torn:4"], at_random=1)
    assert kills == 3
    assert killed == uninterrupted


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is damaged")
def test_twenty_kills(tmp_path):
    in_write = ["before:3", "after:2", "torn:4", "after:5", "before:6", "torn:2"]
    killed, kills = killed_run(tmp_path, 40, in_write, at_random=14)
    assert kills == 20
    assert killed == train(tmp_path / "whole", epochs=40, patience=40)


def _unchanged(run, arrays):
    pass


def _forged(path, change=_unchanged, write=np.savez):
    """A backup's file with another content, and the digest of that."""
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
def test_a_backup_of_other_content_is_damaged(one_backup, tmp_path, change):
    """Though its digest is right."""
    (older, newer) = backups(shutil.copytree(one_backup, tmp_path / "copy"))
    _forged(newer)
    assert Backup(newer.parent, STEPS).position == [1, 0]
    _forged(newer, change)
    with pytest.warns(UserWarning, match="is damaged .it holds something else than a backup: .*") as warned:
        assert Backup(newer.parent, STEPS).position == [0, 0]
    assert "\n" not in str(warned[0].message)
    assert older.exists()


@pytest.fixture(scope="module")
def one_backup(tmp_path_factory):
    """The folder of a run of an epoch, with two backups."""
    folder = tmp_path_factory.mktemp("one")
    backup = Backup(folder, STEPS)
    build_model().fit(batches((0, 0)), steps_per_epoch=STEPS, verbose=0, shuffle=False, callbacks=[backup])
    return folder


def test_a_backup_takes_no_more_memory_than_its_file(one_backup, tmp_path):
    newer = backups(shutil.copytree(one_backup, tmp_path / "copy"))[-1]

    def bomb(run, arrays):
        arrays[len(arrays)] = np.zeros(2**27, "uint8")

    _forged(newer, bomb, write=np.savez_compressed)
    assert newer.stat().st_size < 2**20
    tracemalloc.start()
    try:
        with pytest.warns(UserWarning, match="its parts are compressed"):
            assert Backup(newer.parent, STEPS).position == [0, 0]
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def test_what_is_no_file_is_no_backup(one_backup, tmp_path):
    folder = shutil.copytree(one_backup, tmp_path / "copy")
    os.mkfifo(folder / "000009-00000000.backup")
    (folder / "000008-00000000.backup").mkdir()
    (folder / "000007-00000000.backup").symlink_to("missing")
    assert Backup(folder, STEPS).position == [1, 0]


def test_differences_are_one_line_whatever_the_names():
    assert differences({"a\nb": 1}, {}) == ["'a\\nb': 1 in the backup, absent now"]
