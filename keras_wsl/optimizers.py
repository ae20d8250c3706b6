"""SGD with the weight decay of the reference scripts, and the optimizer and schedule for fine-tuning BERT."""

import keras
from keras import ops

from keras_wsl.argument_checks import check_non_negative, is_number


@keras.saving.register_keras_serializable("keras_wsl")
class SGD(keras.optimizers.SGD):
    r"""SGD whose weight decay is added to the gradient, as in `torch.optim.SGD`.

    $$g \leftarrow g + \lambda w, \qquad v \leftarrow m v + g, \qquad
      w \leftarrow w - \eta \, (g + m v \text{ if Nesterov, else } v)$$

    $\lambda$ is `weight_decay`, $m$ `momentum`, $\eta$ `learning_rate`. The decay applies to all trainable variables,
    including biases and batch normalization, except those excluded by `exclude_from_weight_decay` before the first
    step. Clipping, gradient accumulation and loss scaling apply to the gradient before the decay is added.

    `keras.optimizers.SGD` instead decays the variable independently of the momentum, which is about 1 / (1 - m) times
    weaker, and its buffer holds $-\eta v$, which still contains the old learning rate after it has changed.

    Args:
        learning_rate: Float or schedule.
        momentum: Float in [0, 1].
        nesterov: Whether to use Nesterov momentum.
        weight_decay: Float, or `None` for none.
        **kwargs: Same as for `keras.optimizers.SGD`.

    Raises:
        ValueError: If a rate is negative or not finite.
    """

    def __init__(self, learning_rate=0.01, momentum=0.0, nesterov=False, weight_decay=None, **kwargs):
        _check_rates(learning_rate, weight_decay)
        super().__init__(learning_rate, momentum, nesterov, weight_decay, **kwargs)

    def update_step(self, gradient, variable, learning_rate):
        """Update one variable."""
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
        """Do nothing, because `update_step` adds the decay."""


def bert_adamw(learning_rate, *, weight_decay=0.01, **kwargs):
    """Create AdamW for fine-tuning BERT: epsilon 1e-6, and no decay of biases and normalization parameters.

    Differs from the optimizer in BERT's code, Devlin et al., NAACL 2019, https://arxiv.org/abs/1810.04805, in one
    point: that optimizer omits the bias correction of the moments.

    Args:
        learning_rate: Float or schedule.
        weight_decay: Float, decoupled; `None` for none.
        **kwargs: Same as for `keras.optimizers.AdamW`.

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
    r"""A learning rate schedule with a linear warmup and a linear decay to 0.

    $$\eta_t = \eta \min\left(\frac{t + 1}{w}, \; \frac{n - t}{n - w}\right)$$

    for step $t = 0, ..., n - 1$, with $w$ `warmup_steps` and $n$ `steps`.

    Args:
        learning_rate: Positive float, the maximum, $\eta$.
        warmup_steps: Integer in `[0, steps)`.
        steps: Integer, the step from which the learning rate is 0.

    Raises:
        ValueError: If `warmup_steps` is not less than `steps`, or the rate is negative or not finite.
    """

    def __init__(self, learning_rate, *, warmup_steps, steps):
        check_non_negative(learning_rate, "learning_rate")
        if not is_number(warmup_steps) or not 0 <= warmup_steps < steps:
            raise ValueError(
                f"`warmup_steps` must be in [0, {steps}), less than `steps`. Received: {warmup_steps!r}. "
                "Pass a smaller number."
            )
        self.learning_rate, self.warmup_steps, self.steps = learning_rate, warmup_steps, steps

    def __call__(self, step):
        """Return the learning rate of a step, counted from 0."""
        step = ops.cast(step, "float32")
        warmup = (step + 1.0) / max(self.warmup_steps, 1)
        decay = (self.steps - step) / (self.steps - self.warmup_steps)
        return self.learning_rate * ops.maximum(ops.minimum(warmup, decay), 0.0)

    def get_config(self):
        """Return the constructor's arguments."""
        return {"learning_rate": self.learning_rate, "warmup_steps": self.warmup_steps, "steps": self.steps}


def _check_rates(learning_rate, weight_decay):
    """Raise `ValueError` if a number is negative or not finite; schedules are not checked."""
    for name, value in (("learning_rate", learning_rate), ("weight_decay", weight_decay)):
        if is_number(value):
            check_non_negative(value, name)
