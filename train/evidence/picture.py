"""Pictures of studies: every run's accuracy, a line of dots an arm; and the differences that claims are about."""

import itertools
import textwrap

import matplotlib
import numpy as np

from keras_wsl.training import plots

matplotlib.use("Agg")

from matplotlib import pyplot as plt


def plot(lines, title, path):
    """Draws the accuracies of the last epoch, each pair of networks beside the other; a bar is the mean of the seeds.

    Args:
        lines: List of `page.Line`.
        title: What stands above.
        path: Of the picture.
    """
    pairs = list(dict.fromkeys(line.pair for line in lines))
    names = list(dict.fromkeys(line.arm.name for line in lines))
    size = (2.5 + 4 * len(pairs), 0.3 * len(names) + 1.4)
    figure, axes = plt.subplots(1, len(pairs), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for axis, pair in zip(axes[0], pairs):
        for line in lines:
            if line.pair != pair:
                continue
            accuracies, y = list(line.values().values()), names.index(line.arm.name)
            axis.scatter(accuracies, [y] * len(accuracies), color="C0", s=18, alpha=0.7)
            axis.plot([np.mean(accuracies)] * 2, [y - 0.3, y + 0.3], color="C1", linewidth=2)
        axis.set(title=" to ".join(pair), xlabel="test accuracy, %")
        axis.grid(axis="x", alpha=0.3)
    axes[0, 0].set_yticks(range(len(names)), names, fontsize="small")
    axes[0, 0].invert_yaxis()  # In the order of the table.
    figure.suptitle(textwrap.fill(title, 30 + 28 * len(pairs)))
    plots.save(figure, path)
    plt.close(figure)


def forest(found, title, path):
    """Draws the differences that claims are about, with their 95 % intervals, and the paper's beside them.

    Args:
        found: Dict of what a study is called to its list of `page.Tested`.
        title: What stands above.
        path: Of the picture.
    """
    panels = {"accuracy": []}
    for name, ones in found.items():
        several = len({one.pair for one in ones}) > 1
        for one in ones:
            where = f"{name}, {' to '.join(one.pair)}" if several else name
            panels.setdefault(one.claim.what, []).append((name, textwrap.fill(f"{where}: {one.text}", 64), one))
    panels = {what: rows for what, rows in panels.items() if rows}
    heights = [len(rows) + 1.5 for rows in panels.values()]
    size = (10, 0.32 * sum(heights) + 1.2)
    figure, axes = plt.subplots(
        len(panels), 1, figsize=size, height_ratios=heights, squeeze=False, layout="constrained"
    )
    for axis, (what, rows) in zip(axes[:, 0], panels.items()):
        names, labels, ones = zip(*rows)
        _bands(axis, names)
        _differences(axis, ones)
        axis.set_yticks(range(len(rows)), labels, fontsize="x-small")
        axis.set(xlabel=f"difference in {what}, points")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize="small")
    figure.suptitle(title)
    plots.save(figure, path)
    plt.close(figure)


def _bands(axis, names):
    """Shades the rows of every other study."""
    start = 0
    for k, (_, rows) in enumerate(itertools.groupby(names)):
        end = start + len(list(rows))
        if k % 2:
            axis.axhspan(start - 0.5, end - 0.5, color="black", alpha=0.05, linewidth=0)
        start = end


def _differences(axis, ones):
    """Draws `page.Tested` as rows, the first one on top."""
    means = [one.measured.mean for one in ones]
    papers = [(one.paper, y) for y, one in enumerate(ones) if one.paper is not None]
    for y, one in enumerate(ones):
        if one.measured.seeds > 1:
            axis.plot([one.measured.low, one.measured.high], [y, y], color="C0", linewidth=1.5, alpha=0.6)
    axis.scatter(means, range(len(ones)), color="C0", s=24, label="here, with its 95 % interval", zorder=3)
    if papers:
        axis.scatter(*zip(*papers), marker="D", facecolors="none", edgecolors="C1", s=28, label="the paper", zorder=3)
    # Intervals of two or three seeds may be far wider than what they surround: the axis cuts them.
    shown = [0.0, *means, *(paper for paper, _ in papers)]
    margin = 0.35 * (max(shown) - min(shown)) + 0.1
    axis.set_xlim(min(shown) - margin, max(shown) + margin)
    axis.set_ylim(len(ones) - 0.4, -0.6)
    axis.axvline(0.0, color="black", linewidth=0.8)
    axis.grid(axis="x", alpha=0.3)
