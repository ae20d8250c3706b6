"""Online against offline distillation: the comparison of Harutyunyan et al., ICLR 2023, https://arxiv.org/abs/2301.12245.

    python train/online_distillation.py --flagfile=train/configs/studies/online_lenet5x8_cpu.flags
    --data_dir=cifar100.npz \
        --output_dir=runs/online

One teacher, which keeps its checkpoints, and students of it, of each seed: on labels; offline, on the soft labels of
the trained teacher alone; online, on those of its checkpoint of the same epoch; the last two at each temperature. Each
run is `train/cifar100.py` in a process of its own; stopped and started again it goes on, and finished runs are kept.
Then `online.csv`, `online.md` and `online.png` are written to --results.
"""

import dataclasses
import pathlib

import before_tensorflow  # noqa: F401
import matplotlib
import numpy as np
from absl import flags

import jobs
import report
from evidence.run_store import RunRecord
from keras_wsl.training import artifacts, cli, config, plots

matplotlib.use("Agg")

from matplotlib import pyplot as plt


def plan(wanted, out, temperatures, seeds, **of_teacher):
    """The runs: two dicts of folders to `Config`, of the teacher and of the students.

    The students' are by `(kind, temperature, seed)`: each key has a folder and its `Config`.

    Args:
        wanted: `Config` of the students.
        out: Path of the folder of the runs.
        temperatures: Floats.
        seeds: Integer, students of each kind.
        **of_teacher: Settings that are others in the teacher's run.
    """
    alone = config.ALONE
    folder = out / "teacher"
    teacher = {folder: dataclasses.replace(wanted, **alone, **of_teacher, student=wanted.teacher, checkpoint_every=1)}
    # Soft labels alone teach, as in the paper: no labels, and a weight of 1.
    soft = {"method": "kd", "alpha": 1.0, "student_loss_weight": 0.0, "teacher_weights": str(folder / "student.keras")}
    students = {}
    for seed in range(seeds):
        students["labels", None, seed] = out / f"labels-{seed}", dataclasses.replace(wanted, **alone, seed=seed)
        for temperature in temperatures:
            for kind in ("offline", "online"):
                changed = {**soft, "temperature": temperature, "online": kind == "online", "seed": seed}
                students[kind, temperature, seed] = (
                    out / f"{kind}-{temperature:g}-{seed}",
                    dataclasses.replace(wanted, **changed),
                )
    return teacher, students


def table(rows):
    """A line for each kind and temperature: mean and standard deviation over the seeds of the accuracy at the end.

    Args:
        rows: Dict of `(kind, temperature, seed)` to the rows of `RunRecord.row`.
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
    """Accuracy by epoch, the mean over the seeds."""
    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    colours = {temperature: f"C{i}" for i, temperature in enumerate(dict.fromkeys(key[1] for key in histories))}
    styles = {"labels": "k-", "offline": "--", "online": "-"}
    for kind, temperature in dict.fromkeys(key[:2] for key in histories):
        series = [rows for key, rows in histories.items() if key[:2] == (kind, temperature)]
        judged = [[row for row in rows if "val_accuracy" in row] for rows in series]
        accuracy = np.mean([[100 * row["val_accuracy"] for row in rows] for rows in judged], axis=0)
        style = {} if kind == "labels" else {"color": colours[temperature]}
        label = kind if temperature is None else f"{kind}, τ = {temperature:g}"
        axis.plot([int(row["epoch"]) for row in judged[0]], accuracy, styles[kind], label=label, marker=".", **style)
    axis.set(title=title, xlabel="epoch", ylabel=f"accuracy on {eval_split}, %")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")
    plots.save(figure, path)
    plt.close(figure)


def run(wanted, values):
    """Trains what is missing and writes the files."""
    if not wanted.teacher or not values.output_dir:
        raise ValueError("--teacher and --output_dir are needed: the teacher's network, and a folder for the runs.")
    temperatures = config.numbers("temperatures", values.temperatures)
    given = {"max_train_examples": values.teacher_train_limit, "learning_rate": values.teacher_learning_rate}
    of_teacher = {name: value for name, value in given.items() if value is not None}
    teacher, students = plan(wanted, pathlib.Path(values.output_dir), temperatures, values.seeds, **of_teacher)
    jobs.train_all(teacher, values.data_dir)
    jobs.train_all(dict(students.values()), values.data_dir, jobs=values.jobs)
    (folder,) = teacher
    taught = RunRecord.read(folder).row
    records = {key: RunRecord.read(path) for key, (path, _) in students.items()}
    rows = {key: record.row for key, record in records.items()}
    results = pathlib.Path(values.results)
    lines = table(rows)
    examples = next(iter(rows.values()))["train_examples"]
    title = f"{wanted.teacher} to {wanted.student}, {examples:,} examples, {taught['epochs']} epochs"
    artifacts.write_csv(results / "online.csv", [taught, *rows.values()])
    artifacts.write_text(
        results / "online.md",
        f"# Online and offline distillation\n\n{title}; the teacher has {taught['train_examples']:,} examples and ends "
        f"at {100 * taught['test_accuracy']:.2f} %. "
        "Made by `train/online_distillation.py`; `online.csv` has the runs with flags and commit.\n\n"
        f"{report.markdown(lines, tuple(lines[0]))}\n![Accuracy by epoch](online.png)\n",
    )
    histories = {key: record.epochs for key, record in records.items()}
    plot(histories, results / "online.png", title, taught["eval_split"])


def define_flags(flag_values=flags.FLAGS):
    """Defines the flags of a run of cifar100.py, which both networks share, and this script's own."""
    own = {"flag_values": flag_values}
    jobs.define_flags("the files that are named online", **own)
    flags.DEFINE_list("temperatures", ["1", "4"], "Temperatures of the students.", **own)
    flags.DEFINE_integer("seeds", 1, "Students of each kind.", lower_bound=1, **own)
    text = "The teacher's --{}; the students' by default."
    flags.DEFINE_integer("teacher_train_limit", None, text.format("max_train_examples"), **own)
    flags.DEFINE_float("teacher_learning_rate", None, text.format("learning_rate"), **own)


if __name__ == "__main__":
    define_flags()
    cli.start(lambda: run(config.from_flags(flags.FLAGS), flags.FLAGS))
