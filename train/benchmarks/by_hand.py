r"""The step of WSL written by hand: two forward passes, the loss, the gradient, the update, and nothing else.

$$L = \frac{1}{n} \sum_i \left( \mathrm{CE}_i - \alpha \tau^2 \omega_i \sum_c p^\tau_{ic} \log q^\tau_{ic} \right)$$

What `Distiller.fit` is measured against: no metrics, no checks, nothing logged. The soft term is the cross-entropy,
which costs less than the divergence and has the same gradient.
"""

import contextlib

from benchmarks.case import ALPHA, LEARNING_RATE, MOMENTUM, TEMPERATURE, WEIGHT_DECAY


def tensorflow_step(teacher, student, fused=False):
    """A `tf.function` of images and labels, which updates the student.

    Args:
        teacher: Built `keras.Model`.
        student: Built `keras.Model`.
        fused: Whether both normalize batches as in `Distiller`'s steps.
    """
    import tensorflow as tf

    from keras_wsl.backend.tensorflow import batch_normalization

    kernels = batch_normalization.fused if fused else contextlib.nullcontext

    weights = [variable.value for variable in student.trainable_variables]
    velocities = [tf.Variable(tf.zeros_like(weight)) for weight in weights]

    @tf.function
    def step(images, labels):
        with kernels():
            teacher_logits = teacher(images, training=False)
        soft_labels = tf.nn.softmax(teacher_logits / TEMPERATURE)
        teacher_error = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, teacher_logits)
        with tf.GradientTape() as tape:
            with kernels():
                logits = student(images, training=True)
            error = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
            omega = tf.stop_gradient(-tf.math.expm1(-error / (teacher_error + 1e-7)))
            soft = tf.nn.softmax_cross_entropy_with_logits(soft_labels, logits / TEMPERATURE)
            loss = tf.reduce_mean(error + ALPHA * TEMPERATURE**2 * omega * soft)
        for weight, velocity, gradient in zip(weights, velocities, tape.gradient(loss, weights)):
            tf.raw_ops.ResourceApplyMomentum(
                var=weight.handle,
                accum=velocity.handle,
                lr=LEARNING_RATE,
                grad=gradient + WEIGHT_DECAY * weight,
                momentum=MOMENTUM,
            )
        return loss

    return step


class JaxTrainer:
    """As `tensorflow_step`, compiled by JAX: keeps the student's state to itself until `write_back`."""

    def __init__(self, teacher, student):
        import jax
        from jax import numpy as jnp

        self.student = student
        # Copies: what the step is given for its results must not be the variables' own.
        self.weights = [jnp.array(variable.value) for variable in student.trainable_variables]
        self.statistics = [jnp.array(variable.value) for variable in student.non_trainable_variables]
        self.velocities = [jnp.zeros_like(weight) for weight in self.weights]
        self.teacher_variables = [
            [variable.value for variable in variables]
            for variables in (teacher.trainable_variables, teacher.non_trainable_variables)
        ]

        def cross_entropy(labels, logits):
            return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=-1)[:, 0]

        def objective(weights, statistics, teacher_logits, images, labels):
            logits, statistics = student.stateless_call(weights, statistics, images, training=True)
            error = cross_entropy(labels, logits)
            omega = jax.lax.stop_gradient(-jnp.expm1(-error / (cross_entropy(labels, teacher_logits) + 1e-7)))
            soft_labels = jax.nn.softmax(teacher_logits / TEMPERATURE)
            soft = -jnp.sum(soft_labels * jax.nn.log_softmax(logits / TEMPERATURE), axis=-1)
            return jnp.mean(error + ALPHA * TEMPERATURE**2 * omega * soft), statistics

        def step(weights, statistics, velocities, teacher_variables, images, labels):
            teacher_logits, _ = teacher.stateless_call(*teacher_variables, images, training=False)
            (loss, statistics), gradients = jax.value_and_grad(objective, has_aux=True)(
                weights, statistics, teacher_logits, images, labels
            )
            velocities = [
                MOMENTUM * velocity + gradient + WEIGHT_DECAY * weight
                for weight, velocity, gradient in zip(weights, velocities, gradients)
            ]
            weights = [weight - LEARNING_RATE * velocity for weight, velocity in zip(weights, velocities)]
            return loss, weights, statistics, velocities

        self.compiled = jax.jit(step, donate_argnums=(0, 1, 2))

    def __call__(self, images, labels):
        """One update; the loss, which waits for it where it is read."""
        loss, self.weights, self.statistics, self.velocities = self.compiled(
            self.weights, self.statistics, self.velocities, self.teacher_variables, images, labels
        )
        return loss

    def write_back(self):
        """Puts the state into the student's variables."""
        for variables, values in (
            (self.student.trainable_variables, self.weights),
            (self.student.non_trainable_variables, self.statistics),
        ):
            for variable, value in zip(variables, values):
                variable.assign(value)
