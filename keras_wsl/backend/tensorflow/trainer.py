"""The training step on TensorFlow: the same objective and the same logs on one replica or many."""

import keras
import tensorflow as tf

from keras_wsl.backend.tensorflow.batch_normalization import fused
from keras_wsl.backend.tensorflow.replicas import Replicas, call_with_rows
from keras_wsl.backend.tensorflow.strategy_fixes import StrategyFixes


class TensorFlowTrainer(StrategyFixes):
    r"""A mixin for `Distiller` with its training step.

    $$L = \frac{\sum_{\text{replicas}} \sum_i L_i}{\sum_{\text{replicas}} n} + R$$

    The step of Keras computes the mean of the means of the replicas, and counts their rows once for the weights of the
    logs: neither is the mean of the batch if the last replica has fewer rows. $R$ are regularizers and `add_loss`; a
    mean over rows in them becomes the mean over replicas. Batch normalization, and losses on relations between
    examples, use the rows of one replica. After a step, the state is the same on all replicas.
    """

    def train_step(self, data):
        """Update student and adapters on a batch `(x, y)` or `(x, y, sample_weight)`; return the logs."""
        x, targets = self.parse_batch(data)
        teacher = self._forward(lambda x: self.teachers(x, targets), x)
        replicas = Replicas(self._flatten_layers())
        with tf.GradientTape() as tape:
            student = self._forward(lambda x: self(x, training=True), x)
            targets = self.validate_targets(targets, student)
            losses = self.compute_losses(targets, student, teacher)
            examples = replicas.count(losses.total)
            penalty = sum(self.losses, tf.zeros(()))
            # Every replica has the whole penalty, and gradients are summed over replicas.
            loss = tf.reduce_sum(losses.total) / examples + penalty / replicas.number
            loss = self.optimizer.scale_loss(loss)
        weights = self.trainable_weights
        gradients = replicas.zero_if_empty(tape.gradient(loss, weights))
        self.optimizer.apply_gradients(zip(gradients, weights))
        replicas.synchronize()
        self.update_step_metrics(targets, losses)
        self._loss_tracker.update_state(losses.total + penalty)
        return self.reducible(self.compute_target_metrics(x, targets, student))

    def test_step(self, data):
        """Return the student's loss and metrics on a batch."""
        x, targets = self.parse_batch(data)
        logits = self._forward(lambda x: self(x, training=False), x)
        targets = self.validate_targets(targets, logits)
        losses = self.compute_student_loss(targets, logits)
        self._loss_tracker.update_state(losses + sum(self.losses, tf.zeros(())))
        return self.reducible(self.compute_target_metrics(x, targets, logits))

    def predict_step(self, data):
        """Return the student's logits on a batch."""
        x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        return self._forward(lambda x: self(x, training=False), x)

    def _forward(self, function, x):
        """Call a function of networks on the inputs of a replica, which may have no rows."""
        models = (self.student, *self.teachers.models)
        with fused():
            # Statistics over all replicas would count the row that is added to an empty replica.
            if any(getattr(layer, "synchronized", False) for model in models for layer in model._flatten_layers()):
                return function(x)
            return call_with_rows(function, x)

    def make_train_function(self, force=False):
        """Raise `ValueError` for options that Keras does not support under a strategy."""
        strategy = self._distribute_strategy
        if strategy is not None:
            options = {
                f"steps_per_execution={self.steps_per_execution}": self.steps_per_execution > 1,
                "jit_compile=True": self.jit_compile,
                "gradient_accumulation_steps": self.optimizer.gradient_accumulation_steps,
                "ema_overwrite_frequency": self.optimizer.use_ema and self.optimizer.ema_overwrite_frequency,
            }
            for option, is_set in options.items():
                if is_set:
                    raise ValueError(
                        f"{option} does not work under {type(strategy).__name__} in Keras {keras.version()}. Compile "
                        "without it, or train on one device."
                    )
        return super().make_train_function(force=force)

    def _check_devices(self):
        """Raise `ValueError` if student and Distiller were made under different strategies."""
        if self.student.distribute_strategy is not self.distribute_strategy:
            raise ValueError(
                "Student and Distiller must be made under the same strategy. Received: a student under "
                f"{type(self.student.distribute_strategy).__name__}, a Distiller under "
                f"{type(self.distribute_strategy).__name__}. Make both inside the same `strategy.scope()`."
            )
