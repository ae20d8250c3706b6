"""Every method on one small setting, plain and with WSL's weights: what trains, how well, and at what cost.

    python train/methods.py --flagfile=train/flags/methods_cpu.flags --teacher_weights=TEACHER.weights.h5 \
        --data_dir=cifar100.npz --out=runs/methods

Each run is `train/cifar100.py` in a process of its own, two at a time by default. Stopped and started again it goes on:
finished runs are kept, the others resume. Then `methods.csv`, `methods.md` and `methods.png` are written to --results,
with the costs that `train/benchmarks/methods.py --out=train/results/methods_cost.csv` has measured there. Two hours
or so on two CPU cores.
"""

import concurrent.futures
import json
import pathlib
import subprocess
import sys

from absl import app, flags

import methods_report
import recipes
import settings

HERE = pathlib.Path(__file__).parent
TWIN = "wsl"  # The weighting of the second run of each method.


def plan(methods):
    """The runs: `(method, weighting)`. What has no teacher has no twin, and WSL is one itself."""
    runs = []
    for method in methods:
        recipe = recipes.get(method)
        runs.append((method, ""))
        if recipe.needs_teacher and method != "wsl":
            runs.append((method, TWIN))
    return runs


def command(wanted, method, weighting, values):
    """The command line of one run.

    Args:
        wanted: `Settings` that all runs share.
        method: Its name.
        weighting: Name of the weights, or nothing.
        values: The parsed flags.
    """
    recipe = recipes.get(method)
    lines = settings.to_lines(wanted)
    if not recipe.needs_teacher:
        lines = [line for line in lines if not line.startswith("--teacher")]
    if recipe.from_data:  # CRD's negatives must fit the examples.
        lines.append(f"--loss_settings=negatives={values.negatives}")
    lines += [f"--method={method}", f"--weighting={weighting}", f"--data_dir={values.data_dir}"]
    out = pathlib.Path(values.out) / run_name(method, weighting)
    resume = ["--resume"] if (out / "run.flags").exists() else []
    return [sys.executable, str(HERE / "cifar100.py"), *lines, f"--out={out}", *resume], out


def run_name(method, weighting):
    """The folder of a run."""
    return f"{method}-{weighting}" if weighting else method


def train_one(wanted, method, weighting, values):
    """Runs one method unless it is done; returns whether it is now."""
    arguments, out = command(wanted, method, weighting, values)
    if (out / "result.json").exists():
        return True
    done = subprocess.run(arguments, capture_output=True, text=True)
    if done.returncode:
        print(
            f"{run_name(method, weighting)} failed: {' '.join(arguments)}\n{done.stderr}", file=sys.stderr, flush=True
        )
        return False
    result = json.loads((out / "result.json").read_text())
    print(f"{run_name(method, weighting)}: {result['test_accuracy']:.4f}, {result['seconds']:.0f} s", flush=True)
    return True


def main(argv):
    """Trains what is left and writes the report; exit status 1 if a run failed."""
    if argv[1:]:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}.")
    values = flags.FLAGS
    if not values.out:
        raise app.UsageError("--out is missing: name a folder for the runs, such as --out=runs/methods.")
    wanted = settings.from_flags(values)
    methods = values.methods or list(recipes.METHODS)
    runs = plan(methods)
    with concurrent.futures.ThreadPoolExecutor(values.jobs) as pool:
        done = list(pool.map(lambda run: train_one(wanted, *run, values), runs))
    methods_report.write(values.out, values.results)
    return 0 if all(done) else 1


if __name__ == "__main__":
    settings.define_flags()
    flags.DEFINE_list("methods", [], "Which methods; all by default.")
    flags.DEFINE_integer("jobs", 2, "Runs at a time.", lower_bound=1)
    flags.DEFINE_integer("negatives", 4096, "CRD's negatives, fewer than there are examples of other classes.")
    flags.DEFINE_string("data_dir", None, "As of cifar100.py.", required=True)
    flags.DEFINE_string("results", str(HERE / "results"), "Folder of methods.csv, methods.md and methods.png.")
    app.run(main)
