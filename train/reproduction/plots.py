"""Plots of studies: the accuracy of each run by variant, and the differences of claims."""

import itertools
import textwrap

import matplotlib
import numpy as np

from keras_wsl.training.plots import save

matplotlib.use("Agg")

from matplotlib import pyplot as plt


def plot_accuracies(results_by_study, title, path):
    """Plot the accuracies of the last epoch, with a panel per study and pair of networks; a bar is the mean over seeds.

    Args:
        results_by_study: Dict of display names of studies to lists of `report.VariantResult`.
        title: Title of the figure.
        path: Path of the image.
    """
    panels = {}
    for name, results in results_by_study.items():
        for result in results:
            panels.setdefault((name, result.pair), []).append(result)
    heights = [len(results) + 2.0 for results in panels.values()]
    figure, axes = plt.subplots(
        len(panels),
        1,
        figsize=(9, 0.26 * sum(heights) + 0.6),
        height_ratios=heights,
        squeeze=False,
        layout="constrained",
    )
    for axis, ((name, pair), results) in zip(axes[:, 0], panels.items()):
        for y, result in enumerate(results):
            accuracies = list(result.values().values())
            axis.scatter(accuracies, [y] * len(accuracies), color="C0", s=18, alpha=0.7)
            axis.plot([np.mean(accuracies)] * 2, [y - 0.3, y + 0.3], color="C1", linewidth=2)
        axis.set_yticks(range(len(results)), [result.variant.name for result in results], fontsize="small")
        axis.set_ylim(len(results) - 0.4, -0.6)  # In the order of the table.
        axis.set_title(f"{name}: {' to '.join(pair)}", fontsize="small", loc="left")
        axis.grid(axis="x", alpha=0.3)
    axis.set_xlabel("test accuracy, %")
    figure.suptitle(title)
    save(figure, path)
    plt.close(figure)


def plot_claims(results_by_study, title, path):
    """Plot the differences of claims with their 95 % intervals, and the paper's differences.

    Args:
        results_by_study: Dict of display names of studies to lists of `report.ClaimResult`.
        title: Title of the figure.
        path: Path of the image.
    """
    panels = {"accuracy": []}
    for name, results in results_by_study.items():
        several = len({result.pair for result in results}) > 1
        for result in results:
            prefix = f"{name}, {' to '.join(result.pair)}" if several else name
            label = textwrap.fill(f"{prefix}: {result.text}", 64)
            panels.setdefault(result.claim.metric, []).append((name, label, result))
    panels = {metric: rows for metric, rows in panels.items() if rows}
    heights = [len(rows) + 1.5 for rows in panels.values()]
    size = (10, 0.32 * sum(heights) + 1.2)
    figure, axes = plt.subplots(
        len(panels), 1, figsize=size, height_ratios=heights, squeeze=False, layout="constrained"
    )
    for axis, (metric, rows) in zip(axes[:, 0], panels.items()):
        names, labels, results = zip(*rows)
        _shade_studies(axis, names)
        _plot_differences(axis, results)
        axis.set_yticks(range(len(rows)), labels, fontsize="x-small")
        axis.set(xlabel=f"difference in {metric}, points")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize="small")
    figure.suptitle(title)
    save(figure, path)
    plt.close(figure)


def _shade_studies(axis, names):
    """Shade the rows of every second study."""
    start = 0
    for k, (_, rows) in enumerate(itertools.groupby(names)):
        end = start + len(list(rows))
        if k % 2:
            axis.axhspan(start - 0.5, end - 0.5, color="black", alpha=0.05, linewidth=0)
        start = end


def _plot_differences(axis, results):
    """Plot each `report.ClaimResult` as a row, the first one at the top."""
    means = [result.measured.mean for result in results]
    papers = [(result.paper, y) for y, result in enumerate(results) if result.paper is not None]
    for y, result in enumerate(results):
        if result.measured.seeds > 1:
            axis.plot([result.measured.low, result.measured.high], [y, y], color="C0", linewidth=1.5, alpha=0.6)
    axis.scatter(means, range(len(results)), color="C0", s=24, label="here, with its 95 % interval", zorder=3)
    if papers:
        axis.scatter(*zip(*papers), marker="D", facecolors="none", edgecolors="C1", s=28, label="the paper", zorder=3)
    # Intervals of two or three seeds may be far wider than the differences: the axis cuts them.
    extent = [0.0, *means, *(paper for paper, _ in papers)]
    margin = 0.35 * (max(extent) - min(extent)) + 0.1
    axis.set_xlim(min(extent) - margin, max(extent) + margin)
    axis.set_ylim(len(results) - 0.4, -0.6)
    axis.axvline(0.0, color="black", linewidth=0.8)
    axis.grid(axis="x", alpha=0.3)
