"""Distiller: trains a student on labels and on what a teacher computes. Knows no method by name."""

import contextlib
import inspect

import keras
from keras import ops

from keras_wsl import losses, regularization, weighting
from keras_wsl.endpoints import Endpoints, frozen, output_layer, symbolic_inputs
from keras_wsl.ops import labels_are_distributions, mean_over_positions
from keras_wsl.trainers import step

COUNTS = ("regularization_samples", "regularization_share", "wsl_weight_mean")


@keras.saving.register_keras_serializable("keras_wsl")
class Distiller(step(), keras.Model):
    r"""A model that trains its student with the help of a teacher.

    $$L = w_s \frac{1}{n} \sum_i \mathrm{CE}_i + \sum_k w_k \frac{1}{n} \sum_i \ell_{ki} + R$$

    $\mathrm{CE}_i$ is the compiled `loss` of an example, $\ell_{ki}$ the `distillation_losses`, $w_s$ the
    `student_loss_weight`, $w_k$ each loss's own `weight`, $R$ the student's regularisers and `add_loss`. Sample weights
    and class weights multiply every term of an example. With WSL and the defaults: Zhou et al., ICLR 2021,
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

    Labels are integers, or distributions (one-hot, smoothed, mixed), or a dict `{"labels": ..., "index": ...}`.

    Logged beside `loss` and the compiled metrics, each a mean over the epoch's examples: `student_loss`; every
    distillation loss by its name, before its `weight`; `distillation_loss`, their weighted sum; `wsl_weight_mean`,
    `regularization_share`; and `regularization_samples`, a count. The last three are of the batches as they are trained
    on, at the temperature of the first loss that has one, else at 1.

    Args:
        teacher: A built `keras.Model`; `None` for labels alone, or to be set later.
        student: A built `keras.Model`.
        distillation_losses: One or a list of what `losses.get` takes: a `losses.DistillationLoss`, a name, a loss of
            `keras.distillation`.
        student_loss_weight: Float, $w_s$.
        teacher_training: Whether the teacher's batch normalization uses the statistics of the batch, as the reference
            scripts do. It changes none of its state either way.
        name: The model's name.

    Raises:
        ValueError: If a network gives probabilities, the networks do not fit a loss, two losses share a name, or a
            setting is out of its range.
    """

    def __init__(
        self,
        teacher,
        student,
        distillation_losses=(),
        *,
        student_loss_weight=1.0,
        teacher_training=False,
        name="distiller",
    ):
        _check_network("student", student)
        # Keras scales the loss by the policy here. What the inputs are cast to is for the student's layers to say.
        super().__init__(name=name, dtype=_policy(student), autocast=False)
        if not isinstance(student_loss_weight, (int, float)) or not 0 <= student_loss_weight < float("inf"):
            raise ValueError(
                f"`student_loss_weight` must be a number that is not negative. Received: {student_loss_weight!r}."
            )
        if not isinstance(distillation_losses, (list, tuple)):
            distillation_losses = [distillation_losses]
        self.student = student
        self.distillation_losses = [losses.get(loss) for loss in distillation_losses]
        self.student_loss_weight = float(student_loss_weight)
        self.teacher_training = bool(teacher_training)
        self.temperature = next((loss.temperature for loss in self.distillation_losses if loss.temperature), 1.0)
        self._means = {name: keras.metrics.Mean(name=name) for name in self._names()}
        self._count = _Count(name=COUNTS[0])
        self._same_classes = True
        self._evaluating = False
        self._student_endpoints = Endpoints(
            student, {name for loss in self.distillation_losses for name in loss.student_endpoints}
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
        """The model that teaches, or `None`."""
        return self._teacher()

    def __setattr__(self, name, value):
        # A property's setter comes too late: Keras, and Torch, register a layer before it runs.
        if name != "teacher":
            return super().__setattr__(name, value)
        self._welcome(value)

    def __dir__(self):
        return [name for name in super().__dir__() if name != "teacher"]  # Saving walks `dir`.

    def _welcome(self, teacher):
        """Takes `teacher` in, and builds the losses on the shapes of both networks' endpoints."""
        endpoints = None
        if teacher is not None:
            _check_network("teacher", teacher)
            if teacher is self.student:
                raise ValueError("Teacher and student are one model. Clone it: a student needs weights of its own.")
            names = {name for loss in self.distillation_losses for name in loss.teacher_endpoints}
            endpoints = Endpoints(teacher, names)
            if self.distillation_losses:
                _check_same_inputs(self.student, teacher)
                student_shapes, teacher_shapes = self._student_endpoints.shapes(), endpoints.shapes()
                for loss in self.distillation_losses:
                    if not loss.built:
                        loss.build((None,), student_shapes, teacher_shapes)
                        loss.built = True
                self._same_classes = student_shapes["logits"][-1] == teacher_shapes["logits"][-1]
        # Closures: whatever Keras finds in an attribute, it tracks and saves.
        self.__dict__["_teacher"] = lambda: teacher
        self.__dict__["_teacher_endpoints"] = lambda: endpoints
        self.train_function = None  # A traced step keeps the teacher that it was traced with.
        # Everything is built, if only from a file: optimizers and backups may look for the variables.
        self.built = self.student.built and all(loss.built for loss in self.distillation_losses)

    @property
    def non_trainable_variables(self):
        """The Distiller's own and the teacher's: on JAX they are the state of a step, all else a constant of it."""
        own = super().non_trainable_variables
        if self.__dict__.get("_teacher") is None or self.teacher is None:
            return own
        seen = {id(variable) for variable in self.variables}  # A buffer cannot be donated twice.
        return own + [variable for variable in self.teacher.variables if id(variable) not in seen]

    def _purge_model_variables(self, **kwargs):
        """JAX: keeps the values that Keras drops before it traces; an error there would lose both networks."""

    def build(self, input_shape=None):
        """Nothing: all is built when the teacher arrives, or from the shapes in a file."""

    # What a step computes.

    def call(self, inputs, training=False):
        """The student's logits; in training a dict of its endpoints."""
        if training:
            return self._student_endpoints(inputs, training=True)
        outputs = self.student(inputs, training=False)
        return outputs["logits"] if isinstance(outputs, dict) else outputs

    def teacher_outputs(self, inputs):
        """The teacher's endpoints on `inputs`, as constants; empty where there is nothing to distil."""
        if not self.distillation_losses:
            return {}
        return frozen(self._teacher_endpoints(), self.teacher, inputs, training=self.teacher_training)

    def checked_labels(self, y, logits):
        """The labels in `y`; where they are integers, int32 and checked as far as the backend can."""
        labels = _labels(y)
        if labels_are_distributions(labels, logits):
            return labels
        return self._check_labels(ops.cast(labels, "int32"), logits.shape[-1])

    def loss_rows(self, labels, student, teacher, sample_weight=None):
        """Every term of the objective, example by example.

        Args:
            labels: As `checked_labels` gives them.
            student: The student's endpoints.
            teacher: The teacher's endpoints.
            sample_weight: `None`, or floats, shape `(batch,)`.

        Returns:
            `(rows, total)`: a dict of the terms by their names in the logs, and their weighted sum, all `(batch,)`.
        """
        rows = {"student_loss": self.hard_rows(labels, student["logits"])}
        distillation = []
        for loss in self.distillation_losses:
            rows[loss.name] = loss(labels, student, teacher)
            distillation.append(loss.weight * rows[loss.name])
        total = self.student_loss_weight * rows["student_loss"]
        if distillation:
            rows["distillation_loss"] = sum(distillation[1:], distillation[0])
            total = total + rows["distillation_loss"]
        if sample_weight is not None:
            weight = _example_weights(sample_weight)
            rows, total = {name: weight * values for name, values in rows.items()}, weight * total
        return rows, total

    def hard_rows(self, labels, logits, sample_weight=None):
        """The compiled loss of each example, in float32: `(batch,)`. NaN where an integer label is out of range."""
        logits = ops.cast(logits, "float32")
        loss = self._compiled_loss()
        values = loss.call(labels, logits) if isinstance(loss, keras.losses.Loss) else loss(labels, logits)
        if not len(values.shape):
            raise ValueError(f"The compiled loss {loss} gives one number for a batch. It must give one an example.")
        if not labels_are_distributions(labels, logits):
            in_range = ops.logical_and(labels >= 0, labels < logits.shape[-1])
            values = ops.where(ops.reshape(in_range, ops.shape(values)), values, float("nan"))
        rows = mean_over_positions(values)
        return rows if sample_weight is None else rows * _example_weights(sample_weight)

    def update_trackers(self, labels, student, teacher, rows):
        """Takes the rows of a step, and what it shows of regularization samples, into the epoch's means."""
        for name, values in rows.items():
            self._means[name].update_state(values)
        if not self.distillation_losses or not self._same_classes:
            return
        logits = [ops.cast(endpoints["logits"], "float32") for endpoints in (student, teacher)]
        samples = ops.cast(regularization.mask(labels, *logits, self.temperature), "float32")
        self._count.update_state(samples)
        self._means["regularization_share"].update_state(samples)
        self._means["wsl_weight_mean"].update_state(weighting.wsl(labels, *logits))

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """The objective, a scalar; where not training, the student's own loss and no teacher."""
        labels = self.checked_labels(y, _logits(y_pred))
        penalty = sum(self.losses, ops.zeros(()))
        if not training:
            return ops.mean(self.hard_rows(labels, _logits(y_pred), sample_weight)) + penalty
        teacher = self.teacher_outputs(x)
        rows, total = self.loss_rows(labels, y_pred, teacher, sample_weight)
        self.update_trackers(labels, y_pred, teacher, rows)
        return ops.mean(total) + penalty

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """The compiled metrics, of labels and student's logits."""
        return super().compute_metrics(x, _labels(y), _logits(y_pred), sample_weight)

    # Evaluation is the student's alone: its logs have no entries of the training.

    def get_metrics_result(self):
        """The logs: in evaluation without the terms of the training."""
        hidden = {COUNTS[0], *self._means} if self._evaluating else set()
        if not self.distillation_losses or not self._same_classes:
            hidden |= set(COUNTS)
        return {name: value for name, value in super().get_metrics_result().items() if name not in hidden}

    @contextlib.contextmanager
    def _evaluation(self):
        before, self._evaluating = self._evaluating, True
        try:
            yield
        finally:
            self._evaluating = before

    def evaluate(self, *args, **kwargs):
        """`student.evaluate` with the compiled loss and metrics; runs no teacher."""
        with self._evaluation():
            return super().evaluate(*args, **kwargs)

    def test_on_batch(self, *args, **kwargs):
        """As `evaluate`, of one batch."""
        with self._evaluation():
            return super().test_on_batch(*args, **kwargs)

    def make_train_function(self, force=False):
        """Refuses what would fail inside the step, where Torch and JAX have changed state by then."""
        if self.teacher is None and self.distillation_losses:
            raise ValueError("The distiller has no teacher: files do not keep it. Set `distiller.teacher`, then fit.")
        self._compiled_loss()
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
                f"keras.losses.SparseCategoricalCrossentropy(from_logits=True). Received: {loss}."
            )
        loss = keras.losses.get(loss)
        if isinstance(loss, keras.losses.Loss):
            settings = loss.get_config()
            if loss.reduction == "sum":
                raise ValueError("The distiller takes the mean over examples. Compile a loss without reduction='sum'.")
        else:
            settings = {name: p.default for name, p in inspect.signature(loss).parameters.items()}
        if settings.get("from_logits", True) is False:
            name = getattr(loss, "name", None) or getattr(loss, "__name__", loss)
            raise ValueError(
                f"The student gives logits, and the compiled loss {name!r} expects probabilities. Compile it with "
                f"from_logits=True, such as keras.losses.SparseCategoricalCrossentropy(from_logits=True)."
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
            "teacher_training": self.teacher_training,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """The Distiller that `get_config` describes; its teacher is to be set."""
        config = dict(config)
        for key in ("student", "distillation_losses"):
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


def _labels(y):
    return y["labels"] if isinstance(y, dict) else y


def _logits(outputs):
    return outputs["logits"] if isinstance(outputs, dict) else outputs


def _example_weights(sample_weight):
    """One weight an example, shape `(batch,)`, of `(batch,)` or `(batch, 1)`, or the dict that Keras makes of them."""
    sample_weight = _labels(sample_weight)
    if len(sample_weight.shape) > 2 or (len(sample_weight.shape) == 2 and sample_weight.shape[-1] != 1):
        raise ValueError(f"`sample_weight` must be one number an example. Received shape: {sample_weight.shape}.")
    return ops.cast(ops.reshape(sample_weight, (-1,)), "float32")


def _check_same_inputs(student, teacher):
    """Raises `ValueError` unless both networks can take the same inputs."""
    shapes = [keras.tree.flatten(symbolic_inputs(model)) for model in (student, teacher)]
    shapes = [[tuple(tensor.shape) for tensor in inputs] for inputs in shapes]
    one, other = ([size for shape in inputs for size in (len(shape), *shape)] for inputs in shapes)
    if len(one) != len(other) or any(a != b for a, b in zip(one, other) if a is not None and b is not None):
        raise ValueError(
            f"Student and teacher get the same inputs. Received: a student of inputs {shapes[0]} and a teacher of "
            f"{shapes[1]}. Put the resizing or the cropping into one of the networks."
        )


def _policy(model):
    """The policy of a model, or of its layers where one computes in float16, whose gradients need a scaled loss."""
    layers = (layer.dtype_policy for layer in model._flatten_layers())
    return next((policy for policy in layers if policy.name == "mixed_float16"), model.dtype_policy)


def _check_network(role, model):
    """Raises `ValueError` unless `model` is a `keras.Model` that gives logits, as far as its graph shows."""
    if not isinstance(model, keras.Model):
        raise ValueError(f"The {role} must be a keras.Model. Received: {model!r}.")
    layer = output_layer(model)
    activation = getattr(layer, "activation", None)
    if isinstance(layer, keras.layers.Softmax) or activation in (keras.activations.softmax, keras.activations.sigmoid):
        raise ValueError(
            f"The {role} {model.name!r} gives probabilities: its last layer {layer.name!r} ends in a softmax or "
            f"sigmoid. Distillation needs logits: build it without that activation."
        )
