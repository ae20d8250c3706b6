"""Figure 4 of the WSL paper: which classes soft labels draw together, and whether these are similar in meaning.

    python train/reproduce.py --study=figure4 --data_dir=cifar100.npz --output_dir=runs/figure4 --run=runs/kd

The run is a finished one of train/cifar100.py with a teacher. Computes the logits of both networks for the unaugmented
training examples and writes `resemblance.csv` (the matrix), `resemblance.md` and `resemblance.png` to --output_dir. On
CIFAR-100 the matrix is compared with the superclasses and, if nltk and its WordNet are installed, with similarities of
the nouns. It takes seconds to minutes: one forward pass of each network.
"""

import pathlib

import matplotlib
import numpy as np
from absl import flags

from keras_wsl.analysis.class_affinity import class_affinity, group_means, rank_correlation
from keras_wsl.files import make_directory
from keras_wsl.training import artifacts, plots
from reproduction import launcher, semantics
from reproduction.markdown import format_table

matplotlib.use("Agg")

from matplotlib import pyplot as plt

from keras_wsl.training.build_losses import build_main_losses


def get_temperature(pair, folder, temperature):
    """Return the temperature of the comparison: the argument, or the run's.

    Raises:
        ValueError: If the run has none.
    """
    if temperature:
        return temperature
    losses = build_main_losses(pair.config, pair.examples)
    for loss in losses:
        if getattr(loss, "temperature", None):
            return loss.temperature
    raise ValueError(f"{folder}: --method={pair.config.method} has no temperature. Pass --temperature.")


def order_by_superclass(classes):
    """Return positions of the classes by superclass, and their superclasses, or `None` if they are not CIFAR-100's."""
    try:
        groups = semantics.superclasses(classes)
    except ValueError:
        return np.arange(len(classes)), None
    return np.argsort(groups, kind="stable"), groups


def compare_similarities(matrix, classes, groups):
    """Return rows of rank correlations with similarities of meaning, and texts on failed comparisons."""
    similarities, missing = {}, []
    if groups is None:
        return [], ["The classes are not CIFAR-100's, so there are no superclasses to compare with."]
    similarities["same superclass"] = semantics.superclass_similarity(classes)
    for measure in ("wup", "lch"):
        try:
            similarities[f"WordNet, {measure.upper()}"] = semantics.wordnet_similarity(classes, measure)
        except (ImportError, LookupError, OSError) as error:
            missing.append(f"WordNet, {measure.upper()}, was not compared. {error}")
    rows = []
    for name, similarity in similarities.items():
        correlation = rank_correlation(matrix, similarity)
        rows.append({"similarity": name, "Spearman": f"{correlation.spearman:+.3f}", "pairs": correlation.pairs})
    return rows, missing


def closest_pairs(matrix, classes, count=20):
    """Yield rows of the pairs of classes that are drawn together most."""
    off = np.where(np.eye(len(matrix), dtype=bool) | ~np.isfinite(matrix), np.inf, matrix)
    count = min(count, int(np.isfinite(off).sum()))
    for position in np.argsort(off, axis=None, kind="stable")[:count]:
        c, k = np.unravel_index(position, off.shape)
        yield {"class": classes[c], "towards": classes[k], "gradient": f"{off[c, k]:+.4f}"}


def plot(matrix, classes, order, title, path):
    """Plot the matrix, red if a class is drawn to another; the diagonal, which is far larger, is left out."""
    shown = matrix[np.ix_(order, order)].copy()
    np.fill_diagonal(shown, np.nan)
    few = len(classes) <= 20
    figure, axis = plt.subplots(figsize=(6.4, 5.4) if few else (12, 10.6), layout="constrained")
    limit = np.nanmax(np.abs(shown)) or 1.0
    # Most entries are close to zero: a linear scale would show a few points on white.
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
    """Return the text of the page."""
    settings, classes = pair.config, pair.examples.classes
    text = (
        "# Figure 4: which classes soft labels draw together\n\n"
        f"Made by `train/reproduce.py --study=figure4` from the run `{pathlib.Path(folder).name}`: {settings.teacher} "
        f"to {settings.student}, {settings.method}, over {len(pair.examples)} examples, without crops and flips. "
        "Entries are "
        f"the mean gradients of KD's loss minus the labels' at temperature {temperature:g}: a negative one draws a "
        "class towards another. With a negative rank correlation, classes similar in meaning are drawn together.\n\n"
    )
    if rows:
        means = group_means(matrix, groups)
        text += (
            f"{format_table(rows, tuple(rows[0]))}\nMean entry within a superclass {means.within:+.5f}, between "
            f"superclasses {means.between:+.5f}.\n\n"
        )
    text += "".join(f"{line}\n\n" for line in missing)
    pairs = list(closest_pairs(matrix, classes))
    return text + f"{format_table(pairs, tuple(pairs[0]))}\n![Resemblance of classes](resemblance.png)\n"


def run(folder, values):
    """Write the three files of one run.

    Raises:
        FileNotFoundError: If there is no finished run, or a file of it or of the data is missing.
        ValueError: If the run has no teacher or no temperature.
    """
    if not values.output_dir:
        raise ValueError("--output_dir is missing: pass a directory for the files, such as --output_dir=runs/figure4.")
    pair = launcher.load_logits(folder, launcher.load_splits(values.data_dir), values.split)
    temperature = get_temperature(pair, folder, values.temperature)
    logits = {"student_logits": pair.student_logits, "teacher_logits": pair.teacher_logits}
    matrix = class_affinity(pair.examples.labels, **logits, temperature=temperature)
    classes, out = pair.examples.classes, pathlib.Path(values.output_dir)
    order, groups = order_by_superclass(classes)
    rows, missing = compare_similarities(matrix, classes, groups)
    make_directory(out)
    artifacts.write_csv(
        out / "resemblance.csv", [{"class": name, **dict(zip(classes, row))} for name, row in zip(classes, matrix)]
    )
    artifacts.write_text(out / "resemblance.md", markdown(folder, pair, temperature, rows, missing, groups, matrix))
    title = f"{pair.config.teacher} to {pair.config.student}, {pair.config.method}, τ = {temperature:g}"
    plot(matrix, classes, order, title, out / "resemblance.png")


def define_flags():
    """Define the flags of this study."""
    flags.DEFINE_string("run", None, "Directory of the run.", required=True)
    flags.DEFINE_string("data_dir", None, "See cifar100.py; or digits, those of scikit-learn.", required=True)
    flags.DEFINE_string("output_dir", "", "Directory of the files; made if it is missing.")
    flags.DEFINE_enum("split", "train", ["train", "test"], "Which examples.")
    flags.DEFINE_float("temperature", None, "Temperature of the soft labels; by default the run's.", lower_bound=0.0)


def main():
    """Write the three files."""
    run(flags.FLAGS.run, flags.FLAGS)
