"""Bias and variance of students trained on labels, with KD and with WSL, from trained ensembles.

    python train/reproduce.py --study=bias_variance --flagfile=train/configs/digits/bias_variance_digits.flags \
        --output_dir=runs/bias_variance

The decomposition is over the draw D of the training set. Member i of each ensemble has seed i and draws a stratified
sample of --max_train_examples examples from a pool; member i of the other ensembles draws the same ones. The teacher is
trained once, on --teacher_examples that are not in the pool. All networks are evaluated on the test set.

Each member is a run of `train/cifar100.py` in a process of its own. If it is stopped, the same command resumes it.
`bias_variance.npz` in --output_dir has the log-probabilities; `bias_variance.csv`, `bias_variance_compared.csv`,
`bias_variance.md` and `bias_variance.png` are written to --results.
"""

import dataclasses
import pathlib

import keras
import matplotlib
import numpy as np
from absl import flags
from scipy.special import log_softmax

from keras_wsl import data, untrusted
from keras_wsl.analysis.bias_variance import TERMS, bias_variance, compare, intervals, standard_errors
from keras_wsl.files import atomic_write, make_directory
from keras_wsl.models.weights import read_network
from keras_wsl.training import artifacts, config, plots
from reproduction import launcher
from reproduction.markdown import format_table

matplotlib.use("Agg")

from matplotlib import pyplot as plt

RESULT = ("student", "teacher", "train_examples", "seconds", "device")  # Fields of members' results that are used.
METHODS = {"labels": "none", "KD": "kd", "WSL": "wsl"}
PAIRS = (("labels", "KD"), ("labels", "WSL"), ("KD", "WSL"))


def prepare(out, data_dir, teacher_examples):
    """Write `teacher.npz`, on which the teacher is trained, and `pool.npz`, from which members draw.

    Args:
        out: Path of a directory, made if it is missing.
        data_dir: The data. See `launcher.load_splits`.
        teacher_examples: Integer, number of the teacher's examples.

    Returns:
        `(pool, test)`, the examples from which members draw, and those of the evaluation.

    Raises:
        ValueError: If the directory was made from other data.
    """
    path, settings = out / "data.json", {"data": pathlib.Path(data_dir).name, "teacher_examples": teacher_examples}
    files = out / "pool.npz", out / "teacher.npz"
    if path.exists():
        if (there := untrusted.read_json(path)) != settings:
            raise ValueError(
                f"--output_dir={out} holds ensembles of {there}. Received: {settings}. Choose another --output_dir."
            )
        return data.load_npz(files[0])
    splits = launcher.load_splits(data_dir)
    pool, for_teacher = splits.train.stratified_split(teacher_examples, seed=0)
    for file, train in zip(files, (pool, for_teacher)):
        data.save_npz(data.Splits(train, splits.test), file)
    artifacts.write_json(path, settings)
    return data.Splits(pool, splits.test)


def make_teacher_config(settings):
    """Return the `Config` of the teacher, which trains like members, on all examples of `teacher.npz`."""
    changes = {"student": settings.teacher, "max_train_examples": 0, "seed": 0, **config.WITHOUT_TEACHER}
    return dataclasses.replace(settings, **changes)


def make_member_configs(settings, method, members, weights):
    """Return the `Config` of each member of an ensemble; the seed selects its `max_train_examples` of the pool."""
    changes = {"method": method, "teacher": settings.teacher, "teacher_weights": str(weights)}
    if method == "none":
        changes = config.WITHOUT_TEACHER
    return [dataclasses.replace(settings, seed=seed, **changes) for seed in range(members)]


def compute_log_probs(path, test, batch_size):
    r"""Return $\log p$ of a trained network for the test set: float64, shape `(examples, classes)`."""
    logits = launcher.compute_logits(read_network(path), test, batch_size).astype("float64")
    keras.backend.clear_session()  # Dozens of networks are read one after the other.
    return log_softmax(logits, axis=-1)


def make_row(name, ensemble, labels, results):
    """Return the decomposition of an ensemble, and its row of `bias_variance.csv`."""
    decomposition = bias_variance(labels, ensemble)
    terms = np.stack([getattr(decomposition, term) for term in TERMS], axis=-1)
    row = {"method": name, "n": decomposition.runs}
    for term, interval in zip(TERMS, intervals(terms)):
        row |= {term: interval.mean, f"{term}_low": interval.low, f"{term}_high": interval.high}
    accuracies = (ensemble.argmax(-1) == labels).mean(-1)
    first = results[0]
    return decomposition, {
        **row,
        "accuracy_mean": float(accuracies.mean()),
        "accuracy_std": float(accuracies.std(ddof=1)),
        "student": first["student"],
        "teacher": first["teacher"] or "",
        "teacher_accuracy": first.get("teacher_accuracy", ""),
        "train_examples": first["train_examples"],
        "test_examples": len(labels),
        "seconds": round(sum(result["seconds"] for result in results), 1),
        "device": first["device"],
        "backend": first["backend"],
        "commit": " ".join(sorted({str(result["commit"]) for result in results})),
        "flags": " ".join(line for line in first["config"] if not line.startswith(("--seed", "--teacher_weights"))),
    }


def compare_methods(decompositions, log_probs, labels):
    """Return a row for each pair of methods and each term: the second's minus the first's.

    Args:
        decompositions: Dict of each method to its decomposition.
        log_probs: Dict of each method to its log-probabilities.
        labels: Labels of the test set.
    """
    rows = []
    for first, second in PAIRS:
        over_draws = {}
        if len(log_probs[first]) > 2:
            over_draws = standard_errors(labels, labels_only=log_probs[first], distilled=log_probs[second])
        for term, interval in compare(labels_only=decompositions[first], distilled=decompositions[second]).items():
            if term == "noise":  # That of the labels, the same for all methods.
                continue
            row = {"term": term, "of": second, "minus": first, **interval._asdict(), "is": _side(interval)}
            rows.append({**row, "standard_error_over_draws": over_draws.get(term, "")})
    return rows


def _number(value):
    return f"{value:.4f}" if value != "" else ""


def _side(interval):
    if interval.high < 0:
        return "lower"
    return "higher" if interval.low > 0 else "not significantly different"


def markdown(rows, differences, pool, shared):
    """Return the text of the page."""
    shown = [
        {
            "method": row["method"],
            "members": row["n"],
            **{term: f"{row[term]:.4f}" for term in TERMS},
            "accuracy, %": f"{100 * row['accuracy_mean']:.2f} ± {100 * row['accuracy_std']:.2f}",
        }
        for row in rows
    ]
    changes = [
        {
            "term": row["term"],
            "difference": f"{row['of']} - {row['minus']}",
            "nats": f"{row['mean']:+.4f}",
            "95 % interval": f"{row['low']:+.4f} to {row['high']:+.4f}",
            "over examples": row["is"],
            "standard error over draws": _number(row["standard_error_over_draws"]),
        }
        for row in differences
    ]
    verdicts = {"lower": "holds", "higher": "does not hold", "not significantly different": "is not decided"}
    by_pair = {(row["of"], row["minus"], row["term"]): row for row in differences}
    findings = ""
    for name in ("KD", "WSL"):
        variance, bias = (by_pair[name, "labels", term] for term in ("variance", "bias"))
        findings += (
            f"- {name}: variance {variance['is']} ({variance['mean']:+.4f} nats), so assumption 1 "
            f"{verdicts[variance['is']]}; bias {bias['is']} ({bias['mean']:+.4f} nats).\n"
        )
    last, n = rows[-1], rows[0]["n"]
    return (
        "# Bias and variance over draws of the training set\n\n"
        "Made by `train/reproduce.py --study=bias_variance`; `bias_variance.csv` has the rows with flags and commit, "
        "`bias_variance_compared.csv` the differences.\n\n"
        f"{n} members per method. Each has a seed of its own and draws a stratified sample of {last['train_examples']} "
        f"of a pool of {pool} training examples; member i draws the same examples in each ensemble. The teacher "
        f"({last['teacher']}, accuracy {100 * last['teacher_accuracy']:.2f} %) is trained once, on examples that "
        f"are not in the pool. Values are nats per example, over {last['test_examples']} test examples; accuracies "
        f"are mean and standard deviation over the members.\n\n{format_table(shown, tuple(shown[0]))}\n"
        "Differences have an interval from a bootstrap over the test examples, for fixed members, and the jackknife's "
        f"standard error over the members, which reflects the draw of the training sets. The draws from one pool "
        f"overlap, and {n} members are few: both make the variance smaller than over independent training sets, for "
        "all methods. The teacher was trained on examples that members do not have, which may lower the bias of its "
        "students.\n\n"
        f"{format_table(changes, tuple(changes[0]))}\n"
        "Assumption 1 of the paper is that the variance with a teacher is not larger than on labels alone; it expects "
        f"the bias to be larger.\n\n{findings}\n"
        f"Flags that all members share: `{' '.join(shared)}`\n\n![Bias and variance](bias_variance.png)\n"
    )


def plot(rows, differences, path):
    """Plot bias and variance by method, stacked, and the differences between methods."""
    figure, (bars, changes) = plt.subplots(1, 2, figsize=(9.5, 3.8), layout="constrained", width_ratios=(3, 4))
    x = np.arange(len(rows))
    bottom = np.zeros(len(rows))
    for i, term in enumerate(("noise", "bias", "variance")):
        height = np.array([row[term] for row in rows])
        if not height.any():
            continue
        ends = np.array([[row[term] - row[f"{term}_low"], row[f"{term}_high"] - row[term]] for row in rows]).T
        color = ("0.7", "C0", "C1")[i]
        bars.bar(x, height, 0.6, bottom=bottom, color=color, label=term)
        # Shifted, because the ends of a stack are close to each other.
        bars.errorbar(x + 0.12 * (i - 1.5), bottom + height, ends, fmt="none", ecolor="black", capsize=3, lw=1)
        bottom += height
    accuracies = (f"{100 * row['accuracy_mean']:.1f} ± {100 * row['accuracy_std']:.1f} %" for row in rows)
    bars.set_xticks(x, [f"{row['method']}\n{accuracy}" for row, accuracy in zip(rows, accuracies)])
    bars.set(ylabel="nats per example", title=f"cross-entropy of {rows[0]['n']} members, test set")
    bars.legend(fontsize="small")
    bars.grid(axis="y", alpha=0.3)
    for y, row in enumerate(reversed(differences)):
        color = {"error": "0.3", "bias": "C0", "variance": "C1"}[row["term"]]
        ends = [[row["mean"] - row["low"]], [row["high"] - row["mean"]]]
        changes.errorbar(row["mean"], y, xerr=ends, fmt="o", color=color, capsize=3)
    names = [f"{row['term']}: {row['of']} - {row['minus']}" for row in reversed(differences)]
    changes.set_yticks(range(len(names)), names, fontsize="small")
    changes.axvline(0, color="0.5", lw=1)
    changes.set(xlabel="nats per example", title="differences, 95 % over test examples")
    changes.grid(axis="x", alpha=0.3)
    plots.save(figure, path)
    plt.close(figure)


def run(settings, values):
    """Train the pending runs and write the files.

    Raises:
        ValueError: If the settings do not fit, a run failed, or --output_dir holds other ensembles.
    """
    if not values.output_dir or not settings.teacher:
        raise ValueError(
            "--output_dir and --teacher are needed: a folder for the runs, and the name of the teacher's network."
        )
    out, results = pathlib.Path(values.output_dir), pathlib.Path(values.results)
    make_directory(out)
    pool, test = prepare(out, values.data_dir, values.teacher_examples)
    if not 0 < settings.max_train_examples < len(pool):
        raise ValueError(
            f"--max_train_examples={settings.max_train_examples} must be positive and below the {len(pool)} examples "
            "from which members draw, because with all of them each would have the same training set."
        )
    launcher.train_all({out / "teacher": make_teacher_config(settings)}, out / "teacher.npz")
    ensembles, weights = {}, out / "teacher" / "student.keras"
    for name, method in METHODS.items():
        members = make_member_configs(settings, method, values.members, weights)
        ensembles[name] = {out / f"{method}-{member.seed:02}": member for member in members}
    launcher.train_all(
        {k: v for runs in ensembles.values() for k, v in runs.items()}, out / "pool.npz", jobs=values.jobs
    )
    log_probs, decompositions, rows = {}, {}, []
    for name, runs in ensembles.items():
        paths = [folder / "student.keras" for folder in runs]
        log_probs[name] = np.stack([compute_log_probs(path, test, settings.eval_batch_size) for path in paths])
        finished = [artifacts.read_result(folder, *RESULT) for folder in runs]
        decompositions[name], row = make_row(name, log_probs[name], test.labels, finished)
        rows.append(row)
    atomic_write(
        out / "bias_variance.npz", lambda file: np.savez_compressed(file, test_labels=test.labels, **log_probs)
    )
    differences = compare_methods(decompositions, log_probs, test.labels)
    shared = sorted(set.intersection(*(set(row["flags"].split()) for row in rows)))
    artifacts.write_csv(results / "bias_variance.csv", rows)
    artifacts.write_csv(results / "bias_variance_compared.csv", differences)
    artifacts.write_text(results / "bias_variance.md", markdown(rows, differences, len(pool), shared))
    plot(rows, differences, results / "bias_variance.png")


def define_flags(flag_values=flags.FLAGS):
    """Define the flags of a run of cifar100.py and those of this study."""
    own = {"flag_values": flag_values}
    launcher.define_flags("the files that are named bias_variance", data_dir=launcher.DIGITS, **own)
    flags.DEFINE_integer("members", 10, "Members of each ensemble.", lower_bound=2, **own)
    flags.DEFINE_integer("teacher_examples", 447, "Training examples of the teacher.", lower_bound=1, **own)


def main():
    """Train the pending runs and write the files."""
    run(config.from_flags(flags.FLAGS), flags.FLAGS)
