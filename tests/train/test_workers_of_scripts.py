"""A script on two workers, as its user runs it: killed and resumed, and when one of them is lost."""

import time

import keras
import pytest

from tests.test_workers import WORKERS, start_workers
from tests.train.test_scripts import OUTPUTS, SMALL, TRAIN, _assert_same_run, npz, settings, teacher  # noqa: F401

pytestmark = [pytest.mark.slow, pytest.mark.tensorflow]
PATIENCE = 120  # Seconds within which a worker notices that another is gone.

if keras.backend.backend() != "tensorflow":
    pytest.skip("the strategy is TensorFlow's", allow_module_level=True)


@pytest.fixture
def start(teacher, npz, tmp_path):  # noqa: F811
    """Starts both workers on a folder: a function of its name and of more flags, that gives the processes."""
    started = []

    def run(name, *more):
        arguments = [
            *settings.to_lines(SMALL),
            "--method=wsl",
            "--teacher=resnet8",
            f"--teacher_weights={teacher}",
            f"--data_dir={npz}",
            "--backup_steps=1",
            "--strategy=multi_worker",
            f"--out={tmp_path / name}",
            *more,
        ]
        started.extend(
            start_workers(
                lambda index: [str(TRAIN / "cifar100.py"), *arguments],
                lambda index: tmp_path / f"{name}-{index}.log",
                KERAS_BACKEND="tensorflow",
                TF_CPP_MIN_LOG_LEVEL="3",
            )
        )
        return started[-WORKERS:]

    yield run
    for process in started:
        process.kill()


def _wait_for(pattern, folder, processes):
    end = time.time() + 240
    while not list(folder.glob(pattern)):
        assert all(process.poll() is None for process in processes) and time.time() < end
        time.sleep(0.005)


def test_killed_workers_resume_to_the_same_bits(start, tmp_path):
    whole = start("whole")
    assert [process.wait(timeout=300) for process in whole] == [0, 0], (tmp_path / "whole-1.log").read_text()[-3000:]
    assert sorted(path.name for path in (tmp_path / "whole").iterdir()) == sorted(OUTPUTS)
    killed = start("killed")
    _wait_for("backups/000000-00000002.backup", tmp_path / "killed", killed)
    for process in killed:
        process.kill()
        process.wait()
    resumed = start("killed", "--resume")
    assert [process.wait(timeout=300) for process in resumed] == [0, 0]
    _assert_same_run(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.parametrize("lost", range(WORKERS))
def test_a_worker_without_the_other_stops_and_says_so(lost, start, tmp_path):
    processes = start("run", "--epochs=2000")
    _wait_for("backups/000001-*.backup", tmp_path / "run", processes)
    processes[lost].kill()
    assert processes[1 - lost].wait(timeout=PATIENCE) == 2
    last = (tmp_path / f"run-{1 - lost}.log").read_text().strip().splitlines()[-1]
    assert last.startswith("WorkerLost: Another worker has ended")
