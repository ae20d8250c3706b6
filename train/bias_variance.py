"""Bias and variance of students on labels, with KD and with WSL, from ensembles that are really trained.

    python train/bias_variance.py --flagfile=train/configs/digits/bias_variance_digits.flags
    --output_dir=runs/bias_variance

The decomposition is over the draw D of the training set. So member i of each ensemble has seed i and draws
--max_train_examples examples of its own, every class alike, from a pool; member i of the next ensemble draws the same
ones. The teacher is trained once, on --teacher_examples that are not in the pool, and stays. All judge the test set.

Each member is `train/cifar100.py` in a process of its own; stopped and started again it goes on, and finished members
are kept. `bias_variance.npz` in --output_dir has the log-probabilities; `bias_variance.csv`,
`bias_variance_compared.csv`, `bias_variance.md` and `bias_variance.png` are written to --results.
"""

import dataclasses
import pathlib

import before_tensorflow  # noqa: F401
import keras
import matplotlib
import numpy as np
from absl import flags
from scipy.special import log_softmax

import jobs
import report
from keras_wsl import data, untrusted
from keras_wsl.analysis.bias_variance import TERMS, bias_variance, compare, intervals, standard_errors
from keras_wsl.files import atomic_write, make_directory
from keras_wsl.models.weights import read_network
from keras_wsl.training import artifacts, cli, config, plots

matplotlib.use("Agg")

from matplotlib import pyplot as plt

RESULT = ("student", "teacher", "train_examples", "seconds", "device")  # What is read of members' results.
METHODS = {"labels": "none", "KD": "kd", "WSL": "wsl"}
PAIRS = (("labels", "KD"), ("labels", "WSL"), ("KD", "WSL"))


def prepare(out, data_dir, teacher_examples):
    """Writes `teacher.npz`, on which the teacher is trained, and `pool.npz`, from which members draw.

    Args:
        out: Folder, made if it is missing.
        data_dir: As of cifar100.py, or `"digits"`.
        teacher_examples: Integer, how many examples are the teacher's.

    Returns:
        `(pool, test)`, the examples from which members draw, and those by which all are judged.

    Raises:
        ValueError: The folder was made of other data.
    """
    path, wanted = out / "data.json", {"data": pathlib.Path(data_dir).name, "teacher_examples": teacher_examples}
    files = out / "pool.npz", out / "teacher.npz"
    if path.exists():
        if (there := untrusted.read_json(path)) != wanted:
            raise ValueError(
                f"{out} holds ensembles of {there}, and {wanted} is asked for. Choose another --output_dir."
            )
        return data.load_npz(files[0])
    splits = jobs.splits_of(data_dir)
    pool, own = splits.train.stratified_split(teacher_examples, seed=0)
    for file, train in zip(files, (pool, own)):
        data.save_npz(data.Splits(train, splits.test), file)
    artifacts.write_json(path, wanted)
    return data.Splits(pool, splits.test)


def teacher_of(wanted):
    """The settings of the teacher, which trains as members do, on all that is its own."""
    return dataclasses.replace(wanted, student=wanted.teacher, max_train_examples=0, seed=0, **config.WITHOUT_TEACHER)


def members_of(wanted, method, members, weights):
    """The settings of an ensemble's members: with another seed, `max_train_examples` takes another part of the pool."""
    taught = {"method": method, "teacher": wanted.teacher, "teacher_weights": str(weights)}
    if method == "none":
        taught = config.WITHOUT_TEACHER
    return [dataclasses.replace(wanted, seed=seed, **taught) for seed in range(members)]


def log_probs(path, test, batch_size):
    r"""$\log p$ of a trained network for the test set: float64, shape `(examples, classes)`."""
    logits = jobs.logits(read_network(path), test, batch_size).astype("float64")
    keras.backend.clear_session()  # Dozens of networks are read one after the other.
    return log_softmax(logits, axis=-1)


def row_of(name, ensemble, labels, results):
    """The decomposition of an ensemble, and its row of `bias_variance.csv`: totals with intervals, and accuracies."""
    found = bias_variance(labels, ensemble)
    terms = np.stack([getattr(found, term) for term in TERMS], axis=-1)
    row = {"method": name, "n": found.runs}
    for term, interval in zip(TERMS, intervals(terms)):
        row |= {term: interval.mean, f"{term}_low": interval.low, f"{term}_high": interval.high}
    accuracies = (ensemble.argmax(-1) == labels).mean(-1)
    first = results[0]
    return found, {
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


def compared(found, said, labels):
    """A row for each pair of methods and each term: the second's minus the first's.

    Args:
        found: Dict of each method to its decomposition.
        said: Dict of each method to its log-probabilities.
        labels: Those of the test set.
    """
    rows = []
    for one, other in PAIRS:
        over_draws = standard_errors(labels, labels_only=said[one], distilled=said[other]) if len(said[one]) > 2 else {}
        for term, interval in compare(labels_only=found[one], distilled=found[other]).items():
            if term == "noise":  # The labels' own: the same for all.
                continue
            row = {"term": term, "of": other, "minus": one, **interval._asdict(), "is": _side(interval)}
            rows.append({**row, "standard_error_over_draws": over_draws.get(term, "")})
    return rows


def _number(value):
    return f"{value:.4f}" if value != "" else ""


def _side(interval):
    if interval.high < 0:
        return "lower"
    return "higher" if interval.low > 0 else "not told apart"


def markdown(rows, differences, pool, shared):
    """What was done, the tables, and how assumption 1 fares."""
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
    verdicts = {"lower": "holds", "higher": "does not hold", "not told apart": "is not decided"}
    by_pair = {(row["of"], row["minus"], row["term"]): row for row in differences}
    said = ""
    for name in ("KD", "WSL"):
        variance, bias = (by_pair[name, "labels", term] for term in ("variance", "bias"))
        said += (
            f"- {name}: variance {variance['is']} ({variance['mean']:+.4f} nats), so assumption 1 "
            f"{verdicts[variance['is']]}; bias {bias['is']} ({bias['mean']:+.4f} nats).\n"
        )
    taught, n = rows[-1], rows[0]["n"]
    return (
        "# Bias and variance over draws of the training set\n\n"
        "Made by `train/bias_variance.py`; `bias_variance.csv` has the rows with flags and commit, "
        "`bias_variance_compared.csv` the differences.\n\n"
        f"{n} members a method. Each draws {taught['train_examples']} of a pool of {pool} training examples, every "
        "class alike, and has a seed of its own; member i draws the same examples in each ensemble. The teacher "
        f"({taught['teacher']}, accuracy {100 * taught['teacher_accuracy']:.2f} %) is trained once, on examples that "
        f"are not in the pool. Nats an example, over {taught['test_examples']} test examples; accuracies are mean and "
        f"standard deviation of the members.\n\n{report.markdown(shown, tuple(shown[0]))}\n"
        "Differences, with a bootstrap over the test examples, the members kept; and the jackknife's standard error "
        f"over the members, which is about the draw of the training sets. Draws from one pool overlap, and {n} members "
        "are few: both make the variance smaller than over fresh training sets without number, for all methods. The "
        "teacher knows examples that members never see, which may lower the bias of its students.\n\n"
        f"{report.markdown(changes, tuple(changes[0]))}\n"
        "Assumption 1 of the paper is that the variance with a teacher is not larger than on labels alone; it expects "
        f"the bias to be larger.\n\n{said}\n"
        f"Flags that all members share: `{' '.join(shared)}`\n\n![Bias and variance](bias_variance.png)\n"
    )


def plot(rows, differences, path):
    """Bias and variance, stacked, by method; and what a teacher changes."""
    figure, (bars, changes) = plt.subplots(1, 2, figsize=(9.5, 3.8), layout="constrained", width_ratios=(3, 4))
    x = np.arange(len(rows))
    bottom = np.zeros(len(rows))
    for i, term in enumerate(("noise", "bias", "variance")):
        height = np.array([row[term] for row in rows])
        if not height.any():
            continue
        ends = np.array([[row[term] - row[f"{term}_low"], row[f"{term}_high"] - row[term]] for row in rows]).T
        colour = ("0.7", "C0", "C1")[i]
        bars.bar(x, height, 0.6, bottom=bottom, color=colour, label=term)
        # Beside each other, because the two ends of a stack are near each other.
        bars.errorbar(x + 0.12 * (i - 1.5), bottom + height, ends, fmt="none", ecolor="black", capsize=3, lw=1)
        bottom += height
    accuracies = (f"{100 * row['accuracy_mean']:.1f} ± {100 * row['accuracy_std']:.1f} %" for row in rows)
    bars.set_xticks(x, [f"{row['method']}\n{accuracy}" for row, accuracy in zip(rows, accuracies)])
    bars.set(ylabel="nats an example", title=f"cross-entropy of {rows[0]['n']} members, test set")
    bars.legend(fontsize="small")
    bars.grid(axis="y", alpha=0.3)
    for y, row in enumerate(reversed(differences)):
        colour = {"error": "0.3", "bias": "C0", "variance": "C1"}[row["term"]]
        ends = [[row["mean"] - row["low"]], [row["high"] - row["mean"]]]
        changes.errorbar(row["mean"], y, xerr=ends, fmt="o", color=colour, capsize=3)
    names = [f"{row['term']}: {row['of']} - {row['minus']}" for row in reversed(differences)]
    changes.set_yticks(range(len(names)), names, fontsize="small")
    changes.axvline(0, color="0.5", lw=1)
    changes.set(xlabel="nats an example", title="differences, 95 % over test examples")
    changes.grid(axis="x", alpha=0.3)
    plots.save(figure, path)
    plt.close(figure)


def run(wanted, values):
    """Trains what is missing and writes the files.

    Raises:
        ValueError: The settings do not fit, a run failed, or --output_dir holds other ensembles.
    """
    if not values.output_dir or not wanted.teacher:
        raise ValueError(
            "--output_dir and --teacher are needed: a folder for the runs, and the name of the teacher's network."
        )
    out, results = pathlib.Path(values.output_dir), pathlib.Path(values.results)
    make_directory(out)
    pool, test = prepare(out, values.data_dir, values.teacher_examples)
    if not 0 < wanted.max_train_examples < len(pool):
        raise ValueError(
            f"--max_train_examples={wanted.max_train_examples} must be positive and below the {len(pool)} examples "
            "from which members draw: with all of them each would have the same training set."
        )
    jobs.train_all({out / "teacher": teacher_of(wanted)}, out / "teacher.npz")
    ensembles, weights = {}, out / "teacher" / "student.keras"
    for name, method in METHODS.items():
        members = members_of(wanted, method, values.members, weights)
        ensembles[name] = {out / f"{method}-{member.seed:02}": member for member in members}
    jobs.train_all({k: v for runs in ensembles.values() for k, v in runs.items()}, out / "pool.npz", jobs=values.jobs)
    said, found, rows = {}, {}, []
    for name, runs in ensembles.items():
        said[name] = np.stack([log_probs(folder / "student.keras", test, wanted.eval_batch_size) for folder in runs])
        finished = [artifacts.read_result(folder, *RESULT) for folder in runs]
        found[name], row = row_of(name, said[name], test.labels, finished)
        rows.append(row)
    atomic_write(out / "bias_variance.npz", lambda file: np.savez_compressed(file, test_labels=test.labels, **said))
    differences = compared(found, said, test.labels)
    shared = sorted(set.intersection(*(set(row["flags"].split()) for row in rows)))
    artifacts.write_csv(results / "bias_variance.csv", rows)
    artifacts.write_csv(results / "bias_variance_compared.csv", differences)
    artifacts.write_text(results / "bias_variance.md", markdown(rows, differences, len(pool), shared))
    plot(rows, differences, results / "bias_variance.png")


if __name__ == "__main__":
    jobs.define_flags("the files that are named bias_variance", data_dir=jobs.DIGITS)
    flags.DEFINE_integer("members", 10, "Members of each ensemble.", lower_bound=2)
    flags.DEFINE_integer("teacher_examples", 447, "Training examples that are the teacher's alone.", lower_bound=1)
    cli.start(lambda: run(config.from_flags(flags.FLAGS), flags.FLAGS))
