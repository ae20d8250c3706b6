"""Regularization samples of a fixed probe set: Zhou et al., ICLR 2021, figure 2, https://arxiv.org/abs/2102.00650."""

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
    """Counts regularization samples after every epoch, on a clean probe set and without a trace in the training.

    The `Distiller` counts in training too, on augmented batches with the student in training mode. The probe is the
    same unaugmented examples every time, with the student in inference mode, so that epochs compare. A run with this
    callback ends in the same bits as a run without.

    Adds `clean_regularization_samples` (a count), `clean_regularization_sample_rate` and `clean_mean_wsl_weight` to the
    logs. Writes into `log_dir`: TensorBoard scalars of the three, a histogram of the weights, and one of the counts by
    class; and `regularization_samples.csv`, a row an epoch with a column for each class. Without a probe it writes the
    training's own counts, without the classes and the histograms.

    Args:
        log_dir: Folder, made if it is missing.
        clean_data: `None`, or `(inputs, labels)`: arrays, or dicts of such, as `fit` takes them; or an iterable of
        batches
            `(inputs, labels)` in a fixed order. Labels may be a dict `{"labels": ..., "mask": ...}`; of sequences,
            unmasked positions count. Of a teacher that is given by its logits, they have these too.
        temperature: Positive float, at which to judge; the Distiller's own by default.
        batch_size: Integer, the examples in a forward pass of a probe of arrays.

    Raises:
        ImportError: If the package `tensorboard` is not installed.
        ValueError: If the model is not a `Distiller` with a teacher, the probe is empty or no pair, or a setting is out
            of its range.
    """

    def __init__(self, log_dir, clean_data=None, *, temperature=None, batch_size=500):
        super().__init__()
        self.table = EpochCSV(pathlib.Path(log_dir) / "regularization_samples.csv")
        self.events = SummaryWriter(log_dir)
        if isinstance(clean_data, (np.ndarray, dict)) or (isinstance(clean_data, tuple) and len(clean_data) != 2):
            raise ValueError(
                "The probe of RegularizationSamples must be (inputs, labels), or batches of such. Received: "
                f"{type(clean_data).__name__}. Give both, in a tuple."
            )
        self.clean_data, self.batch_size = clean_data, check_positive_int(batch_size, "batch_size")
        self.temperature = None if temperature is None else check_temperature(temperature)
        self._plain = self._softened = self._counted = self._asked = None

    def on_train_begin(self, logs=None):
        """Checks what it is to watch, asks the teacher, and reads the rows of epochs before a resumed one."""
        model = self.model
        if getattr(model, "teacher", None) is None or not model.distillation_losses:
            raise ValueError(
                f"RegularizationSamples compares a student with its teacher. {model.name} has none: use it with a "
                "Distiller that has a teacher and a distillation loss."
            )
        if self.clean_data is not None:
            self._ask_the_teacher()
            self._labels = np.concatenate([np.asarray(_labels(labels)) for _, labels in self._batches()])
            self._counted = self._position_masks() if self._plain.ndim > 2 else None
        self.table.read()

    def on_epoch_end(self, epoch, logs=None):
        """Judges the probe, adds to the logs, writes the row."""
        row = self._training_row(logs) if self.clean_data is None else self._probe_row(logs, epoch + 1)
        for name in COLUMNS[2:]:
            self.events.scalar(f"regularization/{name}", row[name], epoch + 1)
        self.events.flush()
        self.table.put(epoch + 1, row)

    def on_train_end(self, logs=None):
        """Ends the events file."""
        self.events.close()

    def _ask_the_teacher(self):
        self._asked = self._teachers_weights()
        self._plain, self._softened = np.split(self._logits(self._teacher_batch), 2, axis=-1)

    def _teachers_weights(self):
        """What differs where the weights of a teacher do."""
        return [weights_sha256(network) for network in self.model.teachers.models]

    def _training_row(self, logs):
        count, share = logs["regularization_samples"], logs["regularization_sample_rate"]
        return {
            "examples": round(count / share) if share else "",
            **{name: float(logs[name]) for name in COLUMNS[2:]},
        }

    def _probe_row(self, logs, step):
        if self._asked != self._teachers_weights():  # Of online distillation.
            self._ask_the_teacher()
        student = self._logits(self._student_batch)
        to_numpy = keras.ops.convert_to_numpy
        mask = to_numpy(regularization_samples.mask(self._labels, student, self._softened, self._judged_at()))
        weights = to_numpy(weighting.wsl(self._labels, student, self._plain))
        classes = to_numpy(class_indices(self._labels, student))
        if self._counted is not None:
            mask, weights, classes = (values[self._counted] for values in (mask, weights, classes))
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
        # A class stands in the histogram as often as it has regularization samples.
        self.events.histogram("regularization/class", classes[mask], step, buckets=student.shape[-1])
        return row

    def _batches(self):
        if not isinstance(self.clean_data, tuple):
            return iter(self.clean_data)
        starts = range(0, len(_labels(self.clean_data[1])), self.batch_size)
        parts = (slice(i, i + self.batch_size) for i in starts)
        return (keras.tree.map_structure(lambda array, part=part: array[part], self.clean_data) for part in parts)

    def _logits(self, forward):
        logits = [np.asarray(forward(*batch), "float32") for batch in self._batches()]
        if not logits:
            raise ValueError(
                "The probe of RegularizationSamples is empty. Pass at least one batch, or clean_data=None."
            )
        return np.concatenate(logits)

    def _position_masks(self):
        """Which positions of the probe's sequences count: booleans, `(examples, time)`; `None` where all do."""
        masks = []
        for inputs, labels in self._batches():
            logits = self.model(keras.tree.map_structure(keras.ops.convert_to_tensor, inputs), training=False)
            masks.append(Targets.parse(labels).validate(logits).mask)
        if masks[0] is None:
            return None
        return np.concatenate([np.asarray(keras.ops.convert_to_numpy(mask), "bool") for mask in masks])

    def _student_batch(self, inputs, labels):
        # Not `predict`: on Torch its loader draws from the generator that shuffles the training, and under a strategy
        # every replica would judge the whole batch.
        return predict_batch(self.model, inputs)

    def _judged_at(self):
        return self.temperature or self.model.temperature

    def _teacher_batch(self, inputs, labels):
        """What the loss hears at temperature 1, for weights, and where samples are judged: side by side."""
        inputs, labels = keras.tree.map_structure(keras.ops.convert_to_tensor, (inputs, labels))
        outputs = self.model.teachers(inputs, Targets.parse(labels), training=False)
        combine = self.model.objective.combine_teachers
        heard = [combine(outputs, temperature) for temperature in (1.0, self._judged_at())]
        return np.concatenate([keras.ops.convert_to_numpy(logits) for logits in heard], axis=-1)


def _labels(labels):
    return labels["labels"] if isinstance(labels, dict) else labels
