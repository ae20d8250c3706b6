"""Figure 4 of the WSL paper: which classes soft labels draw together, and whether these are near in meaning.

    python train/resemblance.py --data_dir=cifar100.npz --output_dir=runs/resemblance runs/kd

reads a finished run of train/cifar100.py with a teacher, asks both networks about the clean training examples, and
writes `resemblance.csv` (the matrix), `resemblance.md` and `resemblance.png` into --output_dir. Of CIFAR-100 it
compares the matrix with the superclasses and, where nltk and its WordNet are installed, with similarities of the nouns.
Seconds to
minutes: one forward pass of each network.
"""

import pathlib

import before_tensorflow  # noqa: F401
import matplotlib
import numpy as np
from absl import flags

import jobs
import report
from keras_wsl.analysis import semantics
from keras_wsl.analysis.class_affinity import class_affinity, group_means, rank_correlation
from keras_wsl.files import make_directory
from keras_wsl.training import artifacts, build_losses, cli, plots

matplotlib.use("Agg")

from matplotlib import pyplot as plt


def temperature_of(pair, folder, given):
    """The temperature at which to judge: the one given, or the run's own.

    Raises:
        ValueError: There is none.
    """
    if given:
        return given
    losses = build_losses.build_main_losses(pair.config, pair.examples)
    for loss in losses:
        if getattr(loss, "temperature", None):
            return loss.temperature
    raise ValueError(f"{folder}: --method={pair.config.method} has no temperature. Pass --temperature.")


def order_of(classes):
    """The classes by superclass, where they are CIFAR-100's: positions, and the superclasses, or `None`."""
    try:
        groups = semantics.superclasses(classes)
    except ValueError:
        return np.arange(len(classes)), None
    return np.argsort(groups, kind="stable"), groups


def comparisons(matrix, classes, groups):
    """Rows of a table: rank correlations with similarities of meaning; and what could not be compared, and why."""
    similarities, missing = {}, []
    if groups is None:
        return [], ["The classes are not CIFAR-100's: there are no superclasses to compare with."]
    similarities["same superclass"] = semantics.superclass_similarity(classes)
    for measure in ("wup", "lch"):
        try:
            similarities[f"WordNet, {measure.upper()}"] = semantics.wordnet_similarity(classes, measure)
        except (ImportError, LookupError, OSError) as error:
            missing.append(f"WordNet, {measure.upper()}, was not compared. {error}")
    rows = []
    for name, similarity in similarities.items():
        found = rank_correlation(matrix, similarity)
        rows.append({"similarity": name, "Spearman": f"{found.spearman:+.3f}", "pairs": found.pairs})
    return rows, missing


def nearest(matrix, classes, count=20):
    """The pairs of classes that are drawn together most: rows of a table."""
    off = np.where(np.eye(len(matrix), dtype=bool) | ~np.isfinite(matrix), np.inf, matrix)
    count = min(count, int(np.isfinite(off).sum()))
    for position in np.argsort(off, axis=None, kind="stable")[:count]:
        c, k = np.unravel_index(position, off.shape)
        yield {"class": classes[c], "towards": classes[k], "gradient": f"{off[c, k]:+.4f}"}


def plot(matrix, classes, order, title, path):
    """The matrix as a map, red where a class is drawn to another; the diagonal, far larger, is left out."""
    shown = matrix[np.ix_(order, order)].copy()
    np.fill_diagonal(shown, np.nan)
    few = len(classes) <= 20
    figure, axis = plt.subplots(figsize=(6.4, 5.4) if few else (12, 10.6), layout="constrained")
    limit = np.nanmax(np.abs(shown)) or 1.0
    # Most pairs have next to nothing, so that linear colours would show a few points on white.
    scale = matplotlib.colors.SymLogNorm(limit / 100, vmin=-limit, vmax=limit)
    image = axis.imshow(shown, cmap="RdBu", norm=scale, interpolation="nearest")
    names = [classes[c] for c in order]
    size = "small" if few else 5
    axis.set_xticks(range(len(names)), names, rotation=90, fontsize=size)
    axis.set_yticks(range(len(names)), names, fontsize=size)
    axis.set(xlabel="logit", ylabel="class of the examples", title=title)
    figure.colorbar(image, ax=axis, label="mean gradient; red: drawn together", shrink=0.8)
    plots.save(figure, path)
    plt.close(figure)


def markdown(folder, pair, temperature, rows, missing, groups, matrix):
    """What was judged, the comparisons and the nearest pairs."""
    wanted, classes = pair.config, pair.examples.classes
    text = (
        "# Figure 4: which classes soft labels draw together\n\n"
        f"Made by `train/resemblance.py` of the run `{pathlib.Path(folder).name}`: {wanted.teacher} to "
        f"{wanted.student}, {wanted.method}, over {len(pair.examples)} examples, without crops and flips. Entries are "
        f"the mean gradients of KD's loss minus the labels' at temperature {temperature:g}: a negative one draws a "
        "class towards another, so with a negative rank correlation classes near in meaning are drawn together.\n\n"
    )
    if rows:
        means = group_means(matrix, groups)
        text += (
            f"{report.markdown(rows, tuple(rows[0]))}\nMean entry within a superclass {means.within:+.5f}, between "
            f"superclasses {means.between:+.5f}.\n\n"
        )
    text += "".join(f"{line}\n\n" for line in missing)
    pairs = list(nearest(matrix, classes))
    return text + f"{report.markdown(pairs, tuple(pairs[0]))}\n![Resemblance of classes](resemblance.png)\n"


def run(folder, values):
    """Writes the three files of one run.

    Raises:
        FileNotFoundError: There is no finished run, or a file of it or of the data is missing.
        ValueError: The run has no teacher or no temperature.
    """
    if not values.output_dir:
        raise ValueError("--output_dir is missing: name a folder for the files, such as --output_dir=runs/resemblance.")
    pair = jobs.pair(folder, jobs.splits_of(values.data_dir), values.split)
    temperature = temperature_of(pair, folder, values.temperature)
    matrix = class_affinity(
        pair.examples.labels,
        student_logits=pair.student_logits,
        teacher_logits=pair.teacher_logits,
        temperature=temperature,
    )
    classes, out = pair.examples.classes, pathlib.Path(values.output_dir)
    order, groups = order_of(classes)
    rows, missing = comparisons(matrix, classes, groups)
    make_directory(out)
    artifacts.write_csv(
        out / "resemblance.csv", [{"class": name, **dict(zip(classes, row))} for name, row in zip(classes, matrix)]
    )
    artifacts.write_text(out / "resemblance.md", markdown(folder, pair, temperature, rows, missing, groups, matrix))
    title = f"{pair.config.teacher} to {pair.config.student}, {pair.config.method}, τ = {temperature:g}"
    plot(matrix, classes, order, title, out / "resemblance.png")


if __name__ == "__main__":
    flags.DEFINE_string("data_dir", None, "As of cifar100.py; digits for those of scikit-learn.", required=True)
    flags.DEFINE_string("output_dir", "", "Folder of the files; made if it is missing.")
    flags.DEFINE_enum("split", "train", ["train", "test"], "Of which examples.")
    flags.DEFINE_float("temperature", None, "At which to judge; the run's own by default.", lower_bound=0.0)
    cli.start(lambda folder: run(folder, flags.FLAGS), "the folder of one run")
