"""Makes the rows, the table and the picture of `train/results` from folders of finished runs.

    python train/report.py --name=cifar100_cpu runs/labels runs/kd runs/wsl

writes `NAME.csv` (a row a run), `NAME_epochs.csv` (a row an epoch), `NAME.md` and `NAME.png`.
"""

import pathlib

import before_tensorflow  # noqa: F401
from absl import flags

from evidence.run_store import COLUMNS, RunRecord
from keras_wsl.training import artifacts, cli, plots

HIDDEN = (
    "pretrain_epochs",
    "train_examples",
    "eval_split",
    "mean_wsl_weight",
    "clean_regularization_sample_rate",
    "peak_memory_mib",
)
SHOWN = tuple(name for name in COLUMNS[: COLUMNS.index("device")] if name not in HIDDEN)


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
    records = [RunRecord.read(path) for path in folders]
    rows = [record.row for record in records]
    artifacts.write_csv(folder / f"{name}.csv", rows)
    histories = {record.name: record.epochs for record in records}
    epochs = [{"run": run, **row, "epoch": int(row["epoch"])} for run, history in histories.items() for row in history]
    artifacts.write_csv(folder / f"{name}_epochs.csv", epochs)
    artifacts.write_text(folder / f"{name}.md", markdown(rows))
    plots.plot(histories, folder / f"{name}.png", name)


if __name__ == "__main__":
    flags.DEFINE_string("name", None, "Name of the files.", required=True)
    flags.DEFINE_string("results", str(pathlib.Path(__file__).parent / "results"), "Folder of the files.")
    cli.run(lambda argv: cli.status(lambda: write(argv[1:], flags.FLAGS.name, flags.FLAGS.results)))
