"""Online and offline distillation: the comparison of Harutyunyan et al., ICLR 2023, https://arxiv.org/abs/2301.12245.

    python train/reproduce.py --study=online_distillation \
        --flagfile=train/configs/studies/online_lenet5x8_cpu.flags --data_dir=cifar100.npz --output_dir=runs/online

Trains one teacher, which keeps its checkpoints, and students for each seed: on labels; offline, on the soft labels of
the trained teacher alone; online, on those of its checkpoint of the same epoch; the last two at each temperature. Each
run is `train/cifar100.py` in a process of its own. If it is stopped, the same command resumes it. Writes `online.csv`,
`online.md` and `online.png` to --results. `--table=online` is the same comparison with several seeds and tests.
"""

import dataclasses
import pathlib

import matplotlib
import numpy as np
from absl import flags

from keras_wsl.training import artifacts, config, plots
from reproduction import launcher
from reproduction.markdown import format_table
from reproduction.run_store import RunRecord

matplotlib.use("Agg")

from matplotlib import pyplot as plt


def plan_runs(settings, out, temperatures, seeds, **teacher_changes):
    """Return the runs of the teacher and the students.

    Args:
        settings: `Config` of the students.
        out: Path of the directory of the runs.
        temperatures: List of floats.
        seeds: Integer, number of students of each kind.
        **teacher_changes: Settings of the teacher that differ.

    Returns:
        Dict of the directory to the `Config` of the teacher, and dict of `(kind, temperature, seed)` to the directory
        and the `Config` of a student.
    """
    alone = config.WITHOUT_TEACHER
    folder = out / "teacher"
    teacher = {
        folder: dataclasses.replace(settings, **alone, **teacher_changes, student=settings.teacher, checkpoint_every=1)
    }
    # Soft labels alone, as in the paper: no labels, and a weight of 1.
    soft = {"method": "kd", "alpha": 1.0, "student_loss_weight": 0.0, "teacher_weights": str(folder / "student.keras")}
    students = {}
    for seed in range(seeds):
        students["labels", None, seed] = out / f"labels-{seed}", dataclasses.replace(settings, **alone, seed=seed)
        for temperature in temperatures:
            for kind in ("offline", "online"):
                changed = {**soft, "temperature": temperature, "online": kind == "online", "seed": seed}
                students[kind, temperature, seed] = (
                    out / f"{kind}-{temperature:g}-{seed}",
                    dataclasses.replace(settings, **changed),
                )
    return teacher, students


def table(rows):
    """Return a row per kind and temperature with mean and standard deviation of the final accuracy over seeds.

    Args:
        rows: Dict of `(kind, temperature, seed)` to `RunRecord.row`.
    """
    lines = []
    for kind, temperature in dict.fromkeys(key[:2] for key in rows):
        of_seeds = [100 * row["test_accuracy"] for key, row in rows.items() if key[:2] == (kind, temperature)]
        spread = f" ± {np.std(of_seeds, ddof=1):.2f}" if len(of_seeds) > 1 else ""
        lines.append(
            {
                "student": kind,
                "temperature": "" if temperature is None else f"{temperature:g}",
                "runs": str(len(of_seeds)),
                "test accuracy, %": f"{np.mean(of_seeds):.2f}{spread}",
            }
        )
    return lines


def plot(histories, path, title, eval_split):
    """Plot accuracy by epoch, the mean over seeds."""
    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    colors = {temperature: f"C{i}" for i, temperature in enumerate(dict.fromkeys(key[1] for key in histories))}
    styles = {"labels": "k-", "offline": "--", "online": "-"}
    for kind, temperature in dict.fromkeys(key[:2] for key in histories):
        series = [rows for key, rows in histories.items() if key[:2] == (kind, temperature)]
        evaluated = [[row for row in rows if "val_accuracy" in row] for rows in series]
        accuracy = np.mean([[100 * row["val_accuracy"] for row in rows] for rows in evaluated], axis=0)
        style = {} if kind == "labels" else {"color": colors[temperature]}
        label = kind if temperature is None else f"{kind}, τ = {temperature:g}"
        axis.plot([int(row["epoch"]) for row in evaluated[0]], accuracy, styles[kind], label=label, marker=".", **style)
    axis.set(title=title, xlabel="epoch", ylabel=f"accuracy on {eval_split}, %")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")
    plots.save(figure, path)
    plt.close(figure)


def run(settings, values):
    """Train the pending runs and write the files."""
    if not settings.teacher or not values.output_dir:
        raise ValueError("--teacher and --output_dir are needed: the teacher's network, and a directory for the runs.")
    temperatures = config.parse_floats("temperatures", values.temperatures)
    given = {"max_train_examples": values.teacher_train_limit, "learning_rate": values.teacher_learning_rate}
    teacher_changes = {name: value for name, value in given.items() if value is not None}
    teacher, students = plan_runs(
        settings, pathlib.Path(values.output_dir), temperatures, values.seeds, **teacher_changes
    )
    launcher.train_all(teacher, values.data_dir)
    launcher.train_all(dict(students.values()), values.data_dir, jobs=values.jobs)
    (folder,) = teacher
    teacher_row = RunRecord.read(folder).row
    records = {key: RunRecord.read(path) for key, (path, _) in students.items()}
    rows = {key: record.row for key, record in records.items()}
    results = pathlib.Path(values.results)
    lines = table(rows)
    examples = next(iter(rows.values()))["train_examples"]
    title = f"{settings.teacher} to {settings.student}, {examples:,} examples, {teacher_row['epochs']} epochs"
    artifacts.write_csv(results / "online.csv", [teacher_row, *rows.values()])
    artifacts.write_text(
        results / "online.md",
        f"# Online and offline distillation\n\n{title}; the teacher has {teacher_row['train_examples']:,} examples "
        f"and ends at {100 * teacher_row['test_accuracy']:.2f} %. "
        "Made by `train/reproduce.py --study=online_distillation`; `online.csv` has the runs with flags and commit.\n\n"
        f"{format_table(lines, tuple(lines[0]))}\n![Accuracy by epoch](online.png)\n",
    )
    histories = {key: record.epochs for key, record in records.items()}
    plot(histories, results / "online.png", title, teacher_row["eval_split"])


def define_flags(flag_values=flags.FLAGS):
    """Define the flags of a run of cifar100.py, which both networks share, and those of this study."""
    own = {"flag_values": flag_values}
    launcher.define_flags("the files that are named online", **own)
    flags.DEFINE_list("temperatures", ["1", "4"], "Temperatures of the students.", **own)
    flags.DEFINE_integer("seeds", 1, "Students of each kind.", lower_bound=1, **own)
    text = "The teacher's --{}; the students' by default."
    flags.DEFINE_integer("teacher_train_limit", None, text.format("max_train_examples"), **own)
    flags.DEFINE_float("teacher_learning_rate", None, text.format("learning_rate"), **own)


def main():
    """Train the pending runs and write the files."""
    run(config.from_flags(flags.FLAGS), flags.FLAGS)
