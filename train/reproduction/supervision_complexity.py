"""Supervision complexity of a teacher's checkpoints for a student, and a ranking of checkpoints and temperatures.

    python train/reproduce.py --study=supervision_complexity --data_dir=cifar100.npz --teacher=resnet20 \
        --checkpoints=runs/teacher/checkpoints --student=lenet5x8 --examples=512 --temperatures=1,4 \
        --output_dir=runs/complexity

The teacher's checkpoints are those of a run with `--checkpoint_every=1`. The student has its initial weights, or
`--student_weights`. Writes `complexity.csv`, `.md` and `.png`: for each checkpoint and temperature the adjusted
supervision complexity; the teacher's accuracy; and the accuracy, on the true labels, of leave-one-out regression of the
teacher's predictions with the student's tangent kernel, by which the rows are ranked. With
`--student_checkpoints=DIRECTORY` it also writes `curve.csv` and `curve.png`: the complexity of random labels, labels,
the last teacher and the teacher of the same epoch during the student's training.

For two classes (`data.binarize_classes`) the targets are 2 p - 1 and +-1; for more, probabilities minus their mean. The
kernel is the mean over the logits, with a row per example. Examples are a stratified sample of the test set, or of
--split. A kernel of LeNet-5x8 for 512 examples and two classes takes half a minute on two CPU cores.
"""

import pathlib

import keras
import matplotlib
import numpy as np
from absl import flags

from keras_wsl import analysis, models, teacher_checkpoints
from keras_wsl.files import make_directory
from keras_wsl.training import artifacts, config, plots
from reproduction import launcher
from reproduction.markdown import format_table

matplotlib.use("Agg")

from matplotlib import pyplot as plt

RANKING_COLUMNS = (
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
    """Examples, and the targets of labels and of teachers for them.

    Args:
        examples: `data.ImageArrays`.
        seed: Seed of the random labels.
    """

    def __init__(self, examples, seed=0):
        self.examples = examples
        self.labels = examples.labels
        self.classes = len(examples.classes)
        self.inputs = examples.inputs(np.arange(len(examples)))
        generator = np.random.default_rng(seed)
        self.random = self.label_targets(generator.integers(0, self.classes, len(examples)))

    def label_targets(self, labels):
        """Return the targets of integer labels."""
        if self.classes == 2:
            return analysis.targets(labels, "pm1")
        return np.eye(self.classes)[labels] - 1 / self.classes

    def logit_targets(self, logits, temperature):
        """Return the targets of a teacher's logits."""
        if self.classes == 2:
            return analysis.targets(logits[:, 1] - logits[:, 0], temperature=temperature)
        return analysis.targets(logits, temperature=temperature)

    def accuracy(self, predictions):
        """Return the accuracy of predictions in the shape of targets."""
        predicted = predictions > 0 if predictions.ndim == 1 else predictions.argmax(axis=1)
        return float((predicted == self.labels).mean())

    def logits(self, network):
        """Return the logits of a network."""
        return launcher.compute_logits(network, self.examples, 256)

    def kernel(self, network, verbose=0):
        """Return the tangent kernel, the mean over the logits."""
        return analysis.empirical_ntk(network, self.inputs, "trace", verbose=verbose)


def rank_checkpoints(task, kernel, teacher_logits, temperatures):
    """Return a row per checkpoint of the teacher and temperature, by decreasing predicted accuracy.

    Args:
        task: `Task`.
        kernel: Tangent kernel of the student.
        teacher_logits: Dict of the teacher's epochs to its logits.
        temperatures: List of floats.
    """
    rows = []
    for epoch, logits in teacher_logits.items():
        for temperature in temperatures:
            targets = task.logit_targets(logits, temperature)
            complexity = analysis.supervision_complexity(kernel, targets)
            bound = analysis.margin_bound(kernel, targets, margin=complexity.rms)
            rows.append(
                {
                    "epoch": epoch,
                    "temperature": temperature,
                    "promised_accuracy": task.accuracy(analysis.leave_one_out(kernel, targets)),
                    "teacher_accuracy": task.accuracy(targets),
                    "adjusted": complexity.adjusted,
                    "adjusted_over_rms": complexity.adjusted_over_rms,
                    "margin_loss": bound.margin_loss,
                    "complexity_term": bound.complexity,
                    "confidence_term": bound.confidence,
                    "rms": complexity.rms,
                    "trace": complexity.trace,
                    "smallest_relative": complexity.smallest_relative,
                    "condition": complexity.condition,
                    "ridge": complexity.ridge,
                    **{f"adjusted_ridge_{ridge:g}": value for ridge, value in complexity.ridges.items()},
                }
            )
    return sorted(rows, key=lambda row: -row["promised_accuracy"])


def compute_curve(task, network, checkpoints, teacher_logits, temperature):
    """Return a row per checkpoint of the student: the complexity of four kinds of targets.

    Args:
        task: `Task`.
        network: The student, whose weights are replaced.
        checkpoints: `teacher_checkpoints.Checkpoints` of the student.
        teacher_logits: Dict of the teacher's epochs to its logits.
        temperature: Float.
    """
    rows = []
    for epoch, path in checkpoints.paths.items():
        models.load_weights(network, path)
        kernel = task.kernel(network)
        last = max(teacher_logits)
        same = min((e for e in teacher_logits if e >= epoch), default=last)
        targets = {
            "random labels": task.random,
            "labels": task.label_targets(task.labels),
            "last teacher": task.logit_targets(teacher_logits[last], temperature),
            "teacher of the epoch": task.logit_targets(teacher_logits[same], temperature),
        }
        complexities = {name: analysis.supervision_complexity(kernel, target) for name, target in targets.items()}
        first = complexities["labels"]
        rows.append(
            {
                "epoch": epoch,
                **{name: complexity.adjusted for name, complexity in complexities.items()},
                **{f"{name} / rms": complexity.adjusted_over_rms for name, complexity in complexities.items()},
                "smallest_relative": first.smallest_relative,
                "condition": first.condition,
                "ridge": first.ridge,
            }
        )
        print(", ".join(f"{name} {value:.3f}" for name, value in list(rows[-1].items())[:5]), flush=True)
    return rows


def format_ranking(rows):
    """Format the rows of `rank_checkpoints` as Markdown."""
    plain = {"epoch": "d", "temperature": "g"}
    return format_table(
        [{name: f"{row[name]:{plain.get(name, '.3f')}}" for name in RANKING_COLUMNS} for row in rows], RANKING_COLUMNS
    )


def plot_ranking(rows, path, title):
    """Plot adjusted complexity and accuracies by the teacher's epoch."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    by_temperature = {}
    for row in sorted(rows, key=lambda row: row["epoch"]):
        by_temperature.setdefault(row["temperature"], []).append(row)
    for i, (temperature, series) in enumerate(by_temperature.items()):
        epochs, style = [row["epoch"] for row in series], {"color": f"C{i}", "marker": "."}
        axes[0].plot(epochs, [row["adjusted_over_rms"] for row in series], label=f"τ = {temperature:g}", **style)
        predicted = [100 * row["promised_accuracy"] for row in series]
        axes[1].plot(epochs, predicted, label=f"predicted, τ = {temperature:g}", **style)
    accuracy = [100 * row["teacher_accuracy"] for row in series]
    axes[1].plot(epochs, accuracy, "k:", label="teacher")
    axes[0].set(title="adjusted complexity relative to the targets", ylabel="ASC / rms of the targets")
    axes[1].set(title="accuracy against the true labels", ylabel="%")
    for axis in axes:
        axis.set_xlabel("epochs of the teacher")
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    figure.suptitle(title)
    plots.save(figure, path)
    plt.close(figure)


def plot_curve(rows, path, title):
    """Plot the adjusted complexity of each kind of targets by the student's epoch."""
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
    """Evaluate the teacher's checkpoints, write the files, and return the best row."""
    out = pathlib.Path(values.output_dir)
    temperatures = config.parse_floats("temperatures", values.temperatures)
    splits = launcher.load_splits(values.data_dir)
    examples = getattr(splits, values.split).stratified_subset(values.examples, seed=values.seed)
    task = Task(examples, values.seed)
    shape = {"classes": task.classes, "input_shape": examples.input_shape}
    checkpoints = teacher_checkpoints.Checkpoints(values.checkpoints)
    selected = {
        epoch: path
        for epoch, path in checkpoints.paths.items()
        if epoch % values.every == 0 or path == checkpoints.latest
    }
    teacher = models.build(values.teacher, **shape)
    teacher_logits = {}
    for epoch, path in selected.items():
        models.load_weights(teacher, path)
        teacher_logits[epoch] = task.logits(teacher)
    # The same initial weights as in a run of the scripts with this seed.
    keras.utils.set_random_seed(values.seed)
    student = models.build(values.student, weights=values.student_weights, **shape)
    title = f"{values.teacher} to {values.student}, {len(examples)} examples, {task.classes} classes"
    rows = rank_checkpoints(task, task.kernel(student, verbose=values.verbose), teacher_logits, temperatures)
    make_directory(out)
    artifacts.write_csv(out / "complexity.csv", rows)
    artifacts.write_text(
        out / "complexity.md",
        f"# {title}\n\n{format_ranking(rows)}\n![Complexity and predicted accuracy](complexity.png)\n",
    )
    plot_ranking(rows, out / "complexity.png", title)
    if values.student_checkpoints:
        checkpoints = teacher_checkpoints.Checkpoints(values.student_checkpoints)
        points = compute_curve(task, student, checkpoints, teacher_logits, temperatures[0])
        artifacts.write_csv(out / "curve.csv", points)
        plot_curve(points, out / "curve.png", f"{title}, τ = {temperatures[0]:g}")
    return rows[0]


def main():
    """Write the files and print the best checkpoint and temperature."""
    values = flags.FLAGS
    if not values.output_dir:
        raise ValueError(
            "--output_dir is missing: pass a directory for the files, such as --output_dir=runs/complexity."
        )
    best = run(values)
    print(
        f"best: the teacher after {best['epoch']} epochs at temperature {best['temperature']:g}, predicted accuracy "
        f"{best['promised_accuracy']:.4f}, relative complexity {best['adjusted_over_rms']:.3f}: "
        f"{values.output_dir}/complexity.md"
    )


def define_flags():
    """Define the flags of this study."""
    flags.DEFINE_string("data_dir", None, "See cifar100.py; or digits, those of scikit-learn.", required=True)
    flags.DEFINE_enum("split", "test", ["train", "test"], "Which examples.")
    flags.DEFINE_integer("examples", 512, "Number of examples, stratified.", lower_bound=2)
    flags.DEFINE_string("teacher", None, "The teacher's network.", required=True)
    flags.DEFINE_string("checkpoints", None, "Directory of the teacher's checkpoints.", required=True)
    flags.DEFINE_integer("every", 1, "Use every n-th epoch of the teacher, and the last.", lower_bound=1)
    flags.DEFINE_string("student", None, "The student's network.", required=True)
    flags.DEFINE_string("student_weights", None, "The student's weights; initial ones by default.")
    flags.DEFINE_string("student_checkpoints", None, "Directory of the student's checkpoints, for the curve.")
    flags.DEFINE_list("temperatures", ["1", "4"], "Temperatures of the teacher; the curve uses the first.")
    flags.DEFINE_integer("seed", 0, "Seed of the sample, the initial weights and the random labels.")
    flags.DEFINE_integer("verbose", 0, "1 for a progress bar of the kernel.")
    flags.DEFINE_string("output_dir", "", "Directory of the files; made if it is missing.")
