"""The picture of a study: every run's accuracy, a line of dots an arm."""

import matplotlib
import numpy as np

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
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
    plt.close(figure)
