"""The training step, and the pass, on TensorFlow: the same objective and the same logs on one replica or many."""

import weakref

import keras
import tensorflow as tf

from keras_wsl.backend.tensorflow.batch_normalization import fused
from keras_wsl.backend.tensorflow.replicas import Replicas, call_with_rows
from keras_wsl.backend.tensorflow.strategy_fixes import StrategyFixes
from keras_wsl.validation import unpack

_forward_steps = weakref.WeakKeyDictionary()


def forward_step(model):
    """The `tf.function` of inputs that gives a model's outputs in inference mode; it is gone with the model."""
    if model not in _forward_steps:
        reference = weakref.ref(model)  # What a dictionary of weak keys holds must not keep them alive.

        @tf.function(reduce_retracing=True)
        def step(inputs):
            with fused():
                return reference()(inputs, training=False)

        _forward_steps[model] = step
    return _forward_steps[model]


class TensorFlowTrainer(StrategyFixes):
    r"""A mixin for `Distiller`.

    $$L = \frac{\sum_{\text{replicas}} \sum_i \ell_i}{\sum_{\text{replicas}} n} + R$$

    Keras's own step takes the mean of the replicas' means, and weighs their logs by rows that it counts once: with
    fewer rows on the last replica, neither is the batch's mean. $R$ are regularisers, and what `add_loss` adds: of a
    mean over a replica's rows, the mean over replicas. Batch normalization, and losses on relations between examples,
    see a replica's rows alone; what a step changes in their state is the same on all replicas after it.
    """

    def train_step(self, data):
        """One update of student and adapters on a batch `(x, y)` or `(x, y, sample_weight)`; returns the logs."""
        x, y, sample_weight = unpack(data)
        teacher = self._forward(lambda x: self.teacher_outputs(x, y), x)
        replicas = Replicas(self._flatten_layers())
        with tf.GradientTape() as tape:
            student = self._forward(lambda x: self(x, training=True), x)
            labels = self.validate_labels(y, student)
            rows, total = self.compute_per_example_losses(y, labels, student, teacher, sample_weight)
            examples = replicas.count(total)
            penalty = sum(self.losses, tf.zeros(()))
            # Every replica has the whole penalty, and gradients are summed over replicas.
            loss = tf.reduce_sum(total) / examples + penalty / replicas.number
            loss = self.optimizer.scale_loss(loss)
        weights = self.trainable_weights
        gradients = replicas.without_empty(tape.gradient(loss, weights))
        self.optimizer.apply_gradients(zip(gradients, weights))
        replicas.agree()
        self.update_loss_metrics(y, labels, student, teacher, rows)
        self._loss_tracker.update_state(total + penalty)
        return self.reducible(self.compute_metrics(x, y, student, sample_weight))

    def test_step(self, data):
        """The student's loss and metrics on a batch; returns the logs."""
        x, y, sample_weight = unpack(data)
        logits = self._forward(lambda x: self(x, training=False), x)
        rows = self.student_loss_per_example(
            self.validate_labels(y, logits), logits, self.timestep_mask(y, logits), sample_weight
        )
        self._loss_tracker.update_state(rows + sum(self.losses, tf.zeros(())))
        return self.reducible(self.compute_metrics(x, y, logits, sample_weight))

    def predict_step(self, data):
        """The student's logits on a batch."""
        x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        return self._forward(lambda x: self(x, training=False), x)

    def _forward(self, function, x):
        """What a function of networks returns on a replica's inputs, however few rows they have."""
        models = (self.student, *self.live_teachers)
        with fused():
            # Statistics of all replicas would count a row that is not there.
            if any(getattr(layer, "synchronized", False) for model in models for layer in model._flatten_layers()):
                return function(x)
            return call_with_rows(function, x)

    def make_train_function(self, force=False):
        """Refuses what Keras cannot do under a strategy, before it would fail inside the step."""
        strategy = self._distribute_strategy
        if strategy is not None:
            asked = {
                f"steps_per_execution={self.steps_per_execution}": self.steps_per_execution > 1,
                "jit_compile=True": self.jit_compile,
                "gradient_accumulation_steps": self.optimizer.gradient_accumulation_steps,
                "ema_overwrite_frequency": self.optimizer.use_ema and self.optimizer.ema_overwrite_frequency,
            }
            for what, is_asked in asked.items():
                if is_asked:
                    raise ValueError(
                        f"{what} does not work under {type(strategy).__name__} in Keras {keras.version()}. Compile "
                        "without it, or train on one device."
                    )
        return super().make_train_function(force=force)

    def _check_devices(self):
        """Raises `ValueError` if student and Distiller were made under different strategies."""
        if self.student.distribute_strategy is not self.distribute_strategy:
            raise ValueError(
                f"The student was made under {type(self.student.distribute_strategy).__name__}, the Distiller under "
                f"{type(self.distribute_strategy).__name__}. Make both inside the same `strategy.scope()`."
            )

    def _check_range(self, what, values, limit):
        """`values`, once it is known that all are in [0, limit). XLA drops the check."""
        in_range = tf.reduce_all((values >= 0) & (values < limit))
        said = tf.debugging.Assert(in_range, [f"{what} must be in [0, {limit}). Received:", values], 16)
        with tf.control_dependencies([said] if said is not None else []):
            return tf.identity(values)
