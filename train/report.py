"""Makes the rows, the table and the picture of `train/results` from folders of finished runs.

    python train/report.py --name=cifar100_cpu runs/labels runs/kd runs/wsl

writes `NAME.csv` (a row a run), `NAME_epochs.csv` (a row an epoch), `NAME.md` and `NAME.png`.
"""

import pathlib
import re

import before_tensorflow  # noqa: F401
from absl import flags

from keras_wsl.training import artifacts, cli, config, plots

COLUMNS = (
    "run",
    "student",
    "student_layers",
    "teacher",
    "teacher_layers",
    "teacher_update_epochs",
    "method",
    "extra_losses",
    "weighting",
    "seed",
    "epochs",
    "pretrain_epochs",
    "train_examples",
    "eval_split",
    "final_accuracy",
    "best_accuracy",
    "best_epoch",
    "test_accuracy",
    "test_top_5_accuracy",
    "mismatched_accuracy",
    "teacher_accuracy",
    "teacher_mismatched_accuracy",
    "regularization_samples",
    "regularization_sample_rate",
    "mean_wsl_weight",
    "clean_regularization_sample_rate",
    "seconds",
    "peak_memory_mib",
    "device",
    "backend",
    "commit",
    "flags",
)
HIDDEN = (
    "pretrain_epochs",
    "train_examples",
    "eval_split",
    "mean_wsl_weight",
    "clean_regularization_sample_rate",
    "peak_memory_mib",
)
SHOWN = tuple(name for name in COLUMNS[: COLUMNS.index("device")] if name not in HIDDEN)


def read(folder, *needed):
    """A run's row and its epochs.

    Args:
        folder: Path of the run's folder.
        needed: Names of fields that its `result.json` must have, as of `record.read_result`.

    Raises:
        FileNotFoundError: If the run is not finished.
        ValueError: If its `result.json` is damaged.
    """
    folder = pathlib.Path(folder)
    result = artifacts.read_result(folder, *needed)
    lines = config.read_lines(folder / artifacts.FLAGS)
    given = {name.removeprefix("--"): value for name, _, value in (line.partition("=") for line in lines)}
    found = {**given, **result, **result.get("last_epoch", {}), "run": folder.name, "flags": " ".join(lines)}
    row = {column: _without_folders(found.get(column)) for column in COLUMNS}
    return row, artifacts.read_csv(folder / "epochs.csv")


def _without_folders(value):
    """Where files lay on the machine of the run is no part of its result: of a long path, the last two names."""
    return re.sub(r"(?<![\w.])/[\w./+-]*/([\w.+-]+/[\w.+-]+)", r"\1", value) if isinstance(value, str) else value


def markdown(rows, columns=None):
    """The rows as a table of these columns, or of those of `SHOWN` that say something."""
    if columns is None:
        columns = [column for column in SHOWN if any(row[column] not in (None, "", "0") for row in rows)]

    def cell(value):
        if isinstance(value, float):
            return f"{value:.4f}" if abs(value) <= 1 else f"{value:.0f}"
        return "" if value is None else str(value)

    lines = [columns, ["---"] * len(columns), *([cell(row[column]) for column in columns] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write(folders, name, folder):
    """Write the four files.

    Args:
        folders: Folders of finished runs.
        name: Name of the files.
        folder: Where they go.

    Raises:
        FileNotFoundError: If a run is not finished.
        ValueError: If a `result.json` is damaged.
    """
    folder = pathlib.Path(folder)
    runs = {pathlib.Path(path).name: read(path) for path in folders}
    rows = [row for row, _ in runs.values()]
    artifacts.write_csv(folder / f"{name}.csv", rows)
    histories = {run: history for run, (_, history) in runs.items()}
    epochs = [{"run": run, **row, "epoch": int(row["epoch"])} for run, history in histories.items() for row in history]
    artifacts.write_csv(folder / f"{name}_epochs.csv", epochs)
    artifacts.write_text(folder / f"{name}.md", markdown(rows))
    plots.plot(histories, folder / f"{name}.png", name)


if __name__ == "__main__":
    flags.DEFINE_string("name", None, "Name of the files.", required=True)
    flags.DEFINE_string("results", str(pathlib.Path(__file__).parent / "results"), "Folder of the files.")
    cli.run(lambda argv: cli.status(lambda: write(argv[1:], flags.FLAGS.name, flags.FLAGS.results)))
