"""Reliability diagrams: Guo et al., ICML 2017, figure 1, https://arxiv.org/abs/1706.04599."""

import matplotlib
import numpy as np

from keras_wsl.training import plots

matplotlib.use("Agg")

from matplotlib import pyplot as plt

PANELS_PER_ROW = 4


def plot(diagrams, path):
    """Plot reliability diagrams: accuracy by confidence, and the number of examples with that confidence.

    Args:
        diagrams: Dict of labels to results of `calibration`.
        path: Path of the image.
    """
    columns = min(len(diagrams), PANELS_PER_ROW)
    lines = -(-len(diagrams) // columns)
    figure, axes = plt.subplots(
        2 * lines,
        columns,
        figsize=(3.2 * columns + 0.4, 4.3 * lines),
        height_ratios=[3, 1] * lines,
        layout="constrained",
        squeeze=False,
    )
    for i, (upper, lower) in enumerate(zip(axes[0::2].flat, axes[1::2].flat)):
        if i < len(diagrams):
            label = list(diagrams)[i]
            _draw(upper, lower, label, diagrams[label])
        else:
            upper.axis("off")
            lower.axis("off")
    for upper, lower in zip(axes[0::2, 0], axes[1::2, 0]):
        upper.set_ylabel("accuracy")
        lower.set_ylabel("examples")
    (bars, names), (marks, others) = (axis.get_legend_handles_labels() for axis in axes[:2, 0])
    figure.legend(bars + marks, names + others, loc="outside lower center", ncols=min(5, 2 * columns), fontsize="small")
    plots.save(figure, path)
    plt.close(figure)


def _draw(upper, lower, label, calibrated):
    table = calibrated["reliability"]
    edges, accuracy, confidence = table["edges"], table["accuracy"], table["confidence"]
    bars = {"x": edges[:-1], "width": np.diff(edges), "align": "edge", "edgecolor": "white", "linewidth": 0.5}
    both = np.minimum(accuracy, confidence)
    upper.bar(height=both, color="C0", label="accuracy", **bars)
    upper.bar(height=accuracy - both, bottom=both, color="#9ecae1", label="accuracy above confidence", **bars)
    upper.bar(height=confidence - both, bottom=both, color="#f4a6a0", label="confidence above accuracy", **bars)
    upper.plot([0, 1], [0, 1], "--", color="0.4", linewidth=1)
    summary = f"accuracy {calibrated['accuracy']:.1%}, ECE {calibrated['ece']:.3f}"
    upper.set_title(f"{label[-40:]}\n{summary}", fontsize="medium")
    upper.set(xlim=(0, 1), ylim=(0, 1))
    # Logarithmic, because some bins have a few examples and others thousands.
    lower.bar(height=table["count"], color="0.7", **bars)
    lower.axvline(calibrated["accuracy"], color="C0", label="accuracy of all")
    lower.axvline(calibrated["mean_confidence"], color="C3", linestyle=":", label="mean confidence")
    lower.set(xlim=(0, 1), yscale="log", ylim=(0.7, None), xlabel="confidence")
