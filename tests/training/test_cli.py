"""Command lines: exit statuses, and runs in processes of their own."""

import signal
import subprocess
import sys
import time

import pytest

from keras_wsl.training import cli
from tests.common import TRAIN, run_child, run_script
from tests.training.conftest import assert_same_run, child_command

EXPORTS = True  # See tests/train/conftest.py.

pytestmark = pytest.mark.usefixtures("default_signals")


def test_main_repeats_a_run_from_its_flagfile(wsl, npz, tmp_path):
    out, _ = wsl
    arguments = f"--flagfile={out / 'run.flags'}", f"--data_dir={npz}", f"--output_dir={tmp_path / 'again'}"
    again = run_child(child_command(*arguments), cwd=TRAIN.parent)
    assert again.returncode == 0, again.stderr[-2000:]
    assert "test accuracy" in again.stdout
    assert_same_run(out, tmp_path / "again")


@pytest.mark.slow  # Backups are interrupted everywhere in callbacks/test_backup.py.
@pytest.mark.parametrize("number, status", [(signal.SIGKILL, -9), (signal.SIGTERM, 143)])
def test_main_resumes_a_killed_run_to_the_same_bits(number, status, wsl, npz, tmp_path):
    out, _ = wsl
    flags = [f"--flagfile={out / 'run.flags'}", f"--data_dir={npz}", f"--output_dir={tmp_path / 'killed'}"]
    child = subprocess.Popen(
        child_command(*flags),
        cwd=TRAIN.parent,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    backups = tmp_path / "killed" / "backups"
    end = time.time() + 240
    # Inside the first epoch, if this loop is as quick as the backups are.
    while not list(backups.glob("000000-00000001*.backup")) + list(backups.glob("000000-00000002*.backup")):
        assert child.poll() is None and time.time() < end, child.stderr.read()[-2000:]
        time.sleep(0.005)
    child.send_signal(number)
    assert child.wait() == status
    if number == signal.SIGTERM:
        last = child.stderr.read().decode().strip().splitlines()[-1]
        assert last.startswith("SIGTERM was received in epoch 1.") and last.endswith("Pass --resume.")
    assert not (tmp_path / "killed" / "result.json").exists()
    refused = run_script("cifar100.py", *flags)
    assert refused.returncode == 2 and "holds this run already. Pass --resume" in refused.stderr
    resumed = run_child(child_command(*flags, "--resume"), cwd=TRAIN.parent)
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    assert_same_run(out, tmp_path / "killed")


def test_main_prints_an_error_in_one_line(tmp_path):
    absent = run_child(
        [
            sys.executable,
            TRAIN / "cifar100.py",
            "--method=none",
            f"--data_dir={tmp_path}",
            f"--output_dir={tmp_path / 'run'}",
        ]
    )
    assert absent.returncode == 2
    last = absent.stderr.strip().splitlines()[-1]
    assert last.startswith("FileNotFoundError: ") and "cifar100 must have a" in last and "--download" in last
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", [b"\xff\0\xfe", b"--epochs=1\n\xe9\n"])
def test_parse_refuses_a_binary_flagfile_in_one_line(content, tmp_path, capsys):
    (tmp_path / "run.flags").write_bytes(content)
    for arguments in ([f"--flagfile={tmp_path / 'run.flags'}"], ["--flagfile", str(tmp_path / "run.flags")]):
        assert cli.status(lambda arguments=arguments: cli._parse(["script", *arguments])) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "run.flags must be a text file of flags" in line


def test_status_prints_one_line_for_sigint(capsys):
    assert cli.status(lambda: signal.raise_signal(signal.SIGINT)) == 130
    assert capsys.readouterr().err == "Interrupted by SIGINT. Files that were written before are complete.\n"


def test_status_prints_one_line_whatever_the_error_holds(capsys):
    def fail():
        raise ValueError("no folder 'a\rb\x1b[2J'\nexpected: one")

    assert cli.status(fail) == 2
    assert capsys.readouterr().err == "ValueError: no folder 'a\\rb\\x1b[2J' expected: one\n"
