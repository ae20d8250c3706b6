"""Plots of runs: accuracy, losses and regularization samples by epoch."""

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt

from keras_wsl.files import atomic_write

PANELS = (
    ("accuracy", "accuracy", ("val_accuracy", "accuracy")),
    ("loss an example", "nats", ("val_loss", "student_loss", "kd", "wsl")),
    ("regularization samples", "share of examples", ("regularization_sample_rate", "clean_regularization_sample_rate")),
    ("mean weight of the soft labels", "WSL weight", ("mean_wsl_weight", "clean_mean_wsl_weight")),
)
LABELS = {
    "val_accuracy": "validation",
    "accuracy": "training",
    "val_loss": "cross-entropy, validation",
    "student_loss": "cross-entropy, training",
    "kd": "soft labels, training",
    "wsl": "soft labels, training",
    "regularization_sample_rate": "training batches",
    "clean_regularization_sample_rate": "clean probe",
    "mean_wsl_weight": "training batches",
    "clean_mean_wsl_weight": "clean probe",
}


def plot(runs, path, title=""):
    """Draws the curves of one run, or of several over each other.

    Args:
        runs: Dict of a run's label to its rows, dicts of one epoch's logs with `"epoch"`.
        path: File of the picture.
        title: Text above it.
    """
    panels = [
        panel for panel in PANELS if any(name in row for rows in runs.values() for row in rows for name in panel[2])
    ]
    figure, axes = plt.subplots(
        1, len(panels), figsize=(4.2 * len(panels), 3.4 + 0.12 * len(runs)), layout="constrained", squeeze=False
    )
    for axis, (heading, unit, names) in zip(axes[0], panels):
        for i, (label, rows) in enumerate(runs.items()):
            for j, name in enumerate(names):
                points = [(row["epoch"], row[name]) for row in rows if row.get(name) not in (None, "")]
                # Several runs: a colour a run, and only the first two kinds of line, or nobody could read it.
                if not points or (len(runs) > 1 and j > 1):
                    continue
                x, y = zip(*points)
                colour, style = (f"C{i}", ("-", ":")[j]) if len(runs) > 1 else (f"C{j}", "-")
                text = f"{label}, {LABELS[name]}" if len(runs) > 1 else LABELS[name]
                axis.plot(x, y, style, color=colour, label=text, marker="." if len(x) < 3 else None)
        axis.set(title=heading, xlabel="epoch", ylabel=unit, yscale="log" if unit == "nats" else "linear")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.17), "ncols": 2} if len(runs) > 1 else {}
        axis.legend(fontsize="x-small", **below)
    if title:
        figure.suptitle(title)
    save(figure, path, bbox_inches="tight")
    plt.close(figure)


def save(figure, path, **kwargs):
    """Write a figure as a PNG file, whole or not at all.

    Args:
        figure: Matplotlib's `Figure`.
        path: Path of the file; its folder exists.
        **kwargs: For `Figure.savefig`.
    """
    atomic_write(path, lambda file: figure.savefig(file, format="png", dpi=110, **kwargs))
