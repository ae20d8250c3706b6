"""How hard a teacher's predictions are for a student: which checkpoint and temperature promise most.

    python train/complexity.py --data_dir=cifar100.npz --teacher=resnet20 --checkpoints=runs/teacher/checkpoints \\
        --student=lenet5x8 --examples=512 --temperatures=1,4 --output_dir=runs/complexity

The teacher's checkpoints are those of a run with `--checkpoint_every=1`. The student is judged as it starts, or as
`--student_weights` has it. Writes `complexity.csv`, `.md` and `.png`: for each checkpoint and temperature the adjusted
supervision complexity; the teacher's accuracy; and the accuracy against the true labels of leave-one-out regression
with the student's tangent kernel on the teacher's predictions, by which the rows are ranked. With
`--student_checkpoints=FOLDER` also `curve.csv` and `curve.png`: the complexity of random labels, labels, the last
teacher and the teacher of the same epoch, while the student trains.

Of two classes (`data.binarize_classes`) the targets are 2 p - 1 and +-1; of more, probabilities less their mean. The
kernel is the mean over the logits, a row for each example. Examples are of the test set, every class alike, unless
--split says otherwise. LeNet-5x8, 512 examples and two classes: half a minute a kernel on two CPU cores.
"""

import pathlib

import before_tensorflow  # noqa: F401
import keras
import matplotlib
import numpy as np
from absl import flags

import jobs
import report
from keras_wsl import analysis, models, teacher_checkpoints
from keras_wsl.files import make_directory
from keras_wsl.training import artifacts, cli, config, plots

matplotlib.use("Agg")

from matplotlib import pyplot as plt

PROMISE = (
    "epoch",
    "temperature",
    "promised_accuracy",
    "teacher_accuracy",
    "adjusted",
    "adjusted_over_rms",
    "margin_loss",
    "complexity_term",
    "confidence_term",
)


class Task:
    """Examples, and what labels and teachers ask of a student on them.

    Args:
        examples: `data.ImageArrays`.
        seed: Of the random labels.
    """

    def __init__(self, examples, seed=0):
        self.examples = examples
        self.labels = examples.labels
        self.classes = len(examples.classes)
        self.inputs = examples.inputs(np.arange(len(examples)))
        generator = np.random.default_rng(seed)
        self.random = self.of_labels(generator.integers(0, self.classes, len(examples)))

    def of_labels(self, labels):
        """Targets of integer labels."""
        if self.classes == 2:
            return analysis.targets(labels, "pm1")
        return np.eye(self.classes)[labels] - 1 / self.classes

    def of_logits(self, logits, temperature):
        """Targets of a teacher's logits."""
        if self.classes == 2:
            return analysis.targets(logits[:, 1] - logits[:, 0], temperature=temperature)
        return analysis.targets(logits, temperature=temperature)

    def accuracy(self, predictions):
        """How often predictions, shaped as targets, are of the true label."""
        decided = predictions > 0 if predictions.ndim == 1 else predictions.argmax(axis=1)
        return float((decided == self.labels).mean())

    def logits(self, network):
        """What a network says of the examples."""
        return jobs.logits(network, self.examples, 256)

    def kernel(self, network, verbose=0):
        """The tangent kernel, the mean over the logits."""
        return analysis.empirical_ntk(network, self.inputs, "trace", verbose=verbose)


def promises(task, kernel, said, temperatures):
    """A row for each checkpoint of the teacher and temperature, the most promising first.

    Args:
        task: `Task`.
        kernel: The student's.
        said: Dict of the teacher's epochs to its logits.
        temperatures: Floats.
    """
    rows = []
    for epoch, logits in said.items():
        for temperature in temperatures:
            wanted = task.of_logits(logits, temperature)
            found = analysis.supervision_complexity(kernel, wanted)
            bound = analysis.margin_bound(kernel, wanted, margin=found.rms)
            rows.append(
                {
                    "epoch": epoch,
                    "temperature": temperature,
                    "promised_accuracy": task.accuracy(analysis.leave_one_out(kernel, wanted)),
                    "teacher_accuracy": task.accuracy(wanted),
                    "adjusted": found.adjusted,
                    "adjusted_over_rms": found.adjusted_over_rms,
                    "margin_loss": bound.margin_loss,
                    "complexity_term": bound.complexity,
                    "confidence_term": bound.confidence,
                    "rms": found.rms,
                    "trace": found.trace,
                    "smallest_relative": found.smallest_relative,
                    "condition": found.condition,
                    "ridge": found.ridge,
                    **{f"adjusted_ridge_{ridge:g}": value for ridge, value in found.ridges.items()},
                }
            )
    return sorted(rows, key=lambda row: -row["promised_accuracy"])


def curve(task, network, checkpoints, said, temperature):
    """A row for each checkpoint of the student: the complexity of four kinds of targets.

    Args:
        task: `Task`.
        network: The student's, whose weights are set.
        checkpoints: `teacher_checkpoints.Checkpoints` of the student.
        said: Dict of the teacher's epochs to its logits.
        temperature: Float.
    """
    rows = []
    for epoch, path in checkpoints.paths.items():
        models.load_weights(network, path)
        kernel = task.kernel(network)
        same = min((e for e in said if e >= epoch), default=max(said))
        wanted = {
            "random labels": task.random,
            "labels": task.of_labels(task.labels),
            "last teacher": task.of_logits(said[max(said)], temperature),
            "teacher of the epoch": task.of_logits(said[same], temperature),
        }
        found = {name: analysis.supervision_complexity(kernel, given) for name, given in wanted.items()}
        first = found["labels"]
        rows.append(
            {
                "epoch": epoch,
                **{name: complexity.adjusted for name, complexity in found.items()},
                **{f"{name} / rms": complexity.adjusted_over_rms for name, complexity in found.items()},
                "smallest_relative": first.smallest_relative,
                "condition": first.condition,
                "ridge": first.ridge,
            }
        )
        print(", ".join(f"{name} {value:.3f}" for name, value in list(rows[-1].items())[:5]), flush=True)
    return rows


def table(rows):
    """The rows of `promises` as Markdown."""
    plain = {"epoch": "d", "temperature": "g"}
    return report.markdown(
        [{name: f"{row[name]:{plain.get(name, '.3f')}}" for name in PROMISE} for row in rows], PROMISE
    )


def plot_promises(rows, path, title):
    """Adjusted complexity and accuracies by the teacher's epoch."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    by_temperature = {}
    for row in sorted(rows, key=lambda row: row["epoch"]):
        by_temperature.setdefault(row["temperature"], []).append(row)
    for i, (temperature, series) in enumerate(by_temperature.items()):
        epochs, style = [row["epoch"] for row in series], {"color": f"C{i}", "marker": "."}
        axes[0].plot(epochs, [row["adjusted_over_rms"] for row in series], label=f"τ = {temperature:g}", **style)
        promised = [100 * row["promised_accuracy"] for row in series]
        axes[1].plot(epochs, promised, label=f"promised, τ = {temperature:g}", **style)
    accuracy = [100 * row["teacher_accuracy"] for row in series]
    axes[1].plot(epochs, accuracy, "k:", label="the teacher's own")
    axes[0].set(title="adjusted complexity, of the targets' size", ylabel="ASC / rms of the targets")
    axes[1].set(title="accuracy against the true labels", ylabel="%")
    for axis in axes:
        axis.set_xlabel("epochs of the teacher")
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    figure.suptitle(title)
    plots.save(figure, path)
    plt.close(figure)


def plot_curve(rows, path, title):
    """The adjusted complexity of each kind of targets by the student's epoch."""
    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    for name in ("random labels", "labels", "last teacher", "teacher of the epoch"):
        axis.plot([row["epoch"] for row in rows], [row[name] for row in rows], marker=".", label=name)
    axis.set(title=title, xlabel="epochs of the student, and of the teacher", ylabel="adjusted supervision complexity")
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")
    plots.save(figure, path)
    plt.close(figure)


def run(values):
    """Judges the teacher's checkpoints and writes the files; returns the best row."""
    out = pathlib.Path(values.output_dir)
    temperatures = config.parse_floats("temperatures", values.temperatures)
    splits = jobs.splits_of(values.data_dir)
    examples = getattr(splits, values.split).stratified_subset(values.examples, seed=values.seed)
    task = Task(examples, values.seed)
    shape = {"classes": task.classes, "input_shape": examples.input_shape}
    found = teacher_checkpoints.Checkpoints(values.checkpoints)
    chosen = {epoch: path for epoch, path in found.paths.items() if epoch % values.every == 0 or path == found.latest}
    teacher = models.build(values.teacher, **shape)
    said = {}
    for epoch, path in chosen.items():
        models.load_weights(teacher, path)
        said[epoch] = task.logits(teacher)
    # As a run of the scripts with this seed starts.
    keras.utils.set_random_seed(values.seed)
    student = models.build(values.student, weights=values.student_weights, **shape)
    title = f"{values.teacher} to {values.student}, {len(examples)} examples, {task.classes} classes"
    rows = promises(task, task.kernel(student, verbose=values.verbose), said, temperatures)
    make_directory(out)
    artifacts.write_csv(out / "complexity.csv", rows)
    artifacts.write_text(
        out / "complexity.md", f"# {title}\n\n{table(rows)}\n![Complexity and promise](complexity.png)\n"
    )
    plot_promises(rows, out / "complexity.png", title)
    if values.student_checkpoints:
        points = curve(
            task, student, teacher_checkpoints.Checkpoints(values.student_checkpoints), said, temperatures[0]
        )
        artifacts.write_csv(out / "curve.csv", points)
        plot_curve(points, out / "curve.png", f"{title}, τ = {temperatures[0]:g}")
    return rows[0]


def main():
    """Says which checkpoint and temperature promise most."""
    values = flags.FLAGS
    if not values.output_dir:
        raise ValueError("--output_dir is missing: name a folder for the files, such as --output_dir=runs/complexity.")
    best = run(values)
    print(
        f"most promising: the teacher after {best['epoch']} epochs at temperature {best['temperature']:g}: "
        f"{best['promised_accuracy']:.4f} promised, complexity {best['adjusted_over_rms']:.3f} of the targets' "
        f"size: {values.output_dir}/complexity.md"
    )


if __name__ == "__main__":
    flags.DEFINE_string("data_dir", None, "As of cifar100.py; digits for those of scikit-learn.", required=True)
    flags.DEFINE_enum("split", "test", ["train", "test"], "Of which examples.")
    flags.DEFINE_integer("examples", 512, "How many, every class alike.", lower_bound=2)
    flags.DEFINE_string("teacher", None, "The teacher's network.", required=True)
    flags.DEFINE_string("checkpoints", None, "Folder of the teacher's checkpoints.", required=True)
    flags.DEFINE_integer("every", 1, "Of the teacher's epochs, only multiples of this, and the last.", lower_bound=1)
    flags.DEFINE_string("student", None, "The student's network.", required=True)
    flags.DEFINE_string("student_weights", None, "Its weights; initial ones by default.")
    flags.DEFINE_string("student_checkpoints", None, "Folder of the student's checkpoints, for the curve.")
    flags.DEFINE_list("temperatures", ["1", "4"], "Temperatures of the teacher; the first is the curve's.")
    flags.DEFINE_integer("seed", 0, "Seed of the choice of examples, of initial weights and random labels.")
    flags.DEFINE_integer("verbose", 0, "1 for a progress bar of the kernel.")
    flags.DEFINE_string("output_dir", "", "Folder of the files; made if it is missing.")
    cli.start(main)
