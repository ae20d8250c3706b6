"""The Distiller: a model that trains a student on labels and on the outputs of teachers."""

import inspect

import keras
from keras import ops
from keras.src.backend.common.masking import get_keras_mask

from keras_wsl import losses
from keras_wsl.argument_checks import check_non_negative, check_temperature
from keras_wsl.backend import Trainer
from keras_wsl.entry_points import EntryPoints
from keras_wsl.features import FeatureExtractor, check_network, reraise_as_input_error
from keras_wsl.losses.base import validate_teacher_selector
from keras_wsl.metrics import REGULARIZATION_METRICS, make_step_metrics, update_step_metrics
from keras_wsl.objective import Objective, compute_student_loss
from keras_wsl.ops import get_logits
from keras_wsl.targets import LOGITS_MASK, Targets, unpack_batch
from keras_wsl.teachers import Teachers, select_inputs, validate_selector
from keras_wsl.validation import check_shared_variables


@keras.saving.register_keras_serializable("keras_wsl")
class Distiller(EntryPoints, Trainer, keras.Model):
    r"""A model that trains a student on labels and on the outputs of a teacher.

    $$L = \frac{1}{n} \sum_i v_i \left( w_s \, \mathrm{CE}_i + s \sum_k w_k \ell_{ki} \right) + R$$

    $\mathrm{CE}_i$ is the compiled `loss` of an example, $\ell_{ki}$ the `distillation_losses`, $w_s$ the
    `student_loss_weight`, $w_k$ the `weight` of a loss, $s$ the `distillation_scale`, which is 1 unless
    `callbacks.DistillationWarmup` changes it, $v_i$ the sample weight times the class weight, $R$ the student's
    regularizers and `add_loss`. With WSL and the defaults: Zhou et al., ICLR 2021, https://arxiv.org/abs/2102.00650.

    ```python
    distiller = Distiller(teacher, student, losses.WSL(temperature=4.0, weight=2.25))
    distiller.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    distiller.fit(x, y)
    ```

    Both networks return logits, shape `(batch, classes)`, and run once per step: the student in training mode, the
    teacher in inference mode and as a constant. The teacher is never modified, and is in no checkpoint, `.keras` file
    or export: after `keras.saving.load_model`, set `distiller.teacher`, then call `fit`. `evaluate` and `predict` use
    the student only.

    `teacher` may be a string: the key in the targets dict that has precomputed teacher logits, such as
    `"teacher_logits"`, which `data.train_batches(..., soft_labels=...)` adds. For several teachers, pass a dict by
    name. Each loss selects one of them, `KD(teacher="large")`, or the mean of their probabilities,
    `KD(teacher={"large": 2.0, "small": 1.0})`.

    Labels are integers, or distributions (one-hot, smoothed, mixed), or a dict `{"labels": ..., "index": ...}` with the
    number of each example in its data set. The logits of sequences have the shape `(batch, time, classes)`. The loss of
    an example is then the mean over the positions that Keras's mask of the logits, or `"mask"` in that dict, includes.

    The logs have `loss`, the compiled metrics and, as means over the examples of the epoch, `student_loss`, every
    distillation loss by its name, before its `weight`, and `distillation_loss`, their weighted sum. They also have the
    number of `regularization_samples`, `regularization_sample_rate` and `mean_wsl_weight` of the training batches.

    Args:
        teacher: A built `keras.Model`, a key of the targets dict, a dict of several such by name, or `None` for labels
            alone, for losses that need no teacher, or to set it later.
        student: A built `keras.Model`.
        distillation_losses: One or a list of what `losses.get` takes: a `losses.DistillationLoss`, a name, a loss of
            `keras.distillation`.
        student_loss_weight: Float, $w_s$.
        teacher_batch_statistics: Whether the teacher's batch normalization uses the statistics of the batch, as the
            authors' scripts do. The teacher's state does not change either way.
        student_inputs: The student's part of the inputs `x`: a key if `x` is a dict, or a function or layer, such as a
            `keras.layers.Rescaling`; by default all of `x`. The student alone, and its export, take this part.
        teacher_inputs: Likewise for the teacher; for several teachers, a dict by name.
        regularization_teacher: The teacher with which regularization samples are counted: a name, or a dict of names to
            weights. By default the teacher of the first loss.
        regularization_temperature: Positive float, at which they are counted. By default the temperature of the first
            loss that has one, else 1.
        name: The model's name.

    Raises:
        ValueError: If a network returns probabilities; if networks, losses and arguments do not fit each other; if two
            losses have the same name; or if training would change a variable that a teacher shares with the student.
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
        regularization_teacher=None,
        regularization_temperature=None,
        name="distiller",
    ):
        check_network("student", student)
        # Keras scales the loss by the policy of this model. The student's layers cast the inputs.
        super().__init__(name=name, dtype=_get_loss_scale_policy(student), autocast=False)
        if not isinstance(distillation_losses, (list, tuple)):
            distillation_losses = [distillation_losses]
        self.student = student
        self.distillation_losses = [losses.get(loss) for loss in distillation_losses]
        self.student_loss_weight = check_non_negative(student_loss_weight, "student_loss_weight")
        self.teacher_batch_statistics = bool(teacher_batch_statistics)
        self.student_inputs = validate_selector("student_inputs", student_inputs)
        self.teacher_inputs = validate_selector("teacher_inputs", teacher_inputs)
        self.regularization_teacher = validate_teacher_selector("regularization_teacher", regularization_teacher)
        self.regularization_temperature = regularization_temperature
        if regularization_temperature is not None:
            check_temperature(regularization_temperature, "regularization_temperature")
        temperatures = (regularization_temperature, *(loss.temperature for loss in self.distillation_losses), 1.0)
        self.temperature = next(filter(None, temperatures))
        self._step_metrics = make_step_metrics(self.distillation_losses)
        self.distillation_scale = self.add_weight(
            shape=(), initializer="ones", trainable=False, dtype="float32", name="distillation_scale"
        )
        self._evaluating = False
        self._class_weight = self._traced_class_weight = None  # Per class: in the step, and when it was traced.
        student_layers = {layer for loss in self.distillation_losses for layer in loss.student_layers}
        self.student_features = FeatureExtractor(student, student_layers)
        self._check_devices()
        self.teacher = teacher

    # The teacher is read in training, and is invisible to tracking and saving.

    @property
    def teacher(self):
        """The teacher as it was set: a model, a key of the targets dict, a dict of several by name, or `None`."""
        return self.teachers.teacher

    def __setattr__(self, name, value):
        # The setter of a property runs too late: Keras and Torch register a layer before.
        if name != "teacher":
            return super().__setattr__(name, value)
        teachers = Teachers(
            value,
            self.student_features,
            self.distillation_losses,
            inputs=self.teacher_inputs,
            same_inputs=self.student_inputs is None,
            batch_statistics=self.teacher_batch_statistics,
            counting=self.regularization_teacher,
        )
        objective = Objective(
            self.distillation_losses,
            teachers,
            self.student_features,
            student_loss_weight=self.student_loss_weight,
            temperature=self.temperature,
        )
        if teachers and self.regularization_teacher is not None and not objective.counts_samples:
            raise ValueError(
                "`regularization_teacher` must have the classes of the student. Received: "
                f"regularization_teacher={self.regularization_teacher!r}."
            )
        self.teachers, self.objective = teachers, objective  # Both, or neither.
        self.train_function = None  # A traced step keeps the teacher with which it was traced.
        check_shared_variables(self)
        # Optimizers and backups may look for variables, although a loaded Distiller has no teacher yet.
        self.built = self.student.built and all(loss.built for loss in self.distillation_losses)

    def __dir__(self):
        return [name for name in super().__dir__() if name != "teacher"]  # Saving walks `dir`.

    @property
    def non_trainable_variables(self):
        """The variables of the Distiller and of the teachers: on JAX the state of a step, not constants of it."""
        variables = super().non_trainable_variables
        models = self.teachers.models if "teachers" in self.__dict__ else []  # Not yet in the constructor.
        known = {id(variable) for variable in self.variables}  # JAX cannot donate a buffer twice.
        for model in models:
            variables = variables + [variable for variable in model.variables if id(variable) not in known]
            known |= {id(variable) for variable in model.variables}
        return variables

    def _purge_model_variables(self, **kwargs):
        """Keep the values that Keras drops before JAX traces, because an error there would lose both networks."""

    def build(self, input_shape=None):
        """Do nothing: all is built when the teacher is set, or from the shapes in a file."""

    # One step. On TensorFlow `backend.tensorflow.trainer` calls these methods; on JAX and Torch, Keras's own step calls
    # `compute_loss` and `compute_metrics`.

    def call(self, inputs, training=False):
        """Return the student's logits; in training a dict of its outputs by layer."""
        inputs = select_inputs(self.student_inputs, inputs)
        if training:
            outputs = self.student_features(inputs, training=True)
            mask = get_keras_mask(outputs["logits"])
            return outputs if mask is None else {**outputs, LOGITS_MASK: mask}
        with reraise_as_input_error(self.student, inputs):
            return get_logits(self.student(inputs, training=False))

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """Return the objective, a scalar; if not training, that of the student's own loss."""
        targets = Targets.parse(y, sample_weight)
        teacher = self.teachers(x, targets) if training else None
        targets = self.validate_targets(targets, y_pred)
        if training:
            step_losses = self.compute_losses(targets, y_pred, teacher)
            self.update_step_metrics(targets, step_losses)
            values = step_losses.total
        else:
            values = self.compute_student_loss(targets, get_logits(y_pred))
        return ops.mean(values) + sum(self.losses, ops.zeros(()))

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """Update the compiled metrics with labels and logits; weighted ones leave out masked positions."""
        return self.compute_target_metrics(x, self.validate_targets(Targets.parse(y, sample_weight), y_pred), y_pred)

    def parse_batch(self, data):
        """Return the inputs and the `Targets` of a batch."""
        x, y, sample_weight = unpack_batch(data)
        return x, Targets.parse(y, sample_weight)

    def validate_targets(self, targets, outputs):
        """Return `Targets.validate` with the class weights of the current `fit`."""
        return targets.validate(outputs, self._class_weight)

    def compute_losses(self, targets, student, teacher):
        """Return the `Losses` of a batch."""
        loss = self.get_student_loss()
        return self.objective(targets, student, teacher, student_loss=loss, scale=self.distillation_scale)

    def compute_student_loss(self, targets, logits):
        """Return the student's own loss of each example, times its weight: `(batch,)`."""
        values = compute_student_loss(self.get_student_loss(), targets, logits)
        return values if targets.weights is None else targets.weights * values

    def update_step_metrics(self, targets, step_losses):
        """Add the losses of a batch to the means of the epoch."""
        update_step_metrics(self._step_metrics, step_losses, targets.mask)

    def compute_target_metrics(self, x, targets, outputs):
        """Update the compiled metrics with validated targets; return the logs."""
        return super().compute_metrics(x, targets.labels, get_logits(outputs), targets.get_metric_weights())

    def get_metrics_result(self):
        """Return the logs; those of an evaluation have no entries of the training."""
        hidden = set(self._step_metrics) if self._evaluating else set()
        if not self.objective.counts_samples:
            hidden |= set(REGULARIZATION_METRICS)
        return {name: value for name, value in super().get_metrics_result().items() if name not in hidden}

    # Files.

    def get_config(self):
        """Return the arguments of the constructor, without the teacher."""
        names = list(inspect.signature(Distiller.__init__).parameters)[2:]  # Without `self` and `teacher`.
        return {name: keras.saving.serialize_keras_object(getattr(self, name)) for name in names}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """Return the Distiller that `get_config` describes, without a teacher."""
        return cls(None, **keras.saving.deserialize_keras_object(config, custom_objects=custom_objects))

    @classmethod
    def from_keras(cls, distiller):
        r"""Return the Distiller that equals a `keras.distillation.Distiller`, not compiled.

        Its total $w \mathrm{CE} + (1 - w) \sum_k w_k L_k$ sets the weights here. The teacher's layers stay frozen:
        Keras's Distiller has set its `trainable` to `False`.

        Args:
            distiller: A `keras.distillation.Distiller`.
        """
        weight = distiller.student_loss_weight
        distillation_losses = losses.from_keras_distiller(distiller)
        return cls(distiller.teacher, distiller.student, distillation_losses, student_loss_weight=weight)


def _get_loss_scale_policy(model):
    """Return the dtype policy of a model, or of a layer in float16, whose gradients need a scaled loss."""
    layers = (layer.dtype_policy for layer in model._flatten_layers())
    return next((policy for policy in layers if policy.name == "mixed_float16"), model.dtype_policy)
