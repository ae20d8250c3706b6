"""Figure 2 from runs that are really trained, and from rows made by hand."""

import dataclasses
import types

import pytest

from keras_wsl import data
from keras_wsl.training import artifacts
from reproduction import figure2, launcher
from reproduction.paper_results import COUNTS
from tests.common import bright_splits
from tests.train.reproduction.common import make_paths
from tests.train.reproduction.test_bias_variance import SMALL, processes

assert processes  # A fixture.


def _values(tmp_path, **changes):
    values = {"temperatures": ["2", "4"], "smoothing": 0.1, "jobs": 1}
    return types.SimpleNamespace(**{**make_paths(tmp_path), **values, **changes})


def test_two_teachers_and_their_students(tmp_path):
    teachers, students = figure2.plan_runs(SMALL, tmp_path, [2.0, 4.0, 6.0], 0.1)
    assert [wanted.label_smoothing for wanted in teachers.values()] == [0.0, 0.1]
    assert all((wanted.method, wanted.student, wanted.teacher) == ("none", "tiny", "") for wanted in teachers.values())
    assert len(students) == 6 and len({folder for folder, _ in students.values()}) == 6
    for (temperature, smoothed), (_, wanted) in students.items():
        assert (wanted.method, wanted.temperature, wanted.label_smoothing) == ("kd", temperature, 0.0)
        folder = tmp_path / ("teacher-smoothed" if smoothed else "teacher")
        assert wanted.teacher_weights == str(folder / "student.keras") and folder in teachers
    assert set(COUNTS) == set(students)


@pytest.mark.slow
def test_the_whole_path(tmp_path, processes):
    values, wanted = _values(tmp_path), dataclasses.replace(SMALL, max_train_examples=0, epochs=2)
    data.save_npz(bright_splits(60), values.data_dir)
    figure2.run(wanted, values)
    assert processes == ["teacher", "teacher-smoothed", "kd-2", "kd-4", "kd-2-smoothed", "kd-4-smoothed"]
    out, results = tmp_path / "runs", tmp_path / "results"
    rows = artifacts.read_texts(results / "figure2.csv")
    assert [(row["temperature"], row["epoch"]) for row in rows] == [(t, e) for t in ("2.0", "4.0") * 2 for e in "12"]
    assert [row["teacher"] for row in rows] == ["labels"] * 4 + ["smoothed labels"] * 4
    logged = artifacts.read_csv(out / "kd-4-smoothed" / "epochs.csv")[-1]
    assert int(rows[-1]["training_samples"]) == logged["regularization_samples"]
    assert int(rows[-1]["probe_samples"]) == logged["clean_regularization_samples"]
    assert float(rows[-1]["test_accuracy"]) == logged["val_accuracy"] and rows[-1]["probe_examples"] == "60"
    classes = artifacts.read_texts(results / "figure2_classes.csv")
    assert len(classes) == 4 * 3 and [row["class"] for row in classes[:3]] == ["dark", "grey", "light"]
    assert sum(int(row["samples"]) for row in classes[-3:]) == int(rows[-1]["probe_samples"])
    assert (results / "figure2.png").read_bytes()[:4] == b"\x89PNG"
    runs = artifacts.read_texts(results / "figure2_runs.csv")
    assert [row["run"] for row in runs] == processes[2:] and "--label_smoothing=0.0" in runs[-1]["flags"]
    text = (results / "figure2.md").read_text()
    more = 100 * (float(rows[5]["training_share"]) - float(rows[1]["training_share"]))
    assert f"- Temperature 2: {more:+.1f} points of regularization samples" in text
    assert " 49.5 | 74.59 |" in text and " 30.8 | 74.79 |" in text  # 24,775 and 15,379 of 50,000.
    figure2.run(wanted, values)
    assert len(processes) == 6


def test_other_temperatures_have_no_number_of_the_paper(tmp_path):
    row = {"training_samples": 5, "training_share": 0.5, "probe_samples": 1, "probe_examples": 4, "test_accuracy": 0.75}
    keys = [(3.0, False), (3.0, True), (5.0, True)]  # The other student of 5 is not trained yet.
    run = {"teacher": "big", "student": "small", "train_examples": 10, "epochs": 1, "flags": "--seed=0"}
    rows, runs, classes = ({key: value for key in keys} for value in (row, run, []))
    text = figure2.markdown(rows, runs, classes, {False: 0.5, True: 0.25}, "digits")
    assert "big to small, 10 training examples of digits, 1 epochs" in text
    assert "| 3 | labels | 50.00 | 5 | 50.0 | 25.0 | 75.00 |  |  |" in text
    assert "| 5 | smoothed labels | 25.00 |" in text
    assert text.count("- Temperature") == 4
    assert "- Temperature 3: +0.0 points of regularization samples, +0.00 of accuracy." in text


def test_bad_settings_are_refused_before_a_run(tmp_path, processes):
    values = _values(tmp_path, temperatures=["2", "x"])
    with pytest.raises(ValueError, match="--temperatures=2,x must be numbers"):
        figure2.run(SMALL, values)
    with pytest.raises(ValueError, match="--output_dir and --teacher are needed"):
        figure2.run(dataclasses.replace(SMALL, teacher=""), _values(tmp_path))
    with pytest.raises(FileNotFoundError, match="does not exist"):
        figure2.run(SMALL, _values(tmp_path))
    assert not processes and launcher.load_splits("digits").train.classes[0] == "0"
