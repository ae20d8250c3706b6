"""`methods.csv`, `methods.md` and `methods.png` of the finished runs of `methods.py`, and what `benchmarks` measured.

python train/methods_report.py runs/methods
"""

import pathlib

import before_tensorflow  # noqa: F401
import matplotlib
from absl import flags

import report
from evidence.run_store import RunRecord
from keras_wsl.training import artifacts, cli, plots, recipes

matplotlib.use("Agg")

from matplotlib import pyplot as plt


def rows_of(folder):
    """A row for each finished run in a folder of runs, in the order of `recipes.METHODS`."""
    rows = [RunRecord.read(path.parent).row for path in sorted(pathlib.Path(folder).glob("*/result.json"))]
    order = list(recipes.METHODS)
    return sorted(rows, key=lambda row: (order.index(row["method"]), row["weighting"] or "", row["seed"]))


def _mean(rows):
    """Mean accuracy in percent of runs that differ in the seed, or `None`."""
    return 100 * sum(row["final_accuracy"] for row in rows) / len(rows) if rows else None


def table(rows, costs):
    """A line for each method: accuracy plain and weighted, and costs.

    Args:
        rows: As of `rows_of`.
        costs: Rows of `benchmarks/methods.py`, dicts of strings.
    """
    lines = []
    for method, recipe in recipes.METHODS.items():
        plain, weighted = (
            [row for row in rows if row["method"] == method and bool(row["weighting"]) == twin]
            for twin in (False, True)
        )
        if not plain:
            continue
        stage = "" if recipe.loss else "first"
        cost = next((row for row in costs if row["method"] == method and row["stage"] == stage), {})
        own, twin = _mean(plain), _mean(weighted)
        lines.append(
            {
                "method": method + (" (before labels)" if recipe.loss is None and recipe.stage else ""),
                "runs": len(plain),
                "accuracy": f"{own:.2f}",
                "with WSL's weights": "" if twin is None else f"{twin:.2f}",
                "difference": "" if twin is None else f"{twin - own:+.2f}",
                "regularization samples": _share(plain),
                "step / KD's": cost.get("relative", ""),
                "peak MiB": cost.get("peak_memory_mib", ""),
                "adapters' parameters": cost.get("adapter_parameters", ""),
            }
        )
    return lines


def _share(rows):
    shares = [row["regularization_sample_rate"] for row in rows if row["regularization_sample_rate"] is not None]
    return f"{100 * sum(shares) / len(shares):.1f} %" if shares else ""


def plot(lines, path):
    """Accuracy of each method, plain and weighted, best at the top."""
    lines = sorted(lines, key=lambda line: float(line["accuracy"]))
    figure, axis = plt.subplots(figsize=(7, 0.26 * len(lines) + 1.2), layout="constrained")
    for y, line in enumerate(lines):
        own, twin = float(line["accuracy"]), line["with WSL's weights"]
        if twin:
            axis.plot([own, float(twin)], [y, y], color="0.7", zorder=1)
            axis.scatter(float(twin), y, color="C1", s=22)
        axis.scatter(own, y, color="C0", s=22, zorder=2)
    axis.scatter([], [], color="C0", s=22, label="plain")
    axis.scatter([], [], color="C1", s=22, label="with WSL's weights")
    axis.set_yticks(range(len(lines)), [line["method"] for line in lines], fontsize="small")
    axis.set_xlabel("test accuracy, %")
    axis.grid(axis="x", alpha=0.3)
    axis.legend(fontsize="small", loc="lower right")
    plots.save(figure, path)
    plt.close(figure)


def write(runs, results):
    """Writes the three files.

    Args:
        runs: Folder of the runs.
        results: Folder of the files; `methods_cost.csv` and `methods_notes.md` there are taken in.
    """
    results = pathlib.Path(results)
    rows = rows_of(runs)
    if not rows:
        raise FileNotFoundError(f"{runs} holds no finished run.")
    artifacts.write_csv(results / "methods.csv", rows)
    costs = results / "methods_cost.csv"
    lines = table(rows, artifacts.read_texts(costs) if costs.exists() else [])
    shown = report.markdown(lines, tuple(lines[0]))
    notes = results / "methods_notes.md"
    text = notes.read_text() if notes.exists() else ""
    shared = sorted(set.intersection(*(set(row["flags"].split()) for row in rows)))
    artifacts.write_text(
        results / "methods.md",
        "# Every method on one small setting\n\n"
        "Made by `train/methods.py`; `methods.csv` has the rows, with flags and commit of each run.\n\n"
        + text.replace("TABLE", shown)
        + (f"\n{shown}" if "TABLE" not in text else "")
        + f"\nFlags that all runs share: `{' '.join(shared)}`\n\n![Accuracy by method](methods.png)\n",
    )
    plot(lines, results / "methods.png")


if __name__ == "__main__":
    flags.DEFINE_string("results", str(pathlib.Path(__file__).parent / "results"), "Folder of the files.")
    cli.start(lambda folder: write(folder, flags.FLAGS.results), "the folder of the runs")
