"""All methods on one small setting, without and with WSL's weights: accuracy and cost.

    python train/reproduce.py --study=compare_methods --flagfile=train/configs/cifar100/methods_cpu.flags \
        --teacher_weights=TEACHER.weights.h5 --data_dir=cifar100.npz --output_dir=runs/methods

Each run is `train/cifar100.py` in a process of its own, two at a time by default. If it is stopped, the same command
resumes it. Writes `methods.csv`, `methods.md` and `methods.png` to --results, with the costs that
`train/benchmark.py --suite=method_cost --output_dir=train/results/methods_cost.csv` has measured. It takes about two
hours on two CPU cores.
"""

import dataclasses
import pathlib

import matplotlib
from absl import flags

from keras_wsl.training import artifacts, config, plots, recipes
from reproduction import launcher
from reproduction.markdown import format_table
from reproduction.run_store import RunRecord

matplotlib.use("Agg")

from matplotlib import pyplot as plt

WEIGHTED_VARIANT = "wsl"  # The weighting of the second run of each method.


def plan_runs(methods):
    """Return the runs as `(method, weighting)`. WSL and methods without a teacher have no weighted variant."""
    runs = []
    for method in methods:
        recipe = recipes.METHODS[method]
        runs.append((method, ""))
        if recipe.needs_teacher and method != "wsl":
            runs.append((method, WEIGHTED_VARIANT))
    return runs


def make_config(settings, method, weighting, negatives):
    """Return the `Config` of one run.

    Args:
        settings: `Config` that all runs share.
        method: Name of the method.
        weighting: Name of the weighting, or an empty string.
        negatives: Number of negatives of CRD.
    """
    recipe = recipes.METHODS[method]
    changes = {"method": method, "weighting": weighting}
    if not recipe.needs_teacher:
        changes |= config.WITHOUT_TEACHER if method == "none" else {"teacher": "", "teacher_weights": ""}
    if recipe.data_dependent_kwargs:
        changes["loss_kwargs"] = (f"negatives={negatives}",)
    return dataclasses.replace(settings, **changes)


def run_name(method, weighting):
    """Return the name of the directory of a run."""
    return f"{method}-{weighting}" if weighting else method


def read_rows(folder):
    """Return a row per finished run in a directory, in the order of `recipes.METHODS`."""
    rows = [RunRecord.read(path.parent).row for path in sorted(pathlib.Path(folder).glob("*/result.json"))]
    order = list(recipes.METHODS)
    return sorted(rows, key=lambda row: (order.index(row["method"]), row["weighting"] or "", row["seed"]))


def _mean(rows):
    """Return the mean accuracy in percent of runs that differ in the seed, or `None`."""
    return 100 * sum(row["final_accuracy"] for row in rows) / len(rows) if rows else None


def make_table(rows, costs):
    """Return a row per method: accuracy without and with WSL's weights, and costs.

    Args:
        rows: Rows of `read_rows`.
        costs: Rows of `benchmarks/methods.py`, dicts of strings.
    """
    lines = []
    for method, recipe in recipes.METHODS.items():
        plain, weighted = (
            [row for row in rows if row["method"] == method and bool(row["weighting"]) == is_weighted]
            for is_weighted in (False, True)
        )
        if not plain:
            continue
        stage = "" if recipe.loss else "first"
        cost = next((row for row in costs if row["method"] == method and row["stage"] == stage), {})
        accuracy, weighted_accuracy = _mean(plain), _mean(weighted)
        lines.append(
            {
                "method": method + (" (before labels)" if recipe.loss is None and recipe.stage else ""),
                "runs": len(plain),
                "accuracy": f"{accuracy:.2f}",
                "with WSL's weights": "" if weighted_accuracy is None else f"{weighted_accuracy:.2f}",
                "difference": "" if weighted_accuracy is None else f"{weighted_accuracy - accuracy:+.2f}",
                "regularization samples": _sample_rate(plain),
                "step / KD's": cost.get("relative", ""),
                "peak MiB": cost.get("peak_memory_mib", ""),
                "adapter parameters": cost.get("adapter_parameters", ""),
            }
        )
    return lines


def _sample_rate(rows):
    rates = [row["regularization_sample_rate"] for row in rows if row["regularization_sample_rate"] is not None]
    return f"{100 * sum(rates) / len(rates):.1f} %" if rates else ""


def plot(lines, path):
    """Plot the accuracy of each method, without and with WSL's weights, the best at the top."""
    lines = sorted(lines, key=lambda line: float(line["accuracy"]))
    figure, axis = plt.subplots(figsize=(7, 0.26 * len(lines) + 1.2), layout="constrained")
    for y, line in enumerate(lines):
        accuracy, weighted = float(line["accuracy"]), line["with WSL's weights"]
        if weighted:
            axis.plot([accuracy, float(weighted)], [y, y], color="0.7", zorder=1)
            axis.scatter(float(weighted), y, color="C1", s=22)
        axis.scatter(accuracy, y, color="C0", s=22, zorder=2)
    axis.scatter([], [], color="C0", s=22, label="without weights")
    axis.scatter([], [], color="C1", s=22, label="with WSL's weights")
    axis.set_yticks(range(len(lines)), [line["method"] for line in lines], fontsize="small")
    axis.set_xlabel("test accuracy, %")
    axis.grid(axis="x", alpha=0.3)
    axis.legend(fontsize="small", loc="lower right")
    plots.save(figure, path)
    plt.close(figure)


def write(runs, results):
    """Write the three files.

    Args:
        runs: Directory of the runs.
        results: Directory of the files; `methods_cost.csv` and `methods_notes.md` in it are included.

    Raises:
        FileNotFoundError: If no run is finished.
    """
    results = pathlib.Path(results)
    rows = read_rows(runs)
    if not rows:
        raise FileNotFoundError(f"{runs} holds no finished run.")
    artifacts.write_csv(results / "methods.csv", rows)
    costs = results / "methods_cost.csv"
    lines = make_table(rows, artifacts.read_texts(costs) if costs.exists() else [])
    shown = format_table(lines, tuple(lines[0]))
    notes = results / "methods_notes.md"
    text = notes.read_text() if notes.exists() else ""
    shared = sorted(set.intersection(*(set(row["flags"].split()) for row in rows)))
    artifacts.write_text(
        results / "methods.md",
        "# All methods on one small setting\n\n"
        "Made by `train/reproduce.py --study=compare_methods`; `methods.csv` has the rows, with flags and commit "
        "of each run.\n\n"
        + text.replace("TABLE", shown)
        + (f"\n{shown}" if "TABLE" not in text else "")
        + f"\nFlags that all runs share: `{' '.join(shared)}`\n\n![Accuracy by method](methods.png)\n",
    )
    plot(lines, results / "methods.png")


def define_flags(flag_values=flags.FLAGS):
    """Define the flags of a run of cifar100.py and those of this study."""
    own = {"flag_values": flag_values}
    launcher.define_flags("methods.csv, methods.md and methods.png", **own)
    flags.DEFINE_list("methods", [], "Names of the methods; all by default.", **own)
    text = "Negatives of CRD, fewer than there are examples of other classes."
    flags.DEFINE_integer("negatives", 4096, text, **own)


def main():
    """Train the pending runs and write the files; return the exit status, 1 if a run failed."""
    values = flags.FLAGS
    if not values.output_dir:
        raise ValueError("--output_dir is missing: pass a directory for the runs, such as --output_dir=runs/methods.")
    settings = config.from_flags(values)
    runs = {
        pathlib.Path(values.output_dir) / run_name(*run): make_config(settings, *run, values.negatives)
        for run in plan_runs(values.methods or list(recipes.METHODS))
    }
    failed = launcher.train(runs, values.data_dir, jobs=values.jobs)
    write(values.output_dir, values.results)
    return int(bool(failed))
