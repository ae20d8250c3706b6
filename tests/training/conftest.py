"""Fixtures and helpers of the tests of runs."""

import dataclasses
import sys

import keras
import pytest

from benchmarks.fault_injection import differences
from keras_wsl import data, models
from keras_wsl.training import config, runner
from tests.common import bright_splits
from tests.train.conftest import _exports, without_exports  # noqa: F401

# The module fixture `_exports` replaces these.
EXPORTS = {
    (runner.export, "export_saved_model"): runner.export.export_saved_model,
    (runner.plots, "plot"): runner.plots.plot,
}
SMALL = config.Config(student="tiny", method="none", epochs=2, batch_size=32, decay_epochs=(1,))


def splits_of_90():
    return bright_splits(90)


@pytest.fixture(scope="session")
def npz(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "images.npz"
    data.save_npz(splits_of_90(), path)
    return path


def _run_with_exports(settings, directory):
    with pytest.MonkeyPatch.context() as patch:
        for (module, name), function in EXPORTS.items():
            patch.setattr(module, name, function)
        return runner.run(settings, splits_of_90(), directory, verbose=0)


@pytest.fixture(scope="session")
def teacher(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "teacher"
    _run_with_exports(dataclasses.replace(SMALL, checkpoint_every=1), out)
    return out / "student.keras"


def with_teacher(teacher, **changes):
    changes = {"method": "wsl", "teacher": "tiny", "teacher_weights": str(teacher), "backup_every_steps": 1, **changes}
    return dataclasses.replace(SMALL, **changes)


@pytest.fixture(scope="session")
def wsl(teacher, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "wsl"
    return out, _run_with_exports(with_teacher(teacher), out)


def child_command(*arguments):
    """Return the command of cifar100.py in a process that knows the network `tiny`."""
    return [sys.executable, "-m", "tests.script_child", "cifar100.py", *map(str, arguments)]


def load_weights(path):
    return keras.saving.load_model(path, compile=False).get_weights()


def assert_same_run(one, other):
    assert differences(one, other) == []


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory):
    """Untrained weights of a small network."""
    keras.utils.set_random_seed(7)
    path = tmp_path_factory.mktemp("teacher") / "teacher.weights.h5"
    models.save_weights(models.build("tiny", 3, input_shape=(8, 8, 3)), path)
    return path


def tiny_config(path, **changes):
    """Return the settings of a short run with `tiny_teacher`."""
    small = config.Config(
        teacher="tiny",
        teacher_weights=str(path),
        student="tiny",
        epochs=1,
        pretrain_epochs=2,
        batch_size=32,
        decay_epochs=(),
        deterministic=False,
    )
    return dataclasses.replace(small, **changes)
