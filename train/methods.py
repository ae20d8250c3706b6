"""Every method on one small setting, plain and with WSL's weights: what trains, how well, and at what cost.

    python train/methods.py --flagfile=train/configs/cifar100/methods_cpu.flags --teacher_weights=TEACHER.weights.h5 \\
        --data_dir=cifar100.npz --output_dir=runs/methods

Each run is `train/cifar100.py` in a process of its own, two at a time by default. Stopped and started again it goes on:
finished runs are kept, the others resume. Then `methods.csv`, `methods.md` and `methods.png` are written to --results,
with the costs that `train/benchmark.py --suite=method_cost --output_dir=train/results/methods_cost.csv` has measured.
About two hours on two CPU cores.
"""

import dataclasses
import pathlib

import before_tensorflow  # noqa: F401
from absl import flags

import jobs
import methods_report
from keras_wsl.training import cli, config, recipes

TWIN = "wsl"  # The weighting of the second run of each method.


def plan(methods):
    """The runs: `(method, weighting)`. What has no teacher has no twin, and WSL is one itself."""
    runs = []
    for method in methods:
        recipe = recipes.get_recipe(config.Config(method=method))
        runs.append((method, ""))
        if recipe.needs_teacher and method != "wsl":
            runs.append((method, TWIN))
    return runs


def argument_names(wanted, method, weighting, negatives):
    """The settings of one run.

    Args:
        wanted: `Config` that all runs share.
        method: Its name.
        weighting: Name of the weights, or nothing.
        negatives: CRD's, which must fit the examples.
    """
    recipe = recipes.get_recipe(config.Config(method=method))
    changes = {"method": method, "weighting": weighting}
    if not recipe.needs_teacher:
        changes |= config.WITHOUT_TEACHER if method == "none" else {"teacher": "", "teacher_weights": ""}
    if recipe.data_dependent_kwargs:
        changes["loss_kwargs"] = (f"negatives={negatives}",)
    return dataclasses.replace(wanted, **changes)


def run_name(method, weighting):
    """The folder of a run."""
    return f"{method}-{weighting}" if weighting else method


def main():
    """Trains what is left and writes the report; the exit status is 1 if a run failed."""
    values = flags.FLAGS
    if not values.output_dir:
        raise ValueError("--output_dir is missing: name a folder for the runs, such as --output_dir=runs/methods.")
    wanted = config.from_flags(values)
    runs = {
        pathlib.Path(values.output_dir) / run_name(*run): argument_names(wanted, *run, values.negatives)
        for run in plan(values.methods or list(recipes.METHODS))
    }
    failed = jobs.train(runs, values.data_dir, jobs=values.jobs)
    methods_report.write(values.output_dir, values.results)
    return int(bool(failed))


if __name__ == "__main__":
    jobs.define_flags("methods.csv, methods.md and methods.png")
    flags.DEFINE_list("methods", [], "Which methods; all by default.")
    flags.DEFINE_integer("negatives", 4096, "CRD's negatives, fewer than there are examples of other classes.")
    cli.start(main)
