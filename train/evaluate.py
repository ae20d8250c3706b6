"""Judges saved students: accuracy, calibration, and how much they predict as their teacher does.

    python train/evaluate.py --output_dir=runs/judged runs/digits/labels runs/digits/kd runs/digits/wsl
    python train/evaluate.py --data=cifar100 --data_dir=cifar100.npz --student=wrn_16_2 --teacher=wrn_40_2 \
        --teacher_weights=teacher.weights.h5 --split=test,train --output_dir=judged wsl.weights.h5

A student is the folder of a finished run, whose network, data set, settings and teacher are its own unless a flag says
otherwise (`--teacher=none` leaves it out); a `.keras` file; or a `.weights.h5` file of the network `--student`. Writes
`evaluate.csv`, a row for each student and split; `evaluate.md`; and `reliability.png`. The training examples of a run
are those that it was trained on, without crops and flips. As long as the forward passes take: digits, seconds.
"""

import functools
import pathlib

import before_tensorflow  # noqa: F401
import numpy as np
from absl import app, flags, logging

import reliability
import report
import students
from keras_wsl import data
from keras_wsl.analysis.calibration import calibration
from keras_wsl.analysis.fidelity import fidelity
from keras_wsl.analysis.regularization_sample_rates import regularization_sample_rates
from keras_wsl.argument_checks import check_temperature
from keras_wsl.backend import predict_batch
from keras_wsl.files import make_directory
from keras_wsl.training import artifacts, cli, runner


class Judge:
    """Reads each data set once, and asks each teacher once about the same examples.

    Args:
        values: The parsed flags.
    """

    def __init__(self, values):
        self.values = values
        self._found = {}

    def splits(self, student):
        """The data set of a student.

        Raises:
            ValueError: If it is not the one of the student's run.
        """
        source = students.SOURCES[student.data]
        splits = self._once(
            ("splits", self._reads(student)), functools.partial(source.splits, student.config, self.values)
        )
        if student.test_examples not in (None, len(splits.test)):
            raise ValueError(
                f"{student.path} was judged on {student.test_examples} test examples, and this data set has "
                f"{len(splits.test)}. Give the data of the run by --data_dir; on other data, judge its student.keras."
            )
        return splits

    def examples(self, student, split):
        """The examples of one split; of "train", those that a run of the student's settings trains on."""
        splits = self.splits(student)
        if split not in splits._fields:
            raise ValueError(f"--split={split} is no split of {student.data}. Expected of {', '.join(splits._fields)}.")
        if split != "train":
            return getattr(splits, split)
        return runner.parts(splits, student.config)[0]

    def model(self, student, network):
        """A network with its weights.

        Raises:
            ValueError: If the file is damaged, or of a network for other inputs or classes.
        """
        return self._once(("model", self._reads(student), network), functools.partial(self._load, student, network))

    def row(self, student, split):
        """What the tables say of a student on a split, and its `calibration`."""
        examples = self.examples(student, split)
        model = self.model(student, student.network)
        labels, logits = logits_of(model, examples, student.config.eval_batch_size)
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
            wanted = student.config
            part = (wanted.max_train_examples, wanted.validation_examples, wanted.seed) if split == "train" else ()
            teacher = self.model(student, student.teacher)
            _, heard = self._once(
                ("logits", self._reads(student), student.teacher, split, part),
                functools.partial(logits_of, teacher, examples, wanted.eval_batch_size),
            )
            row |= fidelity(heard, logits, self.values.temperature, labels=labels)
            row |= regularization_sample_rates(heard, logits, labels, self.values.temperature)
        return row, calibrated

    def _load(self, student, network):
        source, train = students.SOURCES[student.data], self.splits(student).train
        if network.name:
            model = source.build(
                network.name,
                classes=len(train.classes),
                weights=str(network.path),
                input_shape=train.input_shape,
                dtype=network.dtype_policy,
                **dict(network.options),
            )
        else:
            model = students.saved(network.path)
        _check_fits(network.path, model, train)
        source.check(student.config, model)
        return model

    def _reads(self, student):
        """All that decides what a student's data are."""
        return student.data, *(getattr(student.config, name) for name in students.SOURCES[student.data].reads)

    def _once(self, key, make):
        if key not in self._found:
            self._found[key] = make()
        return self._found[key]


def _check_fits(path, model, examples):
    """Raises ValueError unless a network takes such examples and has a logit for each of their classes."""
    if getattr(model, "inputs", None) is None:
        raise ValueError(f"{path} holds a {type(model).__name__}; expected a functional or sequential network.")
    expected, classes = tuple(examples.input_shape), len(examples.classes)
    for tensor in model.inputs:
        shape = tuple(tensor.shape[1:])
        if len(shape) != len(expected) or any(a not in (None, b) for a, b in zip(shape, expected)):
            raise ValueError(
                f"{path} takes inputs of shape {shape}, and the examples have {expected}. Judge it on the data that it "
                "was trained on."
            )
    if model.output_shape != (None, classes):
        raise ValueError(
            f"{path} gives outputs of shape {model.output_shape}, and the examples have {classes} classes. Judge it on "
            "the data that it was trained on."
        )


def logits_of(model, examples, batch_size):
    """Labels and a network's logits of all examples that can be read: integers `(n,)`, floats `(n, classes)`."""
    labels, logits = [], []
    for inputs, targets in data.eval_batches(examples, batch_size):
        logits.append(predict_batch(model, inputs))
        labels.append(np.asarray(targets["labels"]))
    return np.concatenate(labels), np.concatenate(logits)


def labels_of(judged):
    """A short name for each student, or the whole path where two would have the same."""
    short = [student.path.resolve().name.removesuffix(".weights.h5").removesuffix(".keras") for student in judged]
    return [name if short.count(name) == 1 else str(student.path) for name, student in zip(short, judged)]


def evaluate(paths, values):
    """Judges the students and writes `evaluate.csv`, `evaluate.md` and `reliability.png`.

    Args:
        paths: Runs' folders and files of weights.
        values: The parsed flags.

    Returns:
        Rows of the table, dicts.

    Raises:
        FileNotFoundError: If a file or the data set is missing.
        ValueError: If a flag does not fit, a file is damaged or of other data, or outputs are no finite logits.
    """
    if not values.output_dir:
        raise ValueError("--output_dir is missing: name a folder for the results, such as --output_dir=runs/judged.")
    if not values.split:
        raise ValueError("--split is empty: name what to judge on, such as --split=test,train.")
    check_temperature(values.temperature, "--temperature")
    judged = [students.read(path, values) for path in paths]
    if len(names := sorted({student.data for student in judged})) > 1:
        raise ValueError(f"The students are of several data sets: {', '.join(names)}. Judge them one by one.")
    judge = Judge(values)
    for student in judged:  # Before the first forward pass: what does not fit should not cost the others' time.
        for split in values.split:
            judge.examples(student, split)
        for network in filter(None, (student.network, student.teacher)):
            judge.model(student, network)
    rows, diagrams = [], {}
    for name, student in zip(labels_of(judged), judged):
        for split in values.split:
            row, calibrated = judge.row(student, split)
            rows.append({"student": name, **row})
            diagrams[name if len(values.split) == 1 else f"{name}, {split}"] = calibrated
    out = pathlib.Path(values.output_dir)
    make_directory(out)
    artifacts.write_csv(out / "evaluate.csv", rows)
    artifacts.write_text(out / "evaluate.md", markdown(rows, judged[0].data, values))
    reliability.plot(diagrams, out / "reliability.png")
    return rows


def markdown(rows, name, values):
    """The rows as a page, with the columns in which any of them says something."""
    filled = {column for row in rows for column in row if row[column] not in (None, "")}
    columns = [column for column in dict.fromkeys(column for row in rows for column in row) if column in filled]
    cells = [{column: _cell(row.get(column)) for column in columns} for row in rows]
    return (
        f"# Students on {name}\n\n"
        f"ECE: expected calibration error over {values.bins} bins of equal width; adaptive: of equally many examples. "
        "NLL and KL are in nats. Agreement, KL from teacher to student, total variation and overlap (1 - total "
        "variation) compare with the teacher, and regularization samples are shares, all at temperature "
        f"{values.temperature:g}; --temperature=4 is that of most recipes.\n\n"
        f"{report.markdown(cells, columns)}\n![Reliability diagrams](reliability.png)\n"
    )


def _cell(value):
    return f"{value:.4f}" if isinstance(value, float) else value


def define_flags(values=flags.FLAGS):
    """Defines the flags of this script."""
    students.define_flags(students.FLAGS, values)
    flags.DEFINE_string("output_dir", "", "Folder of the results; made if it is missing.", flag_values=values)
    flags.DEFINE_list("split", ["test"], "Which examples: test, train; mismatched of multinli.", flag_values=values)
    flags.DEFINE_integer("bins", 15, "Bins of the calibration errors.", lower_bound=1, flag_values=values)
    compared = "Of KL and total variation to the teacher, and of the shares of regularization samples."
    flags.DEFINE_float("temperature", 1.0, compared, flag_values=values)


def main(argv):
    """Writes the three files; an error of the user's is one line, and exit status 2."""
    if not argv[1:]:
        raise app.UsageError("Name at least one student: the folder of a run, a .keras or a .weights.h5 file.")

    def run():
        logging.set_verbosity(logging.ERROR)  # TensorFlow warns of every network, which it traces anew.
        for row in evaluate(argv[1:], flags.FLAGS):
            agreement = f", agreement {row['top1_agreement']:.4f}" if "top1_agreement" in row else ""
            print(f"{row['student']}, {row['split']}: accuracy {row['accuracy']:.4f}, ECE {row['ece']:.4f}{agreement}")
        print(f"{flags.FLAGS.output_dir}/evaluate.md")

    return cli.status(run)


if __name__ == "__main__":
    define_flags()
    cli.run(main)
