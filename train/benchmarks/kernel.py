"""Time and memory of the tangent kernel by the number of examples.

    python train/benchmark.py --suite=ntk_cost --examples=256,512,1024,2048

LeNet-5x8 with one output on random images of 32 x 32, as the targets of this package have it: 2,048 examples in 50
seconds and 4 GB. Each number of examples has a process of its own. Writes `ntk_cost.csv` and `ntk_cost.png` to
--results. Two minutes on two CPU cores.
"""

import json
import pathlib
import subprocess
import sys
import time

import matplotlib
import numpy as np
from absl import flags

from benchmarks import SCRIPT
from keras_wsl.training import artifacts, plots
from keras_wsl.training.process_memory import peak_mib

matplotlib.use("Agg")

from matplotlib import pyplot as plt


def measure(network, examples, outputs):
    """Seconds, CPU seconds and the peak memory of one kernel and of its complexity, in this process."""
    from keras_wsl import analysis, models

    model = models.build(network, 1, input_shape=(32, 32, 3))
    images = np.random.default_rng(0).normal(size=(examples, 32, 32, 3)).astype("float32")
    before = int(peak_mib())
    wall, cpu = time.perf_counter(), time.process_time()
    kernel = analysis.empirical_ntk(model, images, outputs, "structured")
    row = {
        "network": network,
        "examples": examples,
        "seconds": round(time.perf_counter() - wall, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "peak_memory_mib": int(peak_mib()),
        "before_mib": before,
    }
    wall = time.perf_counter()
    found = analysis.supervision_complexity(kernel, np.where(np.arange(examples) % 2, 1.0, -1.0))
    row["complexity_seconds"] = round(time.perf_counter() - wall, 1)
    return {**row, "smallest_relative": found.smallest_relative, **artifacts.environment()}


def plot(rows, path):
    """Seconds and memory by the number of examples, on logarithmic axes."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    examples = [row["examples"] for row in rows]
    for name, label in (("seconds", "kernel"), ("cpu_seconds", "kernel, CPU"), ("complexity_seconds", "eigenvalues")):
        axes[0].plot(examples, [max(row[name], 0.05) for row in rows], marker=".", label=label)
    axes[1].plot(examples, [row["peak_memory_mib"] / 1024 for row in rows], marker=".", label="peak of the process")
    axes[1].plot(examples, [row["before_mib"] / 1024 for row in rows], "k:", label="before: Keras and the network")
    axes[0].set(title="time", ylabel="s", yscale="log")
    axes[1].set(title="memory", ylabel="GiB", ylim=(0, None))
    for axis in axes:
        axis.set_xscale("log", base=2)
        axis.set_xticks(examples, [f"{n:,}" for n in examples])
        axis.set_xlabel("examples")
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    figure.suptitle(f"tangent kernel of {rows[0]['network']}, one output, {rows[0]['device']}, {rows[0]['backend']}")
    plots.save(figure, path)
    plt.close(figure)


def define_flags():
    """Define the flags of this suite."""
    flags.DEFINE_list("examples", ["256", "512", "1024", "2048"], "Numbers of examples.")
    flags.DEFINE_string("network", "lenet5x8", "A network of 32 x 32 images.")
    flags.DEFINE_integer("one", 0, "Measures this number here and prints the row.")
    flags.DEFINE_string("results", str(pathlib.Path(__file__).parent.parent / "results"), "Folder of the files.")


def main():
    """Measures each number of examples in a process, or with `--one` here."""
    values = flags.FLAGS
    if values.one:
        print(json.dumps(measure(values.network, values.one, "full")))
        return
    rows = []
    for examples in values.examples:
        command = [sys.executable, SCRIPT, "--suite=ntk_cost", f"--one={examples}", f"--network={values.network}"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(f"{examples}: {rows[-1]['seconds']} s, {rows[-1]['peak_memory_mib']} MiB", flush=True)
    results = pathlib.Path(values.results)
    flat = [{name: value for name, value in row.items() if not isinstance(value, (dict, list))} for row in rows]
    artifacts.write_csv(results / "ntk_cost.csv", flat)
    plot(rows, results / "ntk_cost.png")
