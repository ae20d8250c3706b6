"""reproduce.py: whole tables on a few digits, flags, and errors."""

import dataclasses
import types

import pytest

import reproduce
from keras_wsl import data
from keras_wsl.training import artifacts
from reproduction import launcher, presets, studies
from reproduction.run_store import RunStore
from reproduction.variants import CIFAR100, TO_16_2, Claim, Variant
from tests.common import bright_splits
from tests.train.reproduction.common import FLAGS, SMOKE, finish_run, plan, record_run
from tests.train.reproduction.test_bias_variance import processes
from tests.train.test_imagenet import tree
from tests.train.test_multinli import folder, preset

assert processes and tree and folder and preset  # Fixtures.


def _values(tmp_path, table, **changes):
    given = {
        "list": False,
        "show_flags": None,
        "scale": "smoke",
        "seeds": None,
        "jobs": 2,
        "plan": False,
        "report": False,
        "preset": "preset",
    }
    paths = {"data_dir": str(tmp_path / "images.npz"), "output_dir": str(tmp_path / "runs"), "results": None}
    return types.SimpleNamespace(table=table, **{**given, **paths, **changes})


def test_a_study_is_trained_once_and_reported(tmp_path, processes, monkeypatch, capsys):
    data.save_npz(bright_splits(150), tmp_path / "images.npz")
    variants = [variant for variant in studies.STUDIES["5"].variants if variant.name in ("KD", "WSL")]
    small = studies.STUDIES["5"]._replace(variants=tuple(variants), claims=(Claim("WSL", "KD"),))
    monkeypatch.setitem(studies.STUDIES, "5", small)
    teacher, kd, wsl = [*plan("5", SMOKE)[0], *(run.name for run in plan("5", SMOKE)[1])]
    reproduce.run(_values(tmp_path, "5", plan=True))
    assert "0 students finished; pending: 1 teachers, 2 students" in capsys.readouterr().out and not processes
    assert reproduce.run(_values(tmp_path, "5")) == 0
    assert sorted(processes) == sorted([teacher, kd, wsl]) and processes[0] == teacher
    out = tmp_path / "runs"
    store = RunStore(out / "records")
    flags = store.get(wsl).flags
    assert f"--teacher_weights={out / 'weights' / teacher}.weights.h5" in flags
    assert f"--soft_labels={out / 'soft_labels' / teacher}-0" in flags
    text = (out / "cifar100.md").read_text()
    row = next(line for line in text.partition("## Table 5\n")[2].splitlines() if "| WSL |" in line)
    accuracy = 100 * store.row(wsl)["test_accuracy"]
    assert f"| 75.78 | {accuracy:.2f} |" in row and f"`{wsl}`" in row
    assert "WSL > KD" in text and "| data | 1,797 digits" in text

    # Again: nothing is left; with what is kept alone too; and another seed needs no second teacher.
    for again in (_values(tmp_path, "5"), _values(tmp_path, "5", report=True)):
        assert reproduce.run(again) == 0
    assert len(processes) == 3 and (out / "cifar100.md").read_text() == text
    reproduce.run(_values(tmp_path, "5", seeds=2))
    assert sorted(processes[3:]) == sorted([f"{kd[:-1]}1", f"{wsl[:-1]}1"])
    assert "2 students finished; pending: 0 teachers, 2 students, about" in capsys.readouterr().out
    assert " ± " in (out / "cifar100.md").read_text()


def test_a_run_that_fails_leaves_the_others_and_is_told(tmp_path, processes, monkeypatch):
    data.save_npz(bright_splits(150), tmp_path / "images.npz")
    variants = (
        studies.STUDIES["2"].variants[0],
        Variant("broken", {"method": "none", "temperature": 4.0}, TO_16_2),
    )
    monkeypatch.setitem(
        studies.STUDIES, "2", studies.STUDIES["2"]._replace(variants=variants, claims=(), baseline="labels")
    )
    call = launcher.call

    def fails(arguments, *others):
        return (2, "ValueError: broken") if "--temperature=4.0" in arguments else call(arguments, *others)

    monkeypatch.setattr(launcher, "call", fails)
    assert reproduce.run(_values(tmp_path, "2", jobs=1)) == 1
    text = (tmp_path / "runs" / "cifar100.md").read_text()
    assert len(processes) == 1 and "| broken |" not in text and "Not run, resnet8 → resnet8: broken.\n" in text


def test_figure_2_is_of_the_first_seeds_that_are_finished(tmp_path):
    """The students use cached logits: the accuracies of the teachers are those of their own runs."""
    teachers, students = plan("1", SMOKE, seeds=2)
    runs = tmp_path / "runs"
    epoch = {"epoch": 1, "regularization_samples": 64, "regularization_sample_rate": 0.5}
    for name, run in teachers.items():
        finish_run(runs / name, test_accuracy=0.75 if run.config.label_smoothing else 0.875)
    for run in students[:-1]:  # All of the first seed.
        finish_run(runs / run.name, teacher="resnet8")
        artifacts.write_csv(runs / run.name / "epochs.csv", [{**epoch, "val_accuracy": 0.25}])
        counts = {**epoch, "examples": 256, **{f"class_{digit}": digit for digit in range(10)}}
        artifacts.write_csv(runs / run.name / "tensorboard" / "regularization_samples.csv", [counts])
    values = _values(tmp_path, "figure2", data_dir=None, report=True, seeds=2)
    assert reproduce.run(values) == 0
    text = (tmp_path / "runs" / "figure2.md").read_text()
    assert "| 4 | labels | 87.50 | 64 | 50.0 | 25.0 | 25.00 | 35.4 | 74.92 |" in text
    assert "| 4 | smoothed labels | 75.00 |" in text and text.count("smoothed labels | 75.00") == 3
    assert (tmp_path / "runs" / "figure2.png").exists()


def test_show_flags_prints_a_flagfile(tmp_path, capsys):
    record_run(tmp_path, "kd-0")
    values = _values(tmp_path, None, show_flags="kd-0", results=str(tmp_path))
    assert reproduce.run(values) == 0 and capsys.readouterr().out == FLAGS
    with pytest.raises(ValueError, match="'kd-1' is not a recorded run"):
        reproduce.run(types.SimpleNamespace(**{**vars(values), "show_flags": "kd-1"}))


def test_a_report_of_nothing_writes_nothing(tmp_path, capsys):
    assert reproduce.run(_values(tmp_path, "2", report=True, data_dir=None)) == 0
    assert "No run of table 2 is finished, so it has no results." in capsys.readouterr().out
    assert not list(tmp_path.rglob("*.md"))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"table": "12"}, "--table must be one of 1, 2, .*figure4. Received: --table=12"),
        ({"output_dir": None}, "--output_dir and --data_dir are needed: .*cifar100"),
        ({"table": "11", "data_dir": None}, "--output_dir and --data_dir are needed: .*multinli"),
        (
            {"table": "figure2", "scale": "cpu", "report": True, "data_dir": None},
            "--output_dir and --data_dir are needed",
        ),
        ({"data_dir": "absent.npz"}, "absent.npz"),
    ],
)
def test_mistakes(tmp_path, changes, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        reproduce.run(_values(tmp_path, **{"table": "5", **changes}))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, study in studies.STUDIES.items() if study.data == CIFAR100])
def test_the_smoke_of_a_table(name, tmp_path):
    """In processes of their own, on the digits."""
    values = _values(tmp_path, name, data_dir=None)
    assert reproduce.run(values) == 0
    text = (tmp_path / "runs" / "cifar100.md").read_text()
    assert all(f"`{run.name}`" in text for run in plan(name, SMOKE)[1])


@pytest.mark.slow
@pytest.mark.parametrize("name, place", [("4", "tree"), ("11", "folder")])
def test_the_smoke_of_other_data(name, place, tmp_path, request, preset, monkeypatch):
    """Of a few JPEG files and pairs of sentences: smaller than the budget expects, so that it is cut further."""
    study, scales = studies.STUDIES[name], presets.smoke(str(preset))
    scale = scales[study.data]
    cut = {"max_train_examples": 0, "batch_size": 8} | (
        {"validation_examples": 0, "sequence_length": 16} if name == "11" else {}
    )
    scales[study.data] = scale._replace(recipe=dataclasses.replace(scale.recipe, **cut))
    monkeypatch.setitem(presets.SCALES, "smoke", lambda preset: scales)
    values = _values(tmp_path, name, data_dir=str(request.getfixturevalue(place)), preset=str(preset))
    assert reproduce.run(values) == 0
    text = (tmp_path / "runs" / f"{study.data}.md").read_text()
    assert "WSL > KD" in text
    assert len(RunStore(tmp_path / "runs" / "records").rows()) == 4  # A teacher, labels, KD and WSL.


@pytest.mark.slow
def test_the_smoke_of_the_figures(tmp_path):
    assert reproduce.run(_values(tmp_path, "figure2", data_dir=None)) == 0
    assert (tmp_path / "runs" / "figure2.png").read_bytes()[:4] == b"\x89PNG"
    assert reproduce.run(_values(tmp_path, "figure4", data_dir=None)) == 0
    assert (tmp_path / "runs" / "figure4" / "resemblance.png").read_bytes()[:4] == b"\x89PNG"
