"""Runs in processes of their own: which script, what is started, and how they end."""

import os
import signal
import sys
import threading
import time

import pytest

from keras_wsl.callbacks import PreemptedError, PreemptionHandler
from keras_wsl.training import config
from reproduction import launcher
from tests.train.reproduction.test_bias_variance import SMALL

pytestmark = pytest.mark.usefixtures("default_signals")


def test_a_run_that_fails_is_named_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    started = []

    def call(arguments, *others):
        started.append(arguments)
        out = tmp_path / arguments[-1].rpartition("/")[2]
        if out.name == "second":
            return 2, "ValueError: no good"
        out.mkdir()
        (out / "result.json").write_text('{"test_accuracy": 0.5, "seconds": 1.0}')
        return 0, ""

    monkeypatch.setattr(launcher, "call", call)
    runs = {tmp_path / name: SMALL for name in ("first", "second", "third")}
    with pytest.raises(ValueError, match="second failed with the errors above. .*finished runs are kept"):
        launcher.train_all(runs, "images.npz")
    said = capsys.readouterr()
    assert "second failed: " in said.err and "no good" in said.err and "first: 0.5000, 1 s" in said.out
    assert len(started) == 3 and "--max_train_examples=30" in started[0] and "--data_dir=images.npz" in started[0]
    finished = []
    assert launcher.train(runs, "images.npz", after=finished.append) == ["second"] and len(started) == 4
    assert not finished  # Nothing was trained to its end.
    runs[tmp_path / "fourth"] = SMALL
    assert launcher.train(runs, "images.npz", jobs=2, after=finished.append) == ["second"]
    assert finished == [tmp_path / "fourth"]


def test_a_folder_that_was_stopped_goes_on(tmp_path):
    assert "--resume" not in launcher.command(tmp_path, SMALL, "images.npz")
    (tmp_path / "run.flags").write_text("\n".join(config.to_lines(SMALL)))
    assert launcher.command(tmp_path, SMALL, "images.npz")[-1] == "--resume"
    with pytest.raises(FileNotFoundError, match="holds no finished run"):
        launcher.read_config(tmp_path)
    (tmp_path / "result.json").write_text("{}")
    assert launcher.read_config(tmp_path) == SMALL


def test_the_settings_say_which_script(tmp_path):
    scripts = [launcher.command(tmp_path, kind(), "data")[1] for kind in (config.Config, config.MultiNLIConfig)]
    assert scripts == [str(launcher.TRAIN / name) for name in ("cifar100.py", "multinli.py")]
    assert all((launcher.TRAIN / name).exists() for name in launcher.SCRIPTS.values())


def test_a_run_of_another_kind_is_read(tmp_path):
    wanted = config.MultiNLIConfig(student_layers=2, epochs=1)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.flags").write_text("\n".join(config.to_lines(wanted)))
    (tmp_path / "run" / "result.json").write_text("{}")
    assert launcher.train({tmp_path / "run": wanted}, "data") == []
    with pytest.raises(ValueError, match="--student_layers: 2 in run.flags, 3 now"):
        launcher.train({tmp_path / "run": config.MultiNLIConfig(student_layers=3, epochs=1)}, "data")


SLEEPER = """
import os, pathlib, signal, sys, time
signal.signal(signal.SIGTERM, {})
pathlib.Path(sys.argv[1] + ".new").write_text(str(os.getpid()))
os.rename(sys.argv[1] + ".new", sys.argv[1])
time.sleep(600)
"""


def _interrupted(tmp_path, monkeypatch, handler, numbers):
    """What `jobs.train` raises if this process is sent signals while the first of two runs sleeps."""
    code = SLEEPER.format(handler)
    monkeypatch.setattr(launcher, "command", lambda out, *others: [sys.executable, "-c", code, str(out)])

    def send():
        while not (tmp_path / "first").exists():
            time.sleep(0.02)
        for number in numbers:
            os.kill(os.getpid(), number)
            time.sleep(0.2)

    threading.Thread(target=send).start()
    with pytest.raises((PreemptedError, KeyboardInterrupt)) as ended:
        launcher.train({tmp_path / name: SMALL for name in ("first", "second")}, "data")
    assert not (tmp_path / "second").exists()
    with pytest.raises(ProcessLookupError):  # It is no orphan.
        os.kill(int((tmp_path / "first").read_text()), 0)
    return ended.value


@pytest.mark.parametrize("name, status", [("SIGINT", 130), ("SIGHUP", 129), ("SIGTERM", 143)])
def test_a_signal_ends_what_runs_and_starts_nothing_more(name, status, tmp_path, monkeypatch, capsys):
    ended = _interrupted(tmp_path, monkeypatch, "lambda *_: sys.exit(143)", [signal.Signals[name]])
    assert f"{name} was received. The runs that were training have saved" in str(ended) and ended.status == status
    assert not capsys.readouterr().err


def test_a_second_sigint_kills_what_does_not_end(tmp_path, monkeypatch):
    ended = _interrupted(tmp_path, monkeypatch, "signal.SIG_IGN", [signal.SIGINT, signal.SIGINT])
    assert isinstance(ended, KeyboardInterrupt)


def test_a_process_is_ended_if_it_cannot_be_bound_to_cores(tmp_path):
    code = SLEEPER.format("signal.SIG_DFL")
    with pytest.raises(OSError):
        launcher.call([sys.executable, "-c", code, str(tmp_path / "run")], os.environ, PreemptionHandler(), {10**5})
    assert not (tmp_path / "run").exists()


def test_several_processes_share_an_accelerator(tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(launcher, "call", lambda arguments, environment, *_: given.append(environment) or (2, ""))
    for at_once in (1, 2):
        launcher.train({tmp_path / "run": SMALL}, "data", jobs=at_once)
    assert [launcher.SHARED_MEMORY.items() <= environment.items() for environment in given] == [False, True]
    assert launcher.default_parallelism() >= 1


CORES = """
import os, pathlib, sys, time
time.sleep(0.5)  # It is bound just after it has started.
out = pathlib.Path(sys.argv[1])
out.mkdir()
(out / "cores").write_text(" ".join(map(str, os.sched_getaffinity(0))))
(out / "result.json").write_text('{"test_accuracy": 0.5, "seconds": 1.0}')
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processes are bound to cores on Linux alone")
def test_runs_at_once_share_no_core(tmp_path, monkeypatch):
    monkeypatch.setattr(launcher, "command", lambda out, *others: [sys.executable, "-c", CORES, str(out)])
    monkeypatch.setattr(launcher, "_has_accelerator", lambda: False)
    mine = os.sched_getaffinity(0)

    def cores_of(*names, at_once):
        assert launcher.train({tmp_path / name: SMALL for name in names}, "data", jobs=at_once) == []
        return [set(map(int, (tmp_path / name / "cores").read_text().split())) for name in names]

    assert cores_of("alone", at_once=2) == [mine]
    if len(mine) > 1:
        one, other, third = cores_of("one", "other", "third", at_once=2)
        assert not one & other and one | other == mine and third in (one, other)
    assert launcher.partition_cores(len(mine) + 1) == [None] * (len(mine) + 1)
    monkeypatch.setattr(launcher, "_has_accelerator", lambda: True)
    assert launcher.partition_cores(2) == [None, None]
