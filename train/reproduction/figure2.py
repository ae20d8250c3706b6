"""Figure 2 of the WSL paper: regularization samples by epoch at three temperatures, with two kinds of teacher.

    python train/reproduce.py --study=figure2 --flagfile=train/configs/cifar100/figure2_cpu.flags \
        --data_dir=cifar100.npz --output_dir=runs/figure2

Trains two teachers, one of them with label smoothing, and a KD student of each at every temperature. Each run is
`train/cifar100.py` in a process of its own. If it is stopped, the same command resumes it. Writes `figure2.csv` (a row
per epoch), `figure2_runs.csv`, `figure2_classes.csv` (the last epoch's counts per class), `figure2.md`, which compares
with the paper's table 1, and `figure2.png` to --results. It takes about an hour on two CPU cores.
"""

import dataclasses
import itertools
import pathlib

import matplotlib
from absl import flags

from keras_wsl.training import artifacts, config, plots
from reproduction import launcher
from reproduction.markdown import format_table
from reproduction.paper_results import COUNTS, EXAMPLES
from reproduction.run_store import RunRecord

matplotlib.use("Agg")

from matplotlib import pyplot as plt

TEACHERS = {False: "labels", True: "smoothed labels"}
PANELS = (("training batches", "training_samples"), ("clean training examples", "probe_samples"))


def plan_runs(settings, out, temperatures, smoothing):
    """Return the runs of teachers and students.

    Returns:
        Dict of directories to the teachers' `Config`, and dict of `(temperature, smoothed)` to the directory and the
        `Config` of a student.
    """
    teachers, students = {}, {}
    alone = dataclasses.replace(settings, student=settings.teacher, **config.WITHOUT_TEACHER)
    for smoothed in TEACHERS:
        folder = out / ("teacher-smoothed" if smoothed else "teacher")
        teachers[folder] = dataclasses.replace(alone, label_smoothing=smoothing if smoothed else 0.0)
        for temperature in temperatures:
            student = dataclasses.replace(
                settings,
                method="kd",
                temperature=temperature,
                label_smoothing=0.0,
                teacher_weights=str(folder / "student.keras"),
            )
            name = f"kd-{temperature:g}-smoothed" if smoothed else f"kd-{temperature:g}"
            students[temperature, smoothed] = out / name, student
    return teachers, students


def epoch_rows(record, temperature, smoothed):
    """Return rows of `figure2.csv`: one run's counts by epoch, over training batches and clean examples."""
    probe = {int(row["epoch"]): row for row in record.clean_counts}
    return [
        {
            "temperature": temperature,
            "teacher": TEACHERS[smoothed],
            "epoch": int(row["epoch"]),
            "training_samples": round(row["regularization_samples"]),
            "training_share": row["regularization_sample_rate"],
            "probe_samples": round(probe[int(row["epoch"])]["regularization_samples"]),
            "probe_examples": round(probe[int(row["epoch"])]["examples"]),
            "test_accuracy": row.get("val_accuracy"),
        }
        for row in record.epochs
    ]


def class_rows(record, temperature, smoothed, names):
    """Return rows of `figure2_classes.csv`: the clean counts of each class after the last epoch."""
    last = record.clean_counts[-1]
    shared = {"temperature": temperature, "teacher": TEACHERS[smoothed], "epoch": int(last["epoch"])}
    return [{**shared, "class": name, "samples": round(last[f"class_{c}"])} for c, name in enumerate(names)]


def markdown(last, runs, classes, teachers, data_name):
    """Return the text of the page.

    Args:
        last: Dict of `(temperature, smoothed)` to the last row of `epoch_rows`.
        runs: Likewise, to `RunRecord.row`.
        classes: Likewise, to the rows of `class_rows`.
        teachers: Dict of whether the labels were smoothed to that teacher's accuracy.
        data_name: Name of the data set.
    """
    lines = []
    for (temperature, smoothed), row in last.items():
        count, accuracy = COUNTS.get((temperature, smoothed), (None, None))
        lines.append(
            {
                "temperature": f"{temperature:g}",
                "teacher trained on": TEACHERS[smoothed],
                "teacher's accuracy, %": f"{100 * teachers[smoothed]:.2f}",
                "regularization samples": row["training_samples"],
                "rate, %": f"{100 * row['training_share']:.1f}",
                "clean rate, %": f"{100 * row['probe_samples'] / row['probe_examples']:.1f}",
                "accuracy, %": f"{100 * row['test_accuracy']:.2f}",
                "paper: rate, %": f"{100 * count / EXAMPLES:.1f}" if count else "",
                "paper: accuracy, %": f"{accuracy:.2f}" if accuracy else "",
            }
        )
    changes = ""
    for temperature in sorted({temperature for temperature, _ in last}):
        if not all((temperature, kind) in last for kind in TEACHERS):
            continue
        plain, smoothed = (last[temperature, kind] for kind in TEACHERS)
        more = 100 * (smoothed["training_share"] - plain["training_share"])
        better = 100 * (smoothed["test_accuracy"] - plain["test_accuracy"])
        changes += (
            f"- Temperature {temperature:g}: {more:+.1f} points of regularization samples, {better:+.2f} of accuracy.\n"
        )
    most = ""
    for (temperature, smoothed), rows in classes.items():
        first = sorted(rows, key=lambda row: -row["samples"])[:5]
        listed = ", ".join(f"{row['class']} {row['samples']}" for row in first)
        most += f"- Temperature {temperature:g}, teacher trained on {TEACHERS[smoothed]}: {listed}\n"
    shared = sorted(set.intersection(*(set(row["flags"].split()) for row in runs.values())))
    first = next(iter(runs.values()))
    return (
        "# Figure 2: regularization samples\n\n"
        f"{first['teacher']} to {first['student']}, {first['train_examples']} training examples of {data_name}, "
        f"{first['epochs']} epochs, one run each. "
        "Made by `train/reproduce.py`; `figure2_runs.csv` has the runs with flags and commit. Counts of "
        "the last epoch: over its augmented training batches, with the student in training mode; and (clean) over "
        "unaugmented training examples, in inference mode. The paper does not state which of the two it counts; its "
        "numbers are for WRN-40-2 to WRN-16-2 on all 50,000 examples of CIFAR-100.\n\n"
        f"{format_table(lines, tuple(lines[0]))}\n"
        "The paper finds more regularization samples and a lower accuracy with a teacher of smoothed labels. Here, "
        f"such a teacher minus the other:\n\n{changes}\n"
        f"Classes with most clean regularization samples:\n\n{most}\n"
        f"Flags that all students share: `{' '.join(shared)}`\n\n![Regularization samples](figure2.png)\n"
    )


def plot(rows, path):
    """Plot counts by epoch, with a color per temperature; dashed for the teacher trained on smoothed labels."""
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 4.2), layout="constrained")
    temperatures = sorted({row["temperature"] for row in rows})
    for axis, (heading, name) in zip(axes, PANELS):
        for (i, temperature), (style, teacher) in itertools.product(
            enumerate(temperatures), zip("o^", TEACHERS.values())
        ):
            line = [row for row in rows if (row["temperature"], row["teacher"]) == (temperature, teacher)]
            axis.plot(
                [row["epoch"] for row in line],
                [row[name] for row in line],
                "-" if style == "o" else "--",
                color=f"C{i}",
                marker=style if len(line) < 20 else None,
                markersize=4,
                label=f"τ = {temperature:g}, teacher trained on {teacher}",
            )
        examples = rows[-1]["probe_examples"] if name == "probe_samples" else None
        axis.set(
            title=heading + (f" of {examples}" if examples else ""), xlabel="epoch", ylabel="regularization samples"
        )
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize="x-small", loc="outside lower center", ncols=3)
    plots.save(figure, path)
    plt.close(figure)


def write(students, teachers, names, results, data_name):
    """Write the five files.

    Args:
        students: Dict of `(temperature, smoothed)` to the `RunRecord` of the finished run.
        teachers: Dict of whether the labels were smoothed to the accuracy of that teacher.
        names: Names of the classes.
        results: Directory of the files.
        data_name: Name of the data set.
    """
    results = pathlib.Path(results)
    epochs = {key: epoch_rows(record, *key) for key, record in students.items()}
    classes = {key: class_rows(record, *key, names) for key, record in students.items()}
    runs = {key: record.row for key, record in students.items()}
    rows = list(itertools.chain(*epochs.values()))
    artifacts.write_csv(results / "figure2.csv", rows)
    artifacts.write_csv(results / "figure2_runs.csv", list(runs.values()))
    artifacts.write_csv(results / "figure2_classes.csv", list(itertools.chain(*classes.values())))
    last = {key: lines[-1] for key, lines in epochs.items()}
    artifacts.write_text(results / "figure2.md", markdown(last, runs, classes, teachers, data_name))
    plot(rows, results / "figure2.png")


def run(settings, values):
    """Train the pending runs and write the files.

    Raises:
        ValueError: If the settings do not fit, a run failed, or a directory holds a run with other settings.
    """
    if not values.output_dir or not settings.teacher:
        raise ValueError(
            "--output_dir and --teacher are needed: a folder for the runs, and the name of the teacher's network."
        )
    temperatures = config.parse_floats("temperatures", values.temperatures)
    out, data_dir = pathlib.Path(values.output_dir), values.data_dir
    splits = launcher.load_splits(data_dir)  # First, so that missing data are noticed.
    data_dir = launcher.prepare_data(data_dir, out)
    teachers, students = plan_runs(settings, out, temperatures, values.smoothing)
    launcher.train_all(teachers, data_dir, jobs=values.jobs)
    launcher.train_all(dict(students.values()), data_dir, jobs=values.jobs)
    records = {key: RunRecord.read(folder) for key, (folder, _) in students.items()}
    accuracies = {smoothed: RunRecord.read(folder).row["test_accuracy"] for smoothed, folder in zip(TEACHERS, teachers)}
    write(records, accuracies, splits.train.classes, values.results, pathlib.Path(values.data_dir).stem)


def define_flags(flag_values=flags.FLAGS):
    """Define the flags of a run of cifar100.py and those of this study."""
    own = {"flag_values": flag_values}
    launcher.define_flags("the files that are named figure2", **own)
    flags.DEFINE_list("temperatures", ["2", "4", "6"], "Temperatures of the students.", **own)
    flags.DEFINE_float("smoothing", 0.1, "Label smoothing of the second teacher.", lower_bound=0.0, **own)


def main():
    """Train the pending runs and write the files."""
    run(config.from_flags(flags.FLAGS), flags.FLAGS)
