"""Train a teacher, and a student on labels, with KD and with WSL, on data that need no download.

    python train/quickstart.py --output_dir=runs/quickstart

It takes under three minutes on two CPU cores. The data are scikit-learn's digits. They are easy and few: the table
shows that everything works, not which method is best.
"""

import dataclasses
import pathlib

import before_tensorflow  # noqa: F401
from absl import flags

from keras_wsl import data, training
from keras_wsl.training import artifacts, cli, plots

TEACHER = training.Config(student="resnet14", method="none", epochs=12, learning_rate=0.02, decay_epochs=(8, 11))
STUDENT = dataclasses.replace(TEACHER, student="resnet8", epochs=6, decay_epochs=(4,))
COLUMNS = ("run", "network", "test_accuracy", "student_loss", "regularization_samples", "mean_wsl_weight", "seconds")


def run_all(directory, seed=0, *, resume=False):
    """Train the four networks, each in its own directory, and write `table.csv` and `curves.png`.

    Args:
        directory: `pathlib.Path` of the results.
        seed: Seed of all runs.
        resume: Whether to resume the runs in `directory`.

    Returns:
        Rows of the table, dicts.
    """
    splits = data.digits()
    teacher = dataclasses.replace(TEACHER, seed=seed)
    student = dataclasses.replace(STUDENT, seed=seed)
    with_teacher = {"teacher": teacher.student, "teacher_weights": str(directory / "teacher" / "student.keras")}
    runs = {
        "teacher": teacher,
        "labels": student,
        "kd": dataclasses.replace(student, method="kd", **with_teacher),
        "wsl": dataclasses.replace(student, method="wsl", **with_teacher),
    }
    rows, histories = [], {}
    for name, config in runs.items():
        print(f"\n{name}: {config.student}", flush=True)
        result = training.run(
            config, splits, directory / name, resume=resume, verbose=2, source="digits of scikit-learn"
        )
        histories[name] = artifacts.read_csv(directory / name / "epochs.csv")
        row = {**histories[name][-1], **result, "run": name, "network": config.student}
        rows.append({column: row.get(column, "") for column in COLUMNS})
    artifacts.write_csv(directory / "table.csv", rows)
    plots.plot(histories, directory / "curves.png", "Digits: teacher ResNet-14, students ResNet-8")
    return rows


def _format_cell(value):
    return f"{value:.4f}".removesuffix(".0000") if isinstance(value, float) else str(value)


def main():
    """Run all and print the table."""
    directory = pathlib.Path(flags.FLAGS.output_dir)
    rows = run_all(directory, flags.FLAGS.seed, resume=flags.FLAGS.resume)
    table = [COLUMNS, *([_format_cell(value) for value in row.values()] for row in rows)]
    widths = [max(len(cell) for cell in column) for column in zip(*table)]
    print("\n" + "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in table))
    print(f"\nCurves: {directory / 'curves.png'}. TensorBoard: tensorboard --logdir {directory}")


if __name__ == "__main__":
    flags.DEFINE_string("output_dir", "runs/quickstart", "Directory of the results; created if it is missing.")
    flags.DEFINE_integer("seed", 0, "Seed of all four runs.", lower_bound=0)
    flags.DEFINE_bool("resume", False, "Resume the runs in --output_dir.")
    cli.start(main)
