"""Evaluate saved students: accuracy, calibration, and agreement with their teacher.

    python train/evaluate.py --output_dir=runs/evaluation runs/quickstart/labels runs/quickstart/kd runs/quickstart/wsl
    python train/evaluate.py --data=cifar100 --data_dir=cifar100.npz --student=wrn_16_2 --teacher=wrn_40_2 \\
        --teacher_weights=teacher.weights.h5 --split=test,train --output_dir=evaluation wsl.weights.h5

A student is the directory of a finished run, whose network, data set, settings and teacher are used unless a flag
overrides them (`--teacher=none` omits the teacher); a `.keras` file; or a `.weights.h5` file of the network
`--student`. Writes `evaluate.csv`, a row per student and split; `evaluate.md`; and `reliability.png`. The training
examples of a run are those that it was trained on, without crops and flips.
"""

import functools
import pathlib

import before_tensorflow  # noqa: F401
import numpy as np
from absl import app, flags, logging

from keras_wsl import data
from keras_wsl.analysis.calibration import calibration
from keras_wsl.analysis.fidelity import fidelity
from keras_wsl.analysis.regularization_sample_rates import regularization_sample_rates
from keras_wsl.argument_checks import check_temperature
from keras_wsl.backend import predict_batch
from keras_wsl.files import make_directory
from keras_wsl.training import artifacts, cli
from keras_wsl.training.inputs import split_dataset
from reproduction import reliability_diagram, saved_runs
from reproduction.markdown import format_table


class Evaluator:
    """Evaluate students; each data set is read once, and each teacher's logits are computed once.

    Args:
        values: The parsed flags.
    """

    def __init__(self, values):
        self.values = values
        self._cache = {}

    def splits(self, student):
        """Return the data set of a student.

        Raises:
            ValueError: If it is not the one of the student's run.
        """
        dataset = saved_runs.DATASETS[student.data]
        splits = self._get_cached(
            ("splits", self._data_key(student)), functools.partial(dataset.load, student.config, self.values)
        )
        if student.test_examples not in (None, len(splits.test)):
            raise ValueError(
                f"{student.path} was evaluated on {student.test_examples} test examples. Received: a data set of "
                f"{len(splits.test)}. Pass the data of the run by --data_dir, or evaluate its student.keras."
            )
        return splits

    def examples(self, student, split):
        """Return the examples of a split; for "train", those that a run with the student's settings trains on."""
        splits = self.splits(student)
        if split not in splits._fields:
            raise ValueError(
                f"--split must be of {', '.join(splits._fields)} for {student.data}. Received: --split={split}."
            )
        if split != "train":
            return getattr(splits, split)
        return split_dataset(splits, student.config)[0]

    def model(self, student, network):
        """Return a network with its weights.

        Raises:
            ValueError: If the file is damaged, or its network has other inputs or classes.
        """
        return self._get_cached(
            ("model", self._data_key(student), network), functools.partial(self._load, student, network)
        )

    def row(self, student, split):
        """Return the row of a student on a split, and its `calibration`."""
        examples = self.examples(student, split)
        model = self.model(student, student.network)
        labels, logits = compute_labels_and_logits(model, examples, student.config.eval_batch_size)
        calibrated = calibration(labels, logits, self.values.bins)
        row = {
            "split": split,
            "network": student.network.label if student.network.name else model.name,
            **dict(student.run),
            "teacher": student.teacher.label if student.teacher else None,
            "examples": len(labels),
            "accuracy": calibrated["accuracy"],
        }
        if logits.shape[-1] > 5:
            at_label = np.take_along_axis(logits, labels[:, None], axis=-1)
            row["top_5_accuracy"] = float(((logits > at_label).sum(axis=-1) < 5).mean())
        row |= {name: calibrated[name] for name in ("mean_confidence", "ece", "adaptive_ece", "nll", "brier")}
        if student.teacher:
            settings = student.config
            subset = (
                (settings.max_train_examples, settings.validation_examples, settings.seed) if split == "train" else ()
            )
            teacher = self.model(student, student.teacher)
            _, teacher_logits = self._get_cached(
                ("logits", self._data_key(student), student.teacher, split, subset),
                functools.partial(compute_labels_and_logits, teacher, examples, settings.eval_batch_size),
            )
            temperature = self.values.temperature
            pair = {"student_logits": logits, "teacher_logits": teacher_logits, "temperature": temperature}
            row |= fidelity(labels, **pair) | regularization_sample_rates(labels, **pair)
        return row, calibrated

    def _load(self, student, network):
        dataset, train = saved_runs.DATASETS[student.data], self.splits(student).train
        if network.name:
            model = dataset.build(
                network.name,
                classes=len(train.classes),
                weights=str(network.path),
                input_shape=train.input_shape,
                dtype=network.dtype_policy,
                **dict(network.options),
            )
        else:
            model = saved_runs.load_network(network.path)
        _check_fits(network.path, model, train)
        dataset.check(student.config, model)
        return model

    def _data_key(self, student):
        """Return what determines a student's data."""
        return student.data, *(
            getattr(student.config, name) for name in saved_runs.DATASETS[student.data].data_settings
        )

    def _get_cached(self, key, make):
        if key not in self._cache:
            self._cache[key] = make()
        return self._cache[key]


def _check_fits(path, model, examples):
    """Raise a ValueError unless a network accepts such examples and has a logit per class."""
    if getattr(model, "inputs", None) is None:
        raise ValueError(f"{path} must have a functional or sequential network. Received: a {type(model).__name__}.")
    expected, classes = tuple(examples.input_shape), len(examples.classes)
    for tensor in model.inputs:
        shape = tuple(tensor.shape[1:])
        if len(shape) != len(expected) or any(a not in (None, b) for a, b in zip(shape, expected)):
            raise ValueError(
                f"{path} has inputs of shape {shape}. Received: examples of shape {expected}. Evaluate it on the data "
                "that it was trained on."
            )
    if model.output_shape != (None, classes):
        raise ValueError(
            f"{path} has outputs of shape {model.output_shape}. Received: examples of {classes} classes. Evaluate it "
            "on the data that it was trained on."
        )


def compute_labels_and_logits(model, examples, batch_size):
    """Return labels and logits of all examples that can be read: integers `(n,)`, floats `(n, classes)`."""
    labels, logits = [], []
    for inputs, targets in data.eval_batches(examples, batch_size):
        logits.append(predict_batch(model, inputs))
        labels.append(np.asarray(targets["labels"]))
    return np.concatenate(labels), np.concatenate(logits)


def make_display_names(students):
    """Return a short name for each student, or the whole path if two would have the same."""
    short = [student.path.resolve().name.removesuffix(".weights.h5").removesuffix(".keras") for student in students]
    return [name if short.count(name) == 1 else str(student.path) for name, student in zip(short, students)]


def evaluate(paths, values):
    """Evaluate students and write `evaluate.csv`, `evaluate.md` and `reliability.png`.

    Args:
        paths: Runs' directories and files of weights.
        values: The parsed flags.

    Returns:
        Rows of the table, dicts.

    Raises:
        FileNotFoundError: If a file or the data set is missing.
        ValueError: If a flag does not fit, a file is damaged or of other data, or outputs are not finite logits.
    """
    if not values.output_dir:
        raise ValueError(
            "--output_dir is missing: pass a directory for the results, such as --output_dir=runs/evaluation."
        )
    if not values.split:
        raise ValueError("--split is empty. Pass splits, such as --split=test,train.")
    check_temperature(values.temperature, "--temperature")
    students = [saved_runs.read(path, values) for path in paths]
    if len(names := sorted({student.data for student in students})) > 1:
        raise ValueError(
            f"The students must be of one data set. Received: {', '.join(names)}. Evaluate them separately."
        )
    evaluator = Evaluator(values)
    for student in students:  # Before the first forward pass, so that errors are early.
        for split in values.split:
            evaluator.examples(student, split)
        for network in filter(None, (student.network, student.teacher)):
            evaluator.model(student, network)
    rows, diagrams = [], {}
    for name, student in zip(make_display_names(students), students):
        for split in values.split:
            row, calibrated = evaluator.row(student, split)
            rows.append({"student": name, **row})
            diagrams[name if len(values.split) == 1 else f"{name}, {split}"] = calibrated
    out = pathlib.Path(values.output_dir)
    make_directory(out)
    artifacts.write_csv(out / "evaluate.csv", rows)
    artifacts.write_text(out / "evaluate.md", markdown(rows, students[0].data, values))
    reliability_diagram.plot(diagrams, out / "reliability.png")
    return rows


def markdown(rows, name, values):
    """Return the rows as a page, without columns that are empty."""
    filled = {column for row in rows for column in row if row[column] not in (None, "")}
    columns = [column for column in dict.fromkeys(column for row in rows for column in row) if column in filled]
    cells = [{column: _cell(row.get(column)) for column in columns} for row in rows]
    return (
        f"# Students on {name}\n\n"
        f"ECE: expected calibration error over {values.bins} bins of equal width; adaptive: of equally many examples. "
        "NLL and KL are in nats. Agreement, KL from teacher to student, total variation and overlap (1 - total "
        "variation) compare with the teacher. Regularization samples are rates. All are at temperature "
        f"{values.temperature:g}; most recipes use --temperature=4.\n\n"
        f"{format_table(cells, columns)}\n![Reliability diagrams](reliability.png)\n"
    )


def _cell(value):
    return f"{value:.4f}" if isinstance(value, float) else value


def define_flags(values=flags.FLAGS):
    """Define the flags of this script."""
    saved_runs.define_flags(saved_runs.FLAGS, values)
    flags.DEFINE_string("output_dir", "", "Directory of the results; made if it is missing.", flag_values=values)
    flags.DEFINE_list("split", ["test"], "Which examples: test, train; mismatched for multinli.", flag_values=values)
    flags.DEFINE_integer("bins", 15, "Bins of the calibration errors.", lower_bound=1, flag_values=values)
    text = "Temperature of KL, total variation and the rates of regularization samples."
    flags.DEFINE_float("temperature", 1.0, text, flag_values=values)


def main(argv):
    """Write the three files; print an error that the user can correct in one line, with exit status 2."""
    if not argv[1:]:
        raise app.UsageError("Pass at least one student: the directory of a run, a .keras or a .weights.h5 file.")

    def run():
        logging.set_verbosity(logging.ERROR)  # TensorFlow warns about each network, which it traces again.
        for row in evaluate(argv[1:], flags.FLAGS):
            agreement = f", agreement {row['top1_agreement']:.4f}" if "top1_agreement" in row else ""
            print(f"{row['student']}, {row['split']}: accuracy {row['accuracy']:.4f}, ECE {row['ece']:.4f}{agreement}")
        print(f"{flags.FLAGS.output_dir}/evaluate.md")

    return cli.status(run)


if __name__ == "__main__":
    define_flags()
    cli.run(main)
