"""Stochastic gradient descent with the weight decay of the reference scripts, and the optimizer of BERT's."""

import keras
from keras import ops

from keras_wsl.argument_checks import check_non_negative, is_number


@keras.saving.register_keras_serializable("keras_wsl")
class SGD(keras.optimizers.SGD):
    r"""SGD whose weight decay is part of the gradient, as in `torch.optim.SGD`.

    $$g \leftarrow g + \lambda w, \qquad v \leftarrow m v + g, \qquad
      w \leftarrow w - \eta \, (g + m v \text{ if Nesterov, else } v)$$

    $\lambda$ is `weight_decay`, $m$ `momentum`, $\eta$ `learning_rate`. It decays all trainable variables, biases and
    batch normalization too, but those named in `exclude_from_weight_decay` before the first step. Clipping, gradient
    accumulation and a loss scale act on the gradient before the decay is added.

    Keras decays the variable beside the momentum, which is about 1 / (1 - m) times weaker, and keeps $-\eta v$, so that
    an old learning rate lives on in its buffer.

    Args:
        learning_rate: Float or schedule.
        momentum: Float in [0, 1].
        nesterov: Whether the momentum is Nesterov's.
        weight_decay: Float, or `None` for none.
        **kwargs: As of `keras.optimizers.SGD`.

    Raises:
        ValueError: If a rate is negative or not finite.
    """

    def __init__(self, learning_rate=0.01, momentum=0.0, nesterov=False, weight_decay=None, **kwargs):
        _check_rates(learning_rate, weight_decay)
        super().__init__(learning_rate, momentum, nesterov, weight_decay, **kwargs)

    def update_step(self, gradient, variable, learning_rate):
        """One step of one variable."""
        value = ops.convert_to_tensor(variable)
        gradient = ops.cast(gradient, value.dtype)
        if self.weight_decay and self._use_weight_decay(variable):
            gradient = ops.add(gradient, ops.multiply(value, self.weight_decay))
        step = gradient
        if self.momentum:
            buffer = self.momentums[self._get_variable_index(variable)]
            velocity = ops.add(ops.multiply(buffer, self.momentum), gradient)
            self.assign(buffer, velocity)
            step = ops.add(gradient, ops.multiply(velocity, self.momentum)) if self.nesterov else velocity
        self.assign_sub(variable, ops.multiply(step, ops.cast(learning_rate, value.dtype)))

    def _apply_weight_decay(self, variables):
        """Nothing: `update_step` has decayed them."""


def bert_adamw(learning_rate, *, weight_decay=0.01, **kwargs):
    """Keras's AdamW as BERTs are fine-tuned with: epsilon 1e-6, and no decay of biases and of normalizations.

    The optimizer of BERT's own code, Devlin et al., NAACL 2019, https://arxiv.org/abs/1810.04805, without its quirk: it
    does not correct the bias of the first steps' moments.

    Args:
        learning_rate: Float or schedule.
        weight_decay: Float, decoupled; `None` for none.
        **kwargs: As of `keras.optimizers.AdamW`.

    Returns:
        `keras.optimizers.AdamW`.

    Raises:
        ValueError: If a rate is negative or not finite.
    """
    _check_rates(learning_rate, weight_decay)
    optimizer = keras.optimizers.AdamW(learning_rate, weight_decay=weight_decay or 0.0, epsilon=1e-6, **kwargs)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer


@keras.saving.register_keras_serializable("keras_wsl")
class LinearWarmupDecay(keras.optimizers.schedules.LearningRateSchedule):
    r"""A learning rate that rises linearly, then falls linearly to 0.

    $$\eta_t = \eta \min\left(\frac{t + 1}{w}, \; \frac{n - t}{n - w}\right)$$

    for step $t = 0, ..., n - 1$, with $w$ `warmup_steps` and $n$ `steps`.

    Args:
        learning_rate: Positive float, the highest, $\eta$.
        warmup_steps: Integer in `[0, steps)`.
        steps: Integer; from then on it is 0.

    Raises:
        ValueError: If the warm-up is not shorter than all steps, or the rate is negative or not finite.
    """

    def __init__(self, learning_rate, *, warmup_steps, steps):
        check_non_negative(learning_rate, "learning_rate")
        if not is_number(warmup_steps) or not 0 <= warmup_steps < steps:
            raise ValueError(
                f"`warmup_steps` must be in [0, {steps}), the steps. Received: {warmup_steps!r}. Warm up for less."
            )
        self.learning_rate, self.warmup_steps, self.steps = learning_rate, warmup_steps, steps

    def __call__(self, step):
        """The learning rate of a step, counted from 0."""
        step = ops.cast(step, "float32")
        rising = (step + 1.0) / max(self.warmup_steps, 1)
        falling = (self.steps - step) / (self.steps - self.warmup_steps)
        return self.learning_rate * ops.maximum(ops.minimum(rising, falling), 0.0)

    def get_config(self):
        """The constructor's arguments."""
        return {"learning_rate": self.learning_rate, "warmup_steps": self.warmup_steps, "steps": self.steps}


def _check_rates(learning_rate, weight_decay):
    """Raises `ValueError` for numbers with which weights would run away; schedules and what Keras makes pass."""
    for name, value in (("learning_rate", learning_rate), ("weight_decay", weight_decay)):
        if is_number(value):
            check_non_negative(value, name)
