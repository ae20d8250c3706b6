"""How the time of a step grows: with the batch, with the teacher, and with the number of losses."""

import dataclasses

import matplotlib

from benchmarks import harness, limits
from benchmarks.harness import Arm
from keras_wsl import models
from keras_wsl.training import artifacts, plots

matplotlib.use("Agg")

from matplotlib import pyplot as plt

TEACHER, STUDENT = "resnet56", "resnet20"
BATCH_SIZES = (16, 32, 64, 128, 256)
TEACHERS = ("resnet8", "resnet20", "resnet56", "wrn_40_2")
NUMBERS = (1, 2, 4, 8)


def points(case):
    """What is measured: a dict of each series to `(x, label, case, settings)`.

    Args:
        case: `Case`, of which the size of the images counts.
    """
    case = dataclasses.replace(case, teacher=TEACHER, student=STUDENT)
    shape = {"classes": case.classes, "input_shape": case.shape}
    macs = {name: limits.macs(models.build(name, **shape)) / 1e6 for name in TEACHERS}
    return {
        "batch size": [(n, str(n), dataclasses.replace(case, batch_size=n), {}) for n in BATCH_SIZES],
        "teacher": [(macs[name], name, dataclasses.replace(case, teacher=name), {}) for name in TEACHERS],
        "losses": [(n, str(n), case, {"number": n}) for n in NUMBERS],
    }


def run(case, path, config):
    """Measures the series, prints them, and writes `PATH.csv` and `PATH.png`.

    Args:
        case: `Case`, of which the size of the images counts.
        path: Path without its ending, or `None` to write nothing.
        settings: Of `harness.measure`.

    Returns:
        Whether all arms ran.
    """
    rows, whole = [], True
    for series, some in points(case).items():
        print(f"growth with {series}", flush=True)
        arms = [Arm(label, "benchmarks.keras_arms:distiller", changes, case=own) for _, label, own, changes in some]
        measured = harness.measure(arms, **config)
        for x, label, own, _ in some:
            one = measured[label]
            whole &= not one.failed
            if not one.failed:
                rows.append({"series": series, "point": label, "x": x, "batch_size": own.batch_size, **times(one)})
                print(f"  {label}: {rows[-1]['wall_median']:.1f} ms, {rows[-1]['cpu_median']:.1f} ms of CPU")
    if path and rows:
        artifacts.write_csv(path.with_suffix(".csv"), rows)
        plot(rows, path.with_suffix(".png"), case)
    return whole


def times(one):
    """Quartiles of a step's milliseconds: `wall_low`, `wall_median` and so on, and the peak of memory."""
    still = [{"wall": 1e-3, "cpu": 1e-3}] * len(one.turns)
    row = {"peak_memory_mib": round(one.peak_mib)}
    for clock in ("wall", "cpu"):
        row.update(zip((f"{clock}_low", f"{clock}_median", f"{clock}_high"), harness.ratios(one.turns, still, clock)))
    return row


def plot(rows, path, case):
    """A panel for each series: milliseconds of a step, with quartiles."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
    labels = {"batch size": "examples in a batch", "teacher": "teacher: million MACs an example", "losses": "losses"}
    for axis, (series, label) in zip(axes, labels.items()):
        some = [row for row in rows if row["series"] == series]
        x = [row["x"] for row in some]
        for clock, name in (("wall", "wall time"), ("cpu", "CPU time")):
            middle = [row[f"{clock}_median"] for row in some]
            bars = [
                [y - row[f"{clock}_low"] for y, row in zip(middle, some)],
                [row[f"{clock}_high"] - y for y, row in zip(middle, some)],
            ]
            axis.errorbar(x, middle, bars, marker=".", capsize=3, label=name)
        highest = max(max(row["wall_high"], row["cpu_high"]) for row in some)
        axis.set(title=f"by {series}", xlabel=label, ylim=(0, 1.2 * highest))  # Names of teachers need some room.
        if series == "teacher":
            for row in some:
                axis.annotate(
                    row["point"], (row["x"], row["wall_median"]), (0, 8), textcoords="offset points", ha="center"
                )
            axis.margins(x=0.15)
        else:
            axis.set_xticks(x)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("milliseconds of a step")
    axes[0].legend()
    figure.suptitle(f"Distiller.fit, {TEACHER} to {STUDENT}, batches of {case.batch_size} unless varied")
    plots.save(figure, path)
    plt.close(figure)
