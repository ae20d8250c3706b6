"""online_distillation.py: its plan, its table, and the whole path on a few small images."""

import dataclasses
import types

import pytest

from keras_wsl import data
from keras_wsl.training import config
from reproduction import online_distillation
from reproduction.run_store import RunRecord
from tests.common import bright_splits
from tests.train.reproduction.test_bias_variance import processes

assert processes  # A fixture.

WANTED = config.Config(teacher="tiny", student="tiny", method="none", epochs=2, batch_size=32, decay_epochs=(1,))


def test_the_plan(tmp_path):
    teacher, students = online_distillation.plan_runs(WANTED, tmp_path, [1.0, 4.0], 2)
    ((folder, taught),) = teacher.items()
    assert (taught.student, taught.teacher, taught.checkpoint_every, taught.method) == ("tiny", "", 1, "none")
    assert len(students) == 2 * (1 + 2 * 2) and len({path for path, _ in students.values()}) == len(students)
    for (kind, temperature, seed), (_, wanted) in students.items():
        assert wanted.seed == seed and wanted.online is (kind == "online")
        if kind == "labels":
            assert (wanted.method, wanted.teacher, wanted.teacher_weights) == ("none", "", "")
        else:
            assert (wanted.method, wanted.temperature) == ("kd", temperature)
            assert (wanted.alpha, wanted.student_loss_weight) == (1.0, 0.0)
            assert wanted.teacher_weights == str(folder / "student.keras")
    ((_, other),) = online_distillation.plan_runs(WANTED, tmp_path, [1.0], 1, max_train_examples=7)[0].items()
    assert other == dataclasses.replace(taught, max_train_examples=7)
    # Offline and online differ in nothing else.
    pairs = [students[kind, 4.0, 1][1] for kind in ("offline", "online")]
    assert dataclasses.replace(pairs[0], online=True) == pairs[1]


def test_the_table():
    rows = {("labels", None, 0): 0.5, ("online", 4.0, 0): 0.6, ("online", 4.0, 1): 0.7}
    lines = online_distillation.table({key: {"test_accuracy": value} for key, value in rows.items()})
    assert [line["test accuracy, %"] for line in lines] == ["50.00", "65.00 ± 7.07"]
    assert [line["temperature"] for line in lines] == ["", "4"]


def test_what_is_missing_is_said():
    values = types.SimpleNamespace(output_dir="")
    with pytest.raises(ValueError, match="--teacher and --output_dir are needed"):
        online_distillation.run(WANTED, values)


@pytest.mark.slow
def test_the_whole_path(tmp_path, processes):
    data.save_npz(bright_splits(60, 30), tmp_path / "images.npz")
    values = types.SimpleNamespace(
        output_dir=tmp_path / "runs", temperatures=["4"], seeds=1, jobs=1, data_dir=tmp_path / "images.npz"
    )
    values.teacher_train_limit, values.teacher_learning_rate = 50, None
    values.results = tmp_path / "results"  # Made if it is missing: it is needed only after all runs.
    online_distillation.run(WANTED, values)
    text = (values.results / "online.md").read_text()
    for kind in ("labels-0", "offline-4-0", "online-4-0"):
        row = RunRecord.read(tmp_path / "runs" / kind).row
        assert f"{100 * row['test_accuracy']:.2f}" in text
    assert (values.results / "online.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    before = (tmp_path / "runs" / "online-4-0" / "result.json").stat().st_mtime_ns
    online_distillation.run(WANTED, values)  # Finished runs are kept.
    assert (tmp_path / "runs" / "online-4-0" / "result.json").stat().st_mtime_ns == before
