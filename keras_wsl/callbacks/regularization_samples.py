"""Regularization samples of fixed, unaugmented training examples: Zhou et al., ICLR 2021, figure 2, https://arxiv.org/abs/2102.00650."""

import pathlib

import keras
import numpy as np

from keras_wsl import regularization_samples, weighting
from keras_wsl.argument_checks import check_positive_int, check_temperature
from keras_wsl.backend import predict_batch
from keras_wsl.callbacks.epoch_csv import EpochCSV
from keras_wsl.callbacks.summary_writer import SummaryWriter
from keras_wsl.models.weights import weights_sha256
from keras_wsl.ops import class_indices
from keras_wsl.targets import Targets

COLUMNS = ("epoch", "examples", "regularization_samples", "regularization_sample_rate", "mean_wsl_weight")


class RegularizationSamples(keras.callbacks.Callback):
    """Count regularization samples on fixed, unaugmented examples after each epoch. Does not affect training.

    The `Distiller` also counts during training, on augmented batches with the student in training mode. `clean_data`
    are the same unaugmented examples each time, with the student in inference mode, so that epochs are comparable. A
    run with this callback ends in the same bits as a run without it.

    Adds `clean_regularization_samples` (a count), `clean_regularization_sample_rate` and `clean_mean_wsl_weight` to the
    logs. Writes to `directory`: TensorBoard scalars of the three, histograms of the weights and of the counts per
    class, and `regularization_samples.csv` with one row per epoch and one column per class. Without `clean_data`, it
    writes the counts of the training, without the classes and the histograms.

    Args:
        directory: Path of the directory. It is created if it is missing.
        clean_data: `None`, or `(inputs, labels)`: arrays or dicts of arrays, as for `fit`; or an iterable of batches
            `(inputs, labels)` in a fixed order. Labels may be a dict `{"labels": ..., "mask": ...}`. For sequences,
            unmasked positions are counted. For a teacher with precomputed logits, the dict must contain them.
        temperature: Positive float, the temperature of the criterion; by default that of the `Distiller`.
        batch_size: Integer, the number of examples per forward pass, if `clean_data` are arrays.

    Raises:
        ImportError: If the package `tensorboard` is not installed.
        ValueError: If the model is not a `Distiller` with a teacher, `clean_data` is empty or not a pair, or an
            argument is out of range.
    """

    def __init__(self, directory, clean_data=None, *, temperature=None, batch_size=500):
        super().__init__()
        self.table = EpochCSV(pathlib.Path(directory) / "regularization_samples.csv")
        self.events = SummaryWriter(directory)
        if isinstance(clean_data, (np.ndarray, dict)) or (isinstance(clean_data, tuple) and len(clean_data) != 2):
            raise ValueError(
                f"`clean_data` must be (inputs, labels), or batches of these. Received: {type(clean_data).__name__}. "
                "Pass both in a tuple."
            )
        self.clean_data, self.batch_size = clean_data, check_positive_int(batch_size, "batch_size")
        self.temperature = None if temperature is None else check_temperature(temperature)
        self._teacher_logits_t1 = self._teacher_logits_tau = self._mask = self._teacher_digests = None

    def on_train_begin(self, logs=None):
        """Check the model, compute the teacher's logits, and read the rows of previous epochs of a resumed run."""
        model = self.model
        if getattr(model, "teacher", None) is None or not model.distillation_losses:
            raise ValueError(
                "RegularizationSamples must be used with a Distiller that has a teacher and a distillation loss. "
                f"Received: {model.name}, a {type(model).__name__} without them."
            )
        if self.clean_data is not None:
            self._compute_teacher_logits()
            self._labels = np.concatenate([np.asarray(_labels(labels)) for _, labels in self._batches()])
            self._mask = self._compute_mask() if self._teacher_logits_t1.ndim > 2 else None
        self.table.read()

    def on_epoch_end(self, epoch, logs=None):
        """Evaluate the student, add to the logs, and write the row."""
        row = self._training_row(logs) if self.clean_data is None else self._evaluate(logs, epoch + 1)
        for name in COLUMNS[2:]:
            self.events.scalar(f"regularization/{name}", row[name], epoch + 1)
        self.events.flush()
        self.table.put(epoch + 1, row)

    def on_train_end(self, logs=None):
        """Close the event file."""
        self.events.close()

    def _compute_teacher_logits(self):
        self._teacher_digests = self._compute_teacher_digests()
        self._teacher_logits_t1, self._teacher_logits_tau = np.split(self._logits(self._teacher_batch), 2, axis=-1)

    def _compute_teacher_digests(self):
        """Return values that change when the weights of a teacher change."""
        return [weights_sha256(network) for network in self.model.teachers.models]

    def _training_row(self, logs):
        count, rate = logs["regularization_samples"], logs["regularization_sample_rate"]
        return {
            "examples": round(count / rate) if rate else "",
            **{name: float(logs[name]) for name in COLUMNS[2:]},
        }

    def _evaluate(self, logs, step):
        if self._teacher_digests != self._compute_teacher_digests():  # In online distillation.
            self._compute_teacher_logits()
        student = self._logits(self._student_batch)
        to_numpy = keras.ops.convert_to_numpy
        mask = to_numpy(
            regularization_samples.mask(self._labels, student, self._teacher_logits_tau, self._criterion_temperature())
        )
        weights = to_numpy(weighting.wsl(self._labels, student, self._teacher_logits_t1))
        classes = to_numpy(class_indices(self._labels, student))
        if self._mask is not None:
            mask, weights, classes = (values[self._mask] for values in (mask, weights, classes))
        by_class = np.bincount(classes[mask], minlength=student.shape[-1])
        row = {
            "examples": len(mask),
            "regularization_samples": int(mask.sum()),
            "regularization_sample_rate": float(mask.mean()),
            "mean_wsl_weight": float(weights.mean(dtype="float64")),
            **{f"class_{c}": int(count) for c, count in enumerate(by_class)},
        }
        logs.update({f"clean_{name}": row[name] for name in COLUMNS[2:]})
        self.events.histogram("regularization/wsl_weight", weights, step)
        # Each regularization sample adds its class to the histogram once.
        self.events.histogram("regularization/class", classes[mask], step, buckets=student.shape[-1])
        return row

    def _batches(self):
        if not isinstance(self.clean_data, tuple):
            return iter(self.clean_data)
        starts = range(0, len(_labels(self.clean_data[1])), self.batch_size)
        slices = (slice(i, i + self.batch_size) for i in starts)
        return (keras.tree.map_structure(lambda array, part=part: array[part], self.clean_data) for part in slices)

    def _logits(self, forward):
        logits = [np.asarray(forward(*batch), "float32") for batch in self._batches()]
        if not logits:
            raise ValueError(
                "`clean_data` must contain at least one batch. Received: no batch. Pass examples, or clean_data=None."
            )
        return np.concatenate(logits)

    def _compute_mask(self):
        """Return the valid positions of sequences: booleans, shape `(examples, time)`; `None` if all are valid."""
        masks = []
        for inputs, labels in self._batches():
            logits = self.model(keras.tree.map_structure(keras.ops.convert_to_tensor, inputs), training=False)
            masks.append(Targets.parse(labels).validate(logits).mask)
        if masks[0] is None:
            return None
        return np.concatenate([np.asarray(keras.ops.convert_to_numpy(mask), "bool") for mask in masks])

    def _student_batch(self, inputs, labels):
        # Not `predict`: on Torch its loader uses the generator that shuffles the training data, and under a strategy
        # each replica would evaluate the whole batch.
        return predict_batch(self.model, inputs)

    def _criterion_temperature(self):
        return self.temperature or self.model.temperature

    def _teacher_batch(self, inputs, labels):
        """Return the teacher's logits at temperature 1, for weights, and at that of the criterion, concatenated."""
        inputs, labels = keras.tree.map_structure(keras.ops.convert_to_tensor, (inputs, labels))
        outputs = self.model.teachers(inputs, Targets.parse(labels), training=False)
        temperatures = 1.0, self._criterion_temperature()
        logits = [self.model.objective.combine_teachers(outputs, temperature) for temperature in temperatures]
        return np.concatenate([keras.ops.convert_to_numpy(values) for values in logits], axis=-1)


def _labels(labels):
    return labels["labels"] if isinstance(labels, dict) else labels
