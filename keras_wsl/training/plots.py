"""Plots of runs: accuracy, losses and regularization samples by epoch."""

from keras_wsl.files import atomic_write

# Title, unit, and the columns that are drawn, with their labels.
PANELS = (
    ("Accuracy", "accuracy", {"val_accuracy": "validation", "accuracy": "training"}),
    (
        "Loss per example",
        "nats",
        {
            "val_loss": "cross-entropy, validation",
            "student_loss": "cross-entropy, training",
            "kd": "soft labels, training",
            "wsl": "soft labels, training",
        },
    ),
    (
        "Regularization samples",
        "fraction of examples",
        {
            "regularization_sample_rate": "training batches",
            "clean_regularization_sample_rate": "clean training examples",
        },
    ),
    (
        "Mean weight of the soft labels",
        "WSL weight",
        {"mean_wsl_weight": "training batches", "clean_mean_wsl_weight": "clean training examples"},
    ),
)


def pyplot():
    """Return `matplotlib.pyplot` with the backend that writes files. Importing it takes long, and not all runs plot."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt


def plot(runs, path, title=""):
    """Draw the curves of one run, or the first column of each panel for several runs.

    Args:
        runs: Dict of a run's label to its rows, dicts of one epoch's logs with `"epoch"`.
        path: Path of the PNG file.
        title: Text above the panels.
    """
    panels = []
    for heading, unit, columns in PANELS:
        if len(runs) > 1:
            column, label = next(iter(columns.items()))
            heading, columns = f"{heading}, {label}", {column: ""}
        if lines := _lines(runs, columns):
            panels.append((heading, unit, lines))
    plt = pyplot()
    rows = -(-len(panels) // 2)
    figure, axes = plt.subplots(rows, 2, figsize=(9, 3.2 * rows), layout="constrained", squeeze=False)
    for axis, (heading, unit, lines) in zip(axes.flat, panels):
        for color, label, x, y in lines:
            axis.plot(x, y, color=color, label=label, marker="." if len(x) < 3 else None)
        axis.set(title=heading, xlabel="epoch", ylabel=unit, yscale="log" if unit == "nats" else "linear")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    if title:
        figure.suptitle(title)
    save(figure, path, bbox_inches="tight")
    plt.close(figure)


def _lines(runs, columns):
    """Return `(color, label, epochs, values)` of each run and column that has values. A run keeps its color."""
    lines = []
    for i, (run, rows) in enumerate(runs.items()):
        for j, (column, label) in enumerate(columns.items()):
            points = [(row["epoch"], row[column]) for row in rows if row.get(column) not in (None, "")]
            if points:
                lines.append((f"C{i if len(runs) > 1 else j}", label or run, *zip(*points)))
    return lines


def save(figure, path, **kwargs):
    """Write a figure atomically as a PNG file.

    Args:
        figure: Matplotlib's `Figure`.
        path: Path of the file, in an existing directory.
        **kwargs: For `Figure.savefig`.
    """
    atomic_write(path, lambda file: figure.savefig(file, format="png", dpi=110, **kwargs))
