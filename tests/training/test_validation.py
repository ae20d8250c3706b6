"""Settings that are refused before anything is written."""

import dataclasses

import pytest

from keras_wsl.training import runner
from tests.training.conftest import SMALL, splits_of_90


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"method": "wls"}, "no method 'wls'. Expected one of .*'kd', .*'none', .*'wsl'"),
        ({"student": "resnet9"}, "'resnet9'.*resnet8"),
        ({"method": "wsl"}, "--method=wsl needs a trained teacher"),
        (
            {"teacher": "tiny", "teacher_weights": "TEACHER"},
            "leave --teacher, --teacher_weights and --soft_labels out",
        ),
        ({"method": "kd", "teacher": "resnet14", "teacher_weights": "TEACHER"}, "does not match|tiny"),
        ({"method": "kd", "teacher": "tiny", "teacher_weights": "absent.keras"}, "absent.keras"),
        ({"strategy": "magic"}, "strategy must be one of .*'magic'"),
        pytest.param(
            {"strategy": "mirrored", "steps_per_execution": 2},
            "Keras does not support --steps_per_execution > 1 .* --steps_per_execution=2",
            marks=pytest.mark.tensorflow,
        ),
        (
            {"strategy": "tpu", "batch_size": 7},
            r"needs batches of one size. Received: \d+ .* leave \d after",
        ),
        ({"max_train_examples": 1000}, "1000 of 90"),
        ({"online": True}, "--online needs a method with a teacher in the main stage. Received: --method=none"),
        (
            {"method": "kd", "teacher": "tiny", "teacher_weights": "TEACHER", "teacher_checkpoints": "x"},
            "--teacher_checkpoints needs --online",
        ),
        ({"optimizer": "adam"}, "--optimizer=adam is unknown. Expected one of sgd, adamw"),
        ({"schedule": "cosine"}, "--schedule=cosine is unknown. Expected one of steps, linear"),
        (
            {"schedule": "linear", "lr_warmup_fraction": -0.1},
            r"`--lr_warmup_fraction` must be in \[0, 1\). Received: .*=-0.1",
        ),
        ({"temperature": 0.0, "method": "kd", "teacher": "tiny", "teacher_weights": "TEACHER"}, "positive number"),
    ],
)
def test_run_with_invalid_settings_writes_nothing(changes, message, teacher, tmp_path):
    changes = {name: str(teacher) if value == "TEACHER" else value for name, value in changes.items()}
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        runner.run(dataclasses.replace(SMALL, **changes), splits_of_90(), tmp_path / "run", verbose=0)
    assert not (tmp_path / "run").exists()
