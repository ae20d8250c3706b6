"""The whole path on data that need no download: a teacher, and a student on labels, with KD and with WSL.

    python train/digits.py --output_dir=runs/digits

Under three minutes on two CPU cores. The digits are easy and few: the table shows that everything works, and not which
method is best.
"""

import dataclasses
import pathlib

import before_tensorflow  # noqa: F401
from absl import flags

from keras_wsl import data
from keras_wsl.training import artifacts, cli, config, plots, runner

TEACHER = config.Config(
    student="resnet14",
    method="none",
    epochs=12,
    learning_rate=0.02,
    decay_epochs=(8, 11),
)
STUDENT = dataclasses.replace(TEACHER, student="resnet8", epochs=6, decay_epochs=(4,))
COLUMNS = ("run", "network", "test_accuracy", "student_loss", "regularization_samples", "mean_wsl_weight", "seconds")


def run_all(out, seed=0, *, resume=False):
    """Trains the four networks, each in a folder of `out`, and writes `table.csv` and `curves.png` there.

    Returns:
        Rows of the table, dicts.
    """
    splits = data.digits()
    teacher = dataclasses.replace(TEACHER, seed=seed)
    student = dataclasses.replace(STUDENT, seed=seed)
    taught = {"teacher": teacher.student, "teacher_weights": str(out / "teacher" / "student.keras")}
    runs = {
        "teacher": teacher,
        "labels": student,
        "kd": dataclasses.replace(student, method="kd", **taught),
        "wsl": dataclasses.replace(student, method="wsl", **taught),
    }
    rows, histories = [], {}
    for name, wanted in runs.items():
        print(f"\n{name}: {wanted.student}", flush=True)
        result = runner.run(wanted, splits, out / name, resume=resume, verbose=2, source="digits of scikit-learn")
        histories[name] = artifacts.read_csv(out / name / "epochs.csv")
        found = {**histories[name][-1], **result, "run": name, "network": wanted.student}
        rows.append({column: found.get(column, "") for column in COLUMNS})
    artifacts.write_csv(out / "table.csv", rows)
    plots.plot(histories, out / "curves.png", "digits")
    return rows


def _cell(value):
    return f"{value:.4f}".removesuffix(".0000") if isinstance(value, float) else str(value)


def main():
    """Runs the four and prints the table."""
    out = pathlib.Path(flags.FLAGS.output_dir)
    rows = run_all(out, flags.FLAGS.seed, resume=flags.FLAGS.resume)
    table = [COLUMNS, *([_cell(value) for value in row.values()] for row in rows)]
    widths = [max(len(cell) for cell in column) for column in zip(*table)]
    print("\n" + "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in table))
    print(f"\nCurves: {out / 'curves.png'}. TensorBoard: tensorboard --logdir {out}")


if __name__ == "__main__":
    flags.DEFINE_string("output_dir", "runs/digits", "Folder of the results; made if it is missing.")
    flags.DEFINE_integer("seed", 0, "Seed of all four runs.", lower_bound=0)
    flags.DEFINE_bool("resume", False, "Go on with the runs in --output_dir.")
    cli.start(main)
