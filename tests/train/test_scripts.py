"""Flagfiles of the scripts, the quickstart, and the report of runs."""

import dataclasses

import pytest
from absl import flags

import quickstart
from keras_wsl import models
from keras_wsl.training import artifacts, config, plots, recipes, runner
from reproduction import online_distillation, soft_label_storage
from reproduction.markdown import format_table
from reproduction.run_store import RunRecord
from tests.common import TRAIN

EXPORTS = True  # See conftest.py.


def test_report_reads_a_finished_run(tmp_path):
    directory = artifacts.open_run_directory(tmp_path / "wsl", config.Config(), resume=False)
    epochs = [{"epoch": epoch, "val_accuracy": 0.25 * epoch} for epoch in (1, 2)]
    artifacts.write_csv(directory / "epochs.csv", epochs)
    result = {"method": "wsl", "student": "wrn_16_2", "seed": 0, "final_accuracy": 0.5, "seconds": 1.0}
    artifacts.write_json(directory / "result.json", result)
    record = RunRecord.read(directory)
    row, history = record.row, record.epochs
    assert row["run"] == "wsl" and row["final_accuracy"] == 0.5 and "--method=wsl" in row["flags"].split()
    assert [epoch["epoch"] for epoch in history] == [1, 2]
    table = format_table([row]).splitlines()
    assert len(table) == 3 and "0.5000" in table[2]
    with pytest.raises(FileNotFoundError, match="holds no finished run"):
        RunRecord.read(tmp_path)


def test_quickstart_prints_short_lines_and_draws_four_panels(tmp_path, monkeypatch, capsys):
    for name in ("TEACHER", "STUDENT"):
        short = {"epochs": 1, "decay_epochs": (), "student": "resnet8", "max_train_examples": 100}
        monkeypatch.setattr(quickstart, name, dataclasses.replace(getattr(quickstart, name), **short))
    monkeypatch.setattr(runner.export, "export_saved_model", lambda *args, **kwargs: None)
    figures = []
    monkeypatch.setattr(plots, "save", lambda figure, path, **_: figures.append(figure))
    rows = quickstart.run_all(tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("epoch 1/1  accuracy 0.") for line in lines) == 4 and max(map(len, lines)) <= 100
    assert [row["run"] for row in rows] == ["teacher", "labels", "kd", "wsl"]
    assert artifacts.read_texts(tmp_path / "table.csv")[3]["mean_wsl_weight"]
    assert [len(axis.lines) for axis in figures[-1].axes] == [4, 4, 2, 2]


@pytest.mark.parametrize("folder", ["cifar100", "digits", "imagenet", "multinli"])
def test_flagfiles_have_existing_settings(folder):
    kind = {
        "cifar100": config.Config,
        "digits": config.Config,
        "imagenet": config.ImageNetConfig,
        "multinli": config.MultiNLIConfig,
    }[folder]
    files = sorted((TRAIN / "configs" / folder).glob("*.flags"))
    assert files
    for path in files:
        values = flags.FlagValues()
        config.define_flags(values, kind)
        values(["script", f"--flagfile={path}"])
        settings = config.from_flags(values, kind)
        recipe = recipes.get_recipe(settings)
        assert settings.teacher_weights or not recipe.needs_teacher or "methods" in path.name, path
        if folder != "multinli":  # Its networks are presets.
            assert {settings.student, *filter(None, [settings.teacher])} <= set(models.names())


@pytest.mark.parametrize("name, script", [("online", online_distillation), ("soft_label_storage", soft_label_storage)])
def test_flagfiles_of_studies_have_existing_settings(name, script):
    files = sorted((TRAIN / "configs" / "studies").glob(f"{name}_*.flags"))
    assert files
    for path in files:
        values = flags.FlagValues()
        script.define_flags(values)
        values(["script", f"--flagfile={path}", "--data_dir=cifar100.npz"])
        settings = config.from_flags(values)
        assert {settings.teacher, settings.student} <= set(models.names()), path
        assert not settings.teacher_weights or (TRAIN.parent / settings.teacher_weights).exists(), path
