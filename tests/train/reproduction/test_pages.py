"""Pages of studies and of claims."""

from reproduction import pages
from tests.train.reproduction.common import CPU, FULL, plan, record_run


def test_claims_of_all_tables_are_on_one_page(tmp_path):
    for table, name, accuracy in (("5", "KD", 0.5), ("5", "WSL", 0.6), ("9", "sigmoid, α = 3", 0.4)):
        for run in plan(table, CPU, seeds=2)[1]:
            if run.variant.name == name:
                share = {"last_epoch": {"regularization_sample_rate": 0.3}}
                record_run(tmp_path, run.name, test_accuracy=accuracy + 0.1 * run.config.seed, **share)
    pages.write_pages(tmp_path / "out", tmp_path, "preset", ("cpu", "paper"))
    text = (tmp_path / "claims.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| [table")]
    # KD and WSL of table 5 are variants of another too, and were trained for both.
    assert [row.split("|")[1].strip() for row in rows] == ["[table 6](cifar100.md#table-6)"]
    assert "WSL, τ = 4 > KD, τ = 4" in rows[0] and "| +10.00 | +10.00 to +10.00 | 2 | < 0.001 | holds |" in rows[0]
    assert text.count("## Scale") == 1 and (tmp_path / "claims_cpu.png").exists()
    # Every table that shares one of these runs has a section, and no other has.
    text = (tmp_path / "cifar100.md").read_text()
    headings = [line[3:] for line in text.splitlines() if line.startswith("## ")]
    assert headings == ["Table 1", "Table 2", "Table 5", "Table 6", "Table 9", "Scale", "Accuracies"]
    assert not (tmp_path / "imagenet.md").exists()


def test_the_page_of_multinli_is_of_the_preset_that_was_run(tmp_path):
    (kd,) = (run for run in plan("11", CPU)[1] if run.variant.name == "KD")
    flags = "--student=folders/preset\n--sequence_length=48\n"
    result = {"student": "folders/preset", "eval_split": "9 held-out training examples", "mismatched_accuracy": 0.375}
    record_run(tmp_path, kd.name, flags, **result)
    pages.write_pages(tmp_path / "out", tmp_path, "bert_base_en", ("cpu",))
    text = (tmp_path / "multinli.md").read_text()
    assert "| preset → preset, 3 layers | KD | 75.50 | 50.00 |" in text and "| ours, mismatched |" in text
    assert (
        f"| 37.50 | `{kd.name}` |" in text
        and "selected on 9 held-out training examples, and its accuracy is on them." in text
    )


def test_pages_have_a_part_for_each_scale_name(tmp_path):
    results = tmp_path / "results"
    for scales, accuracy in ((CPU, 0.4), (FULL, 0.75)):
        for run in plan("2", scales, seeds=2)[1]:
            if run.variant.name == "labels":
                record_run(results, run.name, test_accuracy=accuracy, best_accuracy=accuracy, best_epoch=2)
    pages.write_pages(tmp_path / "runs", results, "preset", ("cpu", "paper"))
    text = (results / "cifar100.md").read_text()
    assert text.index("## Table 2\n") < text.index("## Table 2 at scale paper\n")
    assert "| resnet20 → resnet8 | labels | 73.26 | 40.00 ± 0.00 |" in text
    assert "| 73.26 | 75.00 ± 0.00 |" in text and "smoke" not in text
    assert "Not run, resnet20 → resnet8: KD; KD, label masked" in text
    for scale_name in ("cpu", "paper"):
        assert (
            f"](cifar100_accuracies_{scale_name}.png)" in text
            and (results / f"cifar100_accuracies_{scale_name}.png").exists()
        )
