"""Files of runs, and results by variant."""

from reproduction import report, studies
from reproduction.study_runner import StudyRunner
from reproduction.variants import CIFAR100
from tests.train.reproduction.common import CPU, FULL, plan, record_run


def test_files_of_this_machine_are_named_from_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = studies.STUDIES["5"]
    study_runner = StudyRunner(study, CPU[CIFAR100], 1, tmp_path / "runs", tmp_path / "train" / "results")
    found = study_runner.get_config(study_runner.students[0])
    assert found.soft_labels == f"runs/soft_labels/{study_runner.students[0].teacher}-0"
    assert found.teacher_weights == f"runs/weights/{study_runner.students[0].teacher}.weights.h5"
    (tmp_path / "train" / "results" / "weights").mkdir(parents=True)
    (tmp_path / "train" / "results" / "weights" / f"{study_runner.students[0].teacher}.weights.h5").write_bytes(b"")
    assert study_runner.get_config(study_runner.students[0]).teacher_weights.startswith(
        "train/results/weights/teacher-"
    )
    assert not study_runner.pending_runs()[0]  # A teacher that is kept is not trained again.


def test_labels_alone_are_compared_with_each_teachers_students(tmp_path):
    """A student on labels is one run for all teachers: ResNet-56's and ResNet-110's ResNet-20."""
    for run in plan("3", FULL)[1]:
        if run.config.student == "resnet20" and run.variant.name in ("labels", "KD"):
            accuracy = 0.6 if run.variant.name == "labels" else 0.7
            record_run(tmp_path, run.name, test_accuracy=accuracy, best_accuracy=accuracy, best_epoch=2)
    study_runner = StudyRunner(studies.STUDIES["3"], FULL[CIFAR100], 1, tmp_path / "out", tmp_path)
    lines, _ = study_runner.get_results()
    assert [(line.pair[0], line.variant.name) for line in lines] == [
        (teacher, name) for teacher in ("resnet56", "resnet110") for name in ("labels", "KD")
    ]
    assert [row["ours"] for row in report.claim_rows(report.evaluate_claims(lines, studies.STUDIES["3"]))] == [
        "+10.00",
        "+10.00",
    ]
    assert [row["over KD: ours"] for row in report.result_rows(lines, studies.STUDIES["3"])] == [
        "-10.00",
        "",
        "-10.00",
        "",
    ]
