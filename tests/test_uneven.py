"""Batches that do not divide by the devices, with devices that have no rows: several devices equal one."""

import json
import os
import pathlib
import subprocess
import sys
import time

import keras
import numpy as np
import pytest

from keras_wsl import callbacks, models

BACKEND = keras.backend.backend()
ROOT = pathlib.Path(__file__).parents[1]
CIFAR100 = ROOT.parent / "shared" / "tensorflow_datasets"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BACKEND == "torch", reason="Keras has no distribution on Torch"),
]


def _run(*command):
    ran = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, "KERAS_BACKEND": BACKEND},
        capture_output=True,
        text=True,
        timeout=3600,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]


# Without oneDNN TensorFlow's convolutions take empty batches.
@pytest.mark.parametrize("devices, which, one_dnn", [(2, "few", 1), (4, "few", 1), (4, "few", 0), (8, "few", 1)])
def test_several_devices_equal_one(devices, which, one_dnn, tmp_path, monkeypatch):
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", str(one_dnn))
    _run("-m", "tests.uneven_child", str(tmp_path / "results.json"), str(devices), which)
    for name, (one, several) in json.loads((tmp_path / "results.json").read_text()).items():
        assert one.keys() == several.keys()
        for key, values in one.items():
            assert np.isfinite(several[key]).all(), (name, key)
            np.testing.assert_allclose(several[key], values, rtol=1e-5, atol=1e-5, err_msg=f"{name}: {key}")


@pytest.mark.skipif(not CIFAR100.exists(), reason="CIFAR-100 is not here")
@pytest.mark.parametrize("devices", [2, 4, 8])
def test_script_trains_and_resumes_on_several_devices(devices, tmp_path, monkeypatch):
    """The last of 300 images in batches of 59 are five, and evaluation batches have 500."""
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "1")  # As the scripts have it.
    teacher, out = tmp_path / "teacher.keras", tmp_path / "run"
    models.build("resnet8", 100, input_shape=(32, 32, 3)).save(teacher)
    command = [
        "train/cifar100.py",
        f"--data_dir={CIFAR100}",
        "--student=resnet8",
        "--teacher=resnet8",
        f"--teacher_weights={teacher}",
        "--strategy=mirrored",
        f"--logical_devices={devices}",
        "--max_train_examples=300",
        "--batch_size=59",
        "--backup_every_steps=1",
        "--epochs=1",
        "--decay_epochs=",
        f"--output_dir={out}",
    ]
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT, env={**os.environ, "KERAS_BACKEND": BACKEND})
    while process.poll() is None and not list(out.rglob("*.backup")):
        time.sleep(0.1)
    process.terminate()
    assert process.wait(3600) in (callbacks.PreemptionHandler.status, 0)
    _run(*command, "--resume")
    result = json.loads((out / "result.json").read_text())
    assert (result["epochs"], result["train_examples"], result["test_examples"]) == (1, 300, 10_000)
    assert np.isfinite(list(result["last_epoch"].values())).all()
