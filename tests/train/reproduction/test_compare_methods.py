"""All methods with and without weights: the plan of the runs and their report."""

import dataclasses
import importlib.util
import json

import pytest

from keras_wsl.training import artifacts, config, recipes
from reproduction import compare_methods
from tests.common import TRAIN


def test_plan_has_each_method_and_its_weighted_variant():
    runs = compare_methods.plan_runs(recipes.METHODS)
    assert len(runs) == 2 * len(recipes.METHODS) - 3  # Not of labels alone, of WSL, and of what has no teacher.
    assert {method for method, _ in runs} == set(recipes.METHODS)


def test_write_reports_finished_runs(tmp_path):
    def finished(method, weighting, seed, accuracy):
        folder = tmp_path / "runs" / f"{method}-{weighting}-{seed}"
        folder.mkdir(parents=True)
        (folder / "epochs.csv").write_text(f"epoch,val_accuracy\n1,{accuracy}\n")
        (folder / "run.flags").write_text(f"--epochs=4\n--method={method}\n--seed={seed}\n")
        found = {"method": method, "weighting": weighting or None, "seed": seed, "final_accuracy": accuracy}
        (folder / "result.json").write_text(json.dumps({**found, "last_epoch": {"regularization_sample_rate": 0.25}}))

    finished("kd", "", 0, 0.30)
    finished("kd", "", 1, 0.32)
    finished("kd", "wsl", 0, 0.33)
    finished("none", "", 0, 0.25)
    results = tmp_path / "results"
    results.mkdir()
    (results / "methods_cost.csv").write_text(
        "method,stage,relative,peak_memory_mib,adapter_parameters\nkd,,1.0,900,0\n"
    )
    (results / "methods_notes.md").write_text("Before.\n\nTABLE\n\nAfter.\n")
    compare_methods.write(tmp_path / "runs", results)
    text = (results / "methods.md").read_text()
    assert "| kd | 2 | 31.00 | 33.00 | +2.00 | 25.0 % | 1.0 | 900 | 0 |" in text
    assert text.index("| none | 1 | 25.00 |") < text.index("| kd |") < text.index("After.")
    assert "all runs share: `--epochs=4`" in text
    assert len(artifacts.read_texts(results / "methods.csv")) == 4
    assert (results / "methods.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(FileNotFoundError, match="no finished run"):
        compare_methods.write(tmp_path, results)


@pytest.mark.slow
def test_measure_reports_the_cost_of_a_step():
    path = TRAIN / "benchmarks" / "methods.py"
    spec = importlib.util.spec_from_file_location("benchmark_of_methods", path)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    small = config.Config(method="vid", teacher="resnet8", student="resnet8", batch_size=4)
    row = benchmark.measure(small, steps=2)
    assert tuple(row) == benchmark.COLUMNS
    assert row["milliseconds"] > 0 and 0 < row["relative"] and row["peak_memory_mib"] > 100
    assert row["adapter_parameters"] == 3 * (16**2 + 32**2 + 64**2) + 16 + 32 + 64
    assert benchmark.measure(dataclasses.replace(small, method="ab"), stage="first", steps=1)["stage"] == "first"
