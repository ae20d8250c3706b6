"""Distiller: trains a student on labels and on what a teacher computes. Knows no method by name."""

import contextlib
import inspect

import keras
import numpy as np
from keras import ops

from keras_wsl import losses, regularization_samples, weighting
from keras_wsl.backend import step
from keras_wsl.features import FeatureExtractor, check_network, explained, frozen, get_keras_mask, symbolic_inputs
from keras_wsl.ops import (
    InputError,
    check_non_negative,
    class_indices,
    labels_are_categorical,
    masked_mean_over_time,
    to_int32,
)
from keras_wsl.top_k_logits import expand
from keras_wsl.validation import check_arrays, class_weights, flat_weights, labels_of

MASK = "logits.mask"  # Where the student's endpoints have Keras's mask of the logits.
FILES = (".keras", ".h5")
COUNTS = ("regularization_samples", "regularization_sample_rate", "mean_wsl_weight")


@keras.saving.register_keras_serializable("keras_wsl")
class Distiller(step(), keras.Model):
    r"""A model that trains its student with the help of a teacher.

    $$L = w_s \frac{1}{n} \sum_i \mathrm{CE}_i + r \sum_k w_k \frac{1}{n} \sum_i \ell_{ki} + R$$

    $\mathrm{CE}_i$ is the compiled `loss` of an example, $\ell_{ki}$ the `distillation_losses`, $w_s$ the
    `student_loss_weight`, $w_k$ each loss's own `weight`, $r$ the `distillation_scale`, 1 unless
    `callbacks.DistillationWarmup` moves it, $R$ the student's regularisers and `add_loss`. Sample weights and class
    weights multiply every term of an example. With WSL and the defaults: Zhou et al., ICLR 2021,
    https://arxiv.org/abs/2102.00650.

    ```python
    distiller = Distiller(teacher, student, losses.WSL(temperature=4.0, weight=2.25))
    distiller.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    distiller.fit(x, y)
    ```

    Both networks give logits, shape `(batch, classes)`, and each runs once a step: the student in training mode, the
    teacher in inference mode and as a constant. The teacher is a guest: it is left as it was found, and is in no
    checkpoint, `.keras` file or export. After `keras.saving.load_model`, set `distiller.teacher`, and `fit` goes on.
    `evaluate` and `predict` are the student's and run no teacher.

    A teacher may also be the name of what it has said already: of a key of the labels' dict that holds its logits, such
    as `"teacher_logits"`, which `data.train_batches(..., soft_labels=...)` brings. Then no teacher runs.

    Of several teachers, a dict by name, each loss says to whom it listens: `KD(teacher="large")`, or to the mean of
    their probabilities: `KD(teacher={"large": 2.0, "small": 1.0})`.

    Labels are integers, or distributions (one-hot, smoothed, mixed), or a dict `{"labels": ..., "index": ...}` with
    each example's number in its data set. Logits of a sequence have the shape `(batch, time, classes)`: an example's
    loss is then the mean over its positions, but for those that a mask leaves out, Keras's own of the logits or
    `"mask"` in that dict, `(batch, time)`. As in NumPy, every number but 0 in a mask is true.

    Logged beside `loss` and the compiled metrics, each a mean over the epoch's examples: `student_loss`; every
    distillation loss by its name, before its `weight`; `distillation_loss`, their weighted sum; `mean_wsl_weight`,
    `regularization_sample_rate`; and `regularization_samples`, a count. The last three are of the batches as they are
    trained on, at the temperature of the first loss that has one, else at 1.

    Args:
        teacher: A built `keras.Model`, a key of the labels' dict, or a dict of several by name; `None` for labels
            alone, for losses that need none, or to be set later.
        student: A built `keras.Model`.
        distillation_losses: One or a list of what `losses.get` takes: a `losses.DistillationLoss`, a name, a loss of
            `keras.distillation`.
        student_loss_weight: Float, $w_s$.
        teacher_batch_statistics: Whether the teacher's batch normalization uses the statistics of the batch, as the
        reference
            scripts do. It changes none of its state either way.
        student_inputs: What the student is given of a batch's inputs `x`: a key where `x` is a dict, or a function or
            layer, such as a `keras.layers.Rescaling`; `x` itself by default. The student alone, and its export, expect
            what this gives.
        teacher_inputs: What a teacher is given, likewise; of several, a dict by their names.
        name: The model's name.

    Raises:
        ValueError: If a network gives probabilities, the networks do not fit a loss, two losses share a name, a
            setting is out of its range, or training would change a variable that a teacher shares with the student.
            Frozen layers may be shared, except those that draw random numbers.
    """

    def __init__(
        self,
        teacher,
        student,
        distillation_losses=(),
        *,
        student_loss_weight=1.0,
        teacher_batch_statistics=False,
        student_inputs=None,
        teacher_inputs=None,
        name="distiller",
    ):
        check_network("student", student)
        # Keras scales the loss by the policy here. What the inputs are cast to is for the student's layers to say.
        super().__init__(name=name, dtype=_policy(student), autocast=False)
        if not isinstance(distillation_losses, (list, tuple)):
            distillation_losses = [distillation_losses]
        self.student = student
        self.distillation_losses = [losses.get(loss) for loss in distillation_losses]
        self.student_loss_weight = check_non_negative(student_loss_weight, "student_loss_weight")
        self.teacher_batch_statistics = bool(teacher_batch_statistics)
        self.student_inputs = _checked_choice("student_inputs", student_inputs)
        self.teacher_inputs = _checked_choice("teacher_inputs", teacher_inputs)
        self.temperature = next((loss.temperature for loss in self.distillation_losses if loss.temperature), 1.0)
        self._means = {name: keras.metrics.Mean(name=name) for name in self._names()}
        self._count = _Count(name=COUNTS[0])
        self.distillation_scale = self.add_weight(
            shape=(), initializer="ones", trainable=False, dtype="float32", name="distillation_scale"
        )
        self._comparable = True  # Whether logits of student and teacher are of the same classes.
        self._evaluating = False
        self._class_weight = self._traced_class_weight = None  # Of each class, in the step and when it was traced.
        self._student_endpoints = FeatureExtractor(
            student, {name for loss in self.distillation_losses for name in loss.student_layers}
        )
        self._check_devices()
        self.teacher = teacher

    def _names(self):
        """Names of the means in the logs: of the terms, and of the counts where there is a teacher to compare with."""
        names = ["student_loss", *(loss.name for loss in self.distillation_losses)]
        if self.distillation_losses:
            names += ["distillation_loss", *COUNTS[1:]]
        taken = [*names, "loss", COUNTS[0]]
        if twice := sorted({name for name in taken if taken.count(name) > 1}):
            raise ValueError(
                f"The names {twice} stand in the logs twice. Give each distillation loss a `name` of its own that is "
                f"none of {sorted({'loss', 'student_loss', 'distillation_loss', *COUNTS})}."
            )
        return names

    # The teacher is a guest: read in training, invisible to tracking and saving.

    @property
    def teacher(self):
        """The model that teaches, the key of its logits in the labels' dict, a dict of several by name, or `None`."""
        return self._teacher()

    @property
    def live_teachers(self):
        """The teachers that run in a step, a list of models; those whose logits are given are not among them."""
        teacher = self.teacher if self.__dict__.get("_teacher") else None
        teachers = teacher.values() if isinstance(teacher, dict) else [teacher]
        return [model for model in teachers if isinstance(model, keras.Model)]

    def __setattr__(self, name, value):
        # A property's setter comes too late: Keras, and Torch, register a layer before it runs.
        if name != "teacher":
            return super().__setattr__(name, value)
        self._welcome(value)

    def __dir__(self):
        guests = {"teacher", "live_teachers"}  # Saving walks `dir`.
        return [name for name in super().__dir__() if name not in guests]

    def _welcome(self, teacher):
        """Takes the teacher in, or several, and builds the losses on the shapes of all networks' endpoints."""
        teachers = teacher if isinstance(teacher, dict) else {} if teacher is None else {"teacher": teacher}
        if isinstance(teacher, dict) and not teacher:
            raise ValueError("`teacher` is an empty dict. Give at least one teacher by name, or None.")
        if files := [model for model in teachers.values() if isinstance(model, str) and model.endswith(FILES)]:
            raise ValueError(
                f"`teacher` must be a network, or the key of its logits in the labels' dict. Received: the file "
                f"{files[0]!r}. Load it first: keras_wsl.models.build(..., weights={files[0]!r})."
            )
        networks = {name: model for name, model in teachers.items() if not isinstance(model, str)}
        if len(networks) < len(teachers) and self.teacher_batch_statistics:
            raise ValueError("`teacher_batch_statistics` is for a teacher that runs, and the logits of one are given.")
        for name, model in networks.items():
            check_network(name, model)
            if model is self.student:
                raise ValueError("Teacher and student are one model. Clone it: a student needs weights of its own.")
        if teachers and isinstance(self.teacher_inputs, dict) and (unknown := set(self.teacher_inputs) - set(teachers)):
            raise ValueError(
                f"`teacher_inputs` is for teachers {sorted(unknown)}. The distiller's teachers are {sorted(teachers)}."
            )
        heard = [loss.shares(teachers) if teachers else {} for loss in self.distillation_losses]
        endpoints = {}
        for name, model in teachers.items():
            wanted = [loss for loss, shares in zip(self.distillation_losses, heard) if name in shares]
            layers = {loss.name: loss.teacher_layers for loss in wanted if loss.teacher_layers}
            if name not in networks and layers:
                raise ValueError(
                    f"The teacher {model!r} is given by its logits alone, and {min(layers)} needs its "
                    f"{layers[min(layers)]}. Use losses on logits, or a teacher that runs."
                )
            if wanted or not self.distillation_losses:
                inner = {layer for names in layers.values() for layer in names}
                endpoints[name] = FeatureExtractor(model, inner) if name in networks else model
        # Closures: whatever Keras finds in an attribute, it tracks and saves.
        self.__dict__["_teacher"] = lambda: teacher
        self.__dict__["_teacher_endpoints"] = lambda: endpoints
        self.train_function = None  # A traced step keeps the teacher that it was traced with.
        self._meet(networks, heard)
        self._check_shared_variables()
        # Everything is built, if only from a file: optimizers and backups may look for the variables.
        self.built = self.student.built and all(loss.built for loss in self.distillation_losses)

    def _meet(self, networks, heard):
        """Builds the losses, and shows them the networks to whom each listens."""
        told = self._teacher_endpoints()
        if not self.distillation_losses or not (told or self._teaches_itself()):
            return
        student_shapes = self._student_endpoints.shapes()
        self._classes = student_shapes["logits"][-1]
        # What is given has as many classes as the student, or the step will say so.
        given = {"logits": student_shapes["logits"]}
        shapes = {name: given if isinstance(ends, str) else ends.shapes() for name, ends in told.items()}
        for name in networks.keys() & shapes.keys():
            if self.student_inputs is None and self._inputs_of(name) is None:
                _check_same_inputs(self.student, networks[name])
        for loss, shares in zip(self.distillation_losses, heard):
            ours = [shapes[name] for name in shares]
            if any(other["logits"] != ours[0]["logits"] for other in ours):
                raise ValueError(
                    f"{loss.name} listens to teachers of different classes: "
                    f"{ {name: shapes[name]['logits'][-1] for name in shares} }. Choose among them with `teacher`."
                )
            if not loss.built:
                loss.build((None,), student_shapes, ours[0] if ours else {})
                loss.built = True
            if len(shares) == 1 and (only := next(iter(shares))) in networks:
                loss.meet(self.student, networks[only])
        first = next(iter(heard[0]), None)
        self._comparable = first is not None and student_shapes["logits"][-1] == shapes[first]["logits"][-1]

    def _check_shared_variables(self):
        """Raise `ValueError` if training would change a variable of a teacher, because student or losses have it too.

        Training changes what is trainable; what the student's forward pass assigns; and, of layers in losses that are
        not frozen, all state.
        """
        own = {id(variable) for variable in self.variables}
        for model in self.live_teachers:
            shared = [variable for variable in model.variables if id(variable) in own]
            if not shared:
                continue
            changed = {id(variable) for variable in self.trainable_variables}
            changed |= self._student_endpoints.updated_in_training()
            for layer in self._flatten_layers():  # Symbolic layers on Torch draw nothing from their seeds.
                changed |= {id(generator.state) for generator in layer._seed_generators}
            for layer in (layer for loss in self.distillation_losses for layer in loss._flatten_layers()):
                changed |= {id(variable) for variable in layer._non_trainable_variables if layer.trainable}
            if names := [variable.path for variable in shared if id(variable) in changed]:
                raise ValueError(
                    f"The student or a loss shares {len(names)} variables with the teacher {model.name!r} that "
                    f"training would change: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}. A teacher is "
                    "never modified. Freeze their layers (`layer.trainable = False`), or clone them "
                    "(`keras.models.clone_model`); the seeds of random layers change even if these are frozen."
                )

    def _teaches_itself(self):
        """Whether no loss needs a teacher."""
        return not any(loss.needs_teacher for loss in self.distillation_losses)

    def _inputs_of(self, teacher):
        """What the teacher of that name is given of a batch's inputs: a key, a function, or `None` for all."""
        inputs = self.teacher_inputs
        return inputs.get(teacher) if isinstance(inputs, dict) else inputs

    @property
    def non_trainable_variables(self):
        """The Distiller's own and the teachers': on JAX they are the state of a step, all else a constant of it."""
        variables = super().non_trainable_variables
        teachers = self.live_teachers
        if not teachers:
            return variables
        seen = {id(variable) for variable in self.variables}  # A buffer cannot be donated twice.
        for model in teachers:
            variables = variables + [variable for variable in model.variables if id(variable) not in seen]
            seen |= {id(variable) for variable in model.variables}
        return variables

    def _purge_model_variables(self, **kwargs):
        """JAX: keeps the values that Keras drops before it traces; an error there would lose both networks."""

    def build(self, input_shape=None):
        """Nothing: all is built when the teacher arrives, or from the shapes in a file."""

    # What a step computes.

    def call(self, inputs, training=False):
        """The student's logits; in training a dict of its endpoints."""
        inputs = _selected(self.student_inputs, inputs)
        if training:
            outputs = self._student_endpoints(inputs, training=True)
            mask = get_keras_mask(outputs["logits"])
            # An entry of its own: on JAX, what Keras keeps beside a tensor does not leave the gradient's trace.
            return outputs if mask is None else {**outputs, MASK: mask}
        with explained(self.student, inputs):
            return _logits(self.student(inputs, training=False))

    def teacher_outputs(self, inputs, y=None, training=None):
        """What the teachers' endpoints are on a batch's inputs, as constants.

        Args:
            inputs: The batch's inputs, before `teacher_inputs`.
            y: The batch's targets, which have the logits of teachers that do not run.
            training: Whether with the batch's statistics; `teacher_batch_statistics` by default.

        Returns:
            Dict of endpoints; of several teachers a dict of their names to such; empty where nothing is distilled.
        """
        if not self.distillation_losses:
            return {}
        training = self.teacher_batch_statistics if training is None else training
        outputs = {}
        for name, endpoints in self._teacher_endpoints().items():
            if isinstance(endpoints, str):
                outputs[name] = {"logits": self._given_logits(endpoints, y)}
            else:
                given = _selected(self._inputs_of(name), inputs)
                outputs[name] = frozen(endpoints, endpoints.model, given, training=training)
        return outputs if isinstance(self.teacher, dict) else outputs.get("teacher", {})

    def _given_logits(self, key, y):
        """The logits that a batch's targets have of a teacher, all or the highest, as constants."""
        if not isinstance(y, dict) or key not in y:
            came = f"a dict of {sorted(y)}" if isinstance(y, dict) else "no dict"
            raise ValueError(
                f"The distiller's teacher is {key!r} of the labels' dict. Received: {came}. Bring its logits in "
                "batches, such as those of data.train_batches(..., soft_labels=...)."
            )
        if isinstance(y[key], dict):
            return keras.tree.map_structure(ops.stop_gradient, expand(y[key], labels_of(y), self._classes))
        logits = ops.convert_to_tensor(y[key])
        if logits.shape[-1] != self._classes:
            raise ValueError(f"{key!r} has {logits.shape[-1]} logits an example, and the student {self._classes}.")
        return ops.stop_gradient(ops.cast(logits, "float32"))

    def combined_teacher_logits(self, teacher, temperature):
        """The teachers' logits as the first loss hears them: of several, the mean of probabilities at a temperature.

        Args:
            teacher: What `teacher_outputs` gives.
            temperature: Positive float.

        Returns:
            Floats, shape `(batch, classes)`.
        """
        return ops.cast(self.distillation_losses[0].heard(teacher, temperature)["logits"], "float32")

    def validate_labels(self, y, student):
        """The labels in `y`; where they are integers, int32 and checked as far as the backend can.

        Args:
            y: A batch's targets, labels or a dict that has them.
            student: The student's endpoints, or its logits.
        """
        labels, logits = labels_of(y), _logits(student)
        if labels_are_categorical(labels, logits):
            return labels
        labels, mask = to_int32(labels), self.timestep_mask(y, student)
        if mask is not None:  # What stands in padding, often -1 or -100, is no label.
            labels = ops.where(mask, ops.reshape(labels, ops.shape(mask)), 0)
        return self._check_range("Labels", labels, logits.shape[-1])

    def compute_per_example_losses(self, y, labels, student, teacher, sample_weight=None):
        """Every term of the objective, example by example.

        Args:
            y: A batch's targets, labels or a dict that has them.
            labels: As `validate_labels` gives them.
            student: The student's endpoints.
            teacher: What `teacher_outputs` gives.
            sample_weight: `None`, or floats, shape `(batch,)`.

        Returns:
            `(rows, total)`: a dict of the terms by their names in the logs, and their weighted sum, all `(batch,)`.
        """
        mask = self.timestep_mask(y, student)
        rows = {"student_loss": self.student_loss_per_example(labels, student["logits"], mask)}
        distillation = []
        for loss in self.distillation_losses:
            settings = {"index": self._index(y, loss), "student_mask": {"logits": mask}, "training": True}
            rows[loss.name] = loss(labels, student, teacher, **settings)
            distillation.append(loss.weight * rows[loss.name])
        terms = []
        if self.student_loss_weight:  # Without it, no gradient reaches a head that nothing else trains.
            terms.append(self.student_loss_weight * rows["student_loss"])
        if distillation:
            rows["distillation_loss"] = self.distillation_scale * sum(distillation[1:], distillation[0])
            terms.append(rows["distillation_loss"])
        total = sum(terms[1:], terms[0]) if terms else 0.0 * rows["student_loss"]
        weight = self.example_weights(labels, student["logits"], sample_weight)
        if weight is not None:
            rows, total = {name: weight * values for name, values in rows.items()}, weight * total
        return rows, total

    def student_loss_per_example(self, labels, logits, mask=None, sample_weight=None):
        """The compiled loss of each example, in float32: `(batch,)`. NaN where an integer label is out of range."""
        logits = ops.cast(logits, "float32")
        loss = self._compiled_loss()
        _check_kind(loss, labels, logits)
        values = loss.call(labels, logits) if isinstance(loss, keras.losses.Loss) else loss(labels, logits)
        if not len(values.shape):
            raise InputError(
                f"The compiled loss {_name(loss)!r} gives one number for a batch. It must give one an example: take "
                "the mean over the last axis alone."
            )
        if not labels_are_categorical(labels, logits):
            in_range = ops.logical_and(labels >= 0, labels < logits.shape[-1])
            values = ops.where(ops.reshape(in_range, ops.shape(values)), values, float("nan"))
        rows = masked_mean_over_time(values, mask if len(values.shape) > 1 else None)
        return rows if sample_weight is None else rows * self.checked_weights(sample_weight)

    def checked_weights(self, sample_weight):
        """Return the weights of a batch as float32, shape `(batch,)`, checked as far as the backend can.

        A weight that is negative or not finite becomes NaN, and so the loss.

        Args:
            sample_weight: Numbers, shape `(batch,)` or `(batch, 1)`, or a dict of such.
        """
        weights = self._check_range("`sample_weight`", flat_weights(sample_weight), float("inf"))
        return ops.where(ops.logical_and(weights >= 0, weights < float("inf")), weights, float("nan"))

    def example_weights(self, labels, logits, sample_weight=None):
        """Return the weight of each example in training: its `sample_weight` times the class weight of its label.

        Args:
            labels: Integers, shape `(batch,)`, or distributions, whose likeliest class counts.
            logits: The student's logits, shape `(batch, classes)`.
            sample_weight: `None`, or as `checked_weights` takes it.

        Returns:
            `None` if all weights are 1, or float32, shape `(batch,)`.
        """
        weights = None if sample_weight is None else self.checked_weights(sample_weight)
        if self._class_weight is None:
            return weights
        by_class = ops.take(ops.convert_to_tensor(self._class_weight), class_indices(labels, logits))
        return by_class if weights is None else by_class * weights

    def timestep_mask(self, y, student):
        """Which positions of a sequence count: of the targets, or Keras's own of the logits.

        Args:
            y: A batch's targets, labels or a dict that has them.
            student: The student's endpoints, or its logits: `(batch, classes)` or `(batch, time, classes)`.

        Returns:
            `None`, or booleans of shape `(batch, time)`. In a mask of numbers, every number but 0 is true, as in NumPy.
        """
        logits = _logits(student)
        if len(logits.shape) < 3:
            return None
        for holder, key in ((y, "mask"), (student, MASK)):
            if isinstance(holder, dict) and holder.get(key) is not None:
                return ops.cast(holder[key], "bool")
        return get_keras_mask(logits)

    def _index(self, y, loss):
        """The examples' numbers in the targets, checked as far as the backend can; `None` where there are none."""
        index = y.get("index") if isinstance(y, dict) else None
        if index is None or not loss.requires_example_index:
            return None
        return self._check_range("The index of an example", to_int32(ops.reshape(index, (-1,))), loss.examples)

    def update_loss_metrics(self, y, labels, student, teacher, rows):
        """Takes the rows of a step, and what it shows of regularization samples, into the epoch's means."""
        for name, values in rows.items():
            self._means[name].update_state(values)
        if not self.distillation_losses or not self._comparable:
            return
        logits = ops.cast(student["logits"], "float32")
        mask = self.timestep_mask(y, student)  # Of a sequence, positions are counted.
        counted = None if mask is None else ops.cast(mask, "float32")
        softened, plain = (
            self.combined_teacher_logits(teacher, temperature) for temperature in (self.temperature, 1.0)
        )
        samples = ops.cast(regularization_samples.mask(labels, logits, softened, self.temperature), "float32")
        self._count.update_state(samples, counted)
        self._means["regularization_sample_rate"].update_state(samples, counted)
        self._means["mean_wsl_weight"].update_state(weighting.wsl(labels, logits, plain), counted)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """The objective, a scalar; where not training, the student's own loss and no teacher."""
        labels = self.validate_labels(y, y_pred)
        penalty = sum(self.losses, ops.zeros(()))
        if not training:
            logits = _logits(y_pred)
            return (
                ops.mean(self.student_loss_per_example(labels, logits, self.timestep_mask(y, logits), sample_weight))
                + penalty
            )
        teacher = self.teacher_outputs(x, y)
        rows, total = self.compute_per_example_losses(y, labels, y_pred, teacher, sample_weight)
        self.update_loss_metrics(y, labels, y_pred, teacher, rows)
        return ops.mean(total) + penalty

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """The compiled metrics, of labels and student's logits; weighted ones leave out masked positions."""
        labels, logits = labels_of(y), _logits(y_pred)
        weight, mask = self.example_weights(labels, logits, sample_weight), self.timestep_mask(y, y_pred)
        if mask is not None:
            mask = ops.cast(mask, "float32")
            weight = mask if weight is None else weight[:, None] * mask
        return super().compute_metrics(x, labels, logits, weight)

    # Evaluation is the student's alone: its logs have no entries of the training.

    def get_metrics_result(self):
        """The logs: in evaluation without the terms of the training."""
        hidden = {COUNTS[0], *self._means} if self._evaluating else set()
        if not self.distillation_losses or not self._comparable:
            hidden |= set(COUNTS)
        return {name: value for name, value in super().get_metrics_result().items() if name not in hidden}

    def fit(self, x=None, y=None, *args, **kwargs):
        """Train as `keras.Model.fit` does.

        Labels and weights that are arrays are checked first. `class_weight` multiplies `sample_weight`; it may come
        with every kind of data and of labels, but not with sequences. Of a label that is a distribution, the likeliest
        class counts. As in Keras, it does not count in validation.

        Raises:
            ValueError: If labels or weights are of the wrong type, or out of their range.
        """
        given = inspect.signature(super().fit).bind(x, y, *args, **kwargs).arguments
        self._check_arrays(y, given.get("sample_weight"))
        if isinstance(given.get("validation_data"), (list, tuple)):
            self._check_arrays(*keras.utils.unpack_x_y_sample_weight(given["validation_data"])[1:])
        with self._weighting_classes(given.pop("class_weight", None)), self._discarding_failed_step():
            return super().fit(**given)

    def train_on_batch(self, x, y=None, sample_weight=None, class_weight=None, return_dict=False):
        """Train on one batch as `keras.Model.train_on_batch` does; `class_weight` as in `fit`."""
        self._check_arrays(y, sample_weight)
        with self._weighting_classes(class_weight), self._discarding_failed_step():
            return super().train_on_batch(x, y, sample_weight=sample_weight, return_dict=return_dict)

    def _check_arrays(self, y, sample_weight=None):
        shape = self._student_endpoints.shapes()["logits"] if self.student.built else None
        check_arrays(y, sample_weight, shape)

    def _weighting_classes(self, class_weight):
        """A context in which every training step weights examples by their classes."""
        weights = class_weight
        if class_weight is not None:
            weights = class_weights(class_weight, self._student_endpoints.shapes()["logits"])
        return self._setting(_class_weight=weights)

    @contextlib.contextmanager
    def _discarding_failed_step(self):
        """A context that discards the compiled step after an error: TensorFlow cannot trace it again."""
        try:
            yield
        except Exception:
            self.train_function = None
            raise

    @contextlib.contextmanager
    def _setting(self, **attributes):
        """A context in which these attributes have other values."""
        before = {name: getattr(self, name) for name in attributes}
        try:
            for name, value in attributes.items():
                setattr(self, name, value)
            yield
        finally:
            for name, value in before.items():
                setattr(self, name, value)

    def evaluate(self, *args, **kwargs):
        """`student.evaluate` with the compiled loss and metrics; runs no teacher."""
        given = inspect.signature(super().evaluate).bind(*args, **kwargs).arguments
        self._check_arrays(given.get("y"), given.get("sample_weight"))
        with self._setting(_evaluating=True, _class_weight=None):
            return super().evaluate(*args, **kwargs)

    def test_on_batch(self, *args, **kwargs):
        """As `evaluate`, of one batch."""
        with self._setting(_evaluating=True, _class_weight=None):
            return super().test_on_batch(*args, **kwargs)

    def make_train_function(self, force=False):
        """Refuses what would fail inside the step, where Torch and JAX have changed state by then."""
        if self.teacher is None and not self._teaches_itself():
            raise ValueError("The distiller has no teacher: files do not keep it. Set `distiller.teacher`, then fit.")
        if self.compiled and self.optimizer is None:
            raise ValueError("The distiller has no optimizer. Received: optimizer=None. Compile it with one, then fit.")
        if self.student.built and not any(variable.trainable for variable in self.variables):
            raise ValueError(
                "There is nothing to train: the student has no trainable variables, and no loss has adapters. Set "
                "`trainable = True` on the layers that are to learn, then fit."
            )
        self._check_shared_variables()  # Again, because a layer may have been thawed.
        self._compiled_loss()
        if not np.array_equal(self._class_weight, self._traced_class_weight):
            self._traced_class_weight, force = self._class_weight, True
        return super().make_train_function(force=force)

    def make_test_function(self, force=False):
        """Refuses a compiled loss that expects probabilities."""
        self._compiled_loss()
        return super().make_test_function(force=force)

    def _compiled_loss(self):
        """The compiled loss, a function or `keras.losses.Loss` of labels and logits.

        Raises:
            ValueError: If there is none, or several; it expects probabilities; or it is a sum over examples.
        """
        loss = self.loss if self.compiled and self._compile_loss else None
        if loss is None or isinstance(loss, (dict, list, tuple)):
            raise ValueError(
                "Compile the distiller with one loss of the labels, such as "
                "keras.losses.SparseCategoricalCrossentropy(from_logits=True). Received: "
                f"{'none' if loss is None else 'several'}."
            )
        loss = keras.losses.get(loss)
        if isinstance(loss, keras.losses.Loss):
            settings = loss.get_config()
            if loss.reduction == "sum":
                raise ValueError("The distiller takes the mean over examples. Compile a loss without reduction='sum'.")
        else:
            settings = {name: p.default for name, p in inspect.signature(loss).parameters.items()}
        if settings.get("from_logits", True) is False:
            raise ValueError(
                f"The student gives logits, and the compiled loss {_name(loss)!r} expects probabilities. Compile it "
                f"with from_logits=True, such as keras.losses.SparseCategoricalCrossentropy(from_logits=True)."
            )
        self._compile_loss.built = True  # Keras does not call it, and would look for its shapes at every fit.
        return loss

    # Files.

    def get_config(self):
        """The constructor's arguments, without the teacher."""
        return {
            "student": keras.saving.serialize_keras_object(self.student),
            "distillation_losses": [keras.saving.serialize_keras_object(loss) for loss in self.distillation_losses],
            "student_loss_weight": self.student_loss_weight,
            "teacher_batch_statistics": self.teacher_batch_statistics,
            "student_inputs": keras.saving.serialize_keras_object(self.student_inputs),
            "teacher_inputs": keras.saving.serialize_keras_object(self.teacher_inputs),
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """The Distiller that `get_config` describes; its teacher is to be set."""
        config = dict(config)
        for key in ("student", "distillation_losses", "student_inputs", "teacher_inputs"):
            config[key] = keras.saving.deserialize_keras_object(config[key], custom_objects=custom_objects)
        return cls(None, **config)

    @classmethod
    def from_keras(cls, distiller):
        r"""The Distiller that a `keras.distillation.Distiller` means.

        Its total $w \mathrm{CE} + (1 - w) \sum_k w_k L_k$ becomes the weights of ours. It is to be compiled, and
        thaws nothing: Keras's has set the teacher's `trainable` to `False`.

        Args:
            distiller: A `keras.distillation.Distiller`.
        """
        share = 1 - distiller.student_loss_weight
        weights = distiller.distillation_loss_weights
        names = [losses.get(loss).name for loss in distiller.distillation_losses]
        return cls(
            distiller.teacher,
            distiller.student,
            [
                losses.get(loss, weight=share * weight, name=name if names.count(name) == 1 else f"{name}_{i}")
                for i, (loss, weight, name) in enumerate(zip(distiller.distillation_losses, weights, names))
            ],
            student_loss_weight=distiller.student_loss_weight,
        )


class _Count(keras.metrics.Sum):
    """A sum that stays what it was when the metric is reset: on Torch, Keras's gives out its own variable."""

    def result(self):
        return super().result() + 0


def _checked_choice(name, choice):
    """What a network is given of the inputs; raises `ValueError` where it is none that `_selected` can take."""
    choices = choice.values() if isinstance(choice, dict) and name == "teacher_inputs" else [choice]
    if not all(each is None or isinstance(each, str) or callable(each) for each in choices):
        raise ValueError(
            f"`{name}` must be a key of the inputs, a function or a layer. Received: {choice!r}. Leave it out for all "
            "of the inputs."
        )
    return choice


def _name(loss):
    """Of a compiled loss, a function or a `keras.losses.Loss`."""
    return getattr(loss, "name", None) or getattr(loss, "__name__", type(loss).__name__)


def _check_kind(loss, labels, logits):
    """Raises `InputError` where one of Keras's losses is given labels of the kind that it is not for."""
    if not loss.__module__.startswith("keras.src"):
        return
    name = _name(loss)
    kinds = {True: "integer labels", False: "labels that are distributions"}
    integers = not labels_are_categorical(labels, logits)
    if name.startswith("sparse") != integers:
        fitting = "SparseCategoricalCrossentropy" if integers else "CategoricalCrossentropy"
        raise InputError(
            f"The compiled loss {name!r} is for {kinds[not integers]}. Received: {kinds[integers]}, of shape "
            f"{tuple(labels.shape)}. Compile the distiller with keras.losses.{fitting}(from_logits=True)."
        )


def _selected(choice, inputs):
    """What a network is given of a batch's inputs: one key's, or what a function makes of them."""
    if choice is None:
        return inputs
    if not isinstance(choice, str):
        return choice(inputs)
    if not isinstance(inputs, dict) or choice not in inputs:
        came = f"a dict of {sorted(inputs)}" if isinstance(inputs, dict) else "no dict"
        raise InputError(
            f"A network is to be given the inputs' {choice!r}. Received inputs: {came}. Bring them in a dict that has "
            "this key, or give another `student_inputs` or `teacher_inputs`."
        )
    return inputs[choice]


def _logits(outputs):
    return outputs["logits"] if isinstance(outputs, dict) else outputs


def _check_same_inputs(student, teacher):
    """Raises `ValueError` unless both networks can take the same inputs."""
    shapes = [keras.tree.flatten(symbolic_inputs(model)) for model in (student, teacher)]
    shapes = [[tuple(tensor.shape) for tensor in inputs] for inputs in shapes]
    one, other = ([size for shape in inputs for size in (len(shape), *shape)] for inputs in shapes)
    if len(one) != len(other) or any(a != b for a, b in zip(one, other) if a is not None and b is not None):
        raise ValueError(
            f"Student and teacher get the same inputs. Received: a student of inputs {shapes[0]} and a teacher of "
            f"{shapes[1]}. Say with `student_inputs` and `teacher_inputs` what each is given of them."
        )


def _policy(model):
    """The policy of a model, or of its layers where one computes in float16, whose gradients need a scaled loss."""
    layers = (layer.dtype_policy for layer in model._flatten_layers())
    return next((policy for policy in layers if policy.name == "mixed_float16"), model.dtype_policy)
