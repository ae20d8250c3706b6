"""SGD as the references have it."""

import keras
from keras import ops


@keras.saving.register_keras_serializable("keras_wsl")
class SGD(keras.optimizers.SGD):
    r"""Stochastic gradient descent whose weight decay is part of the gradient, as in `torch.optim.SGD`.

    $$g \leftarrow g + \lambda w, \qquad v \leftarrow \mu v + g, \qquad w \leftarrow w - \eta v$$

    With `nesterov`, the last is $w - \eta (g + \mu v)$. Keras decays the variable beside the momentum, which is about
    $1 / (1 - \mu)$ times weaker, and keeps $-\eta v$, so that an old learning rate lives on in its buffer.

    Args:
        learning_rate: Float or schedule, $\eta$.
        momentum: Float, $\mu$.
        nesterov: Boolean.
        weight_decay: Float, $\lambda$; of every trainable variable but those of `exclude_from_weight_decay`.
        **kwargs: As of `keras.optimizers.SGD`.
    """

    def update_step(self, gradient, variable, learning_rate):
        """One update of one variable."""
        value = ops.convert_to_tensor(variable)
        gradient = ops.cast(gradient, value.dtype)
        if self.weight_decay and self._use_weight_decay(variable):
            gradient = ops.add(gradient, ops.multiply(value, self.weight_decay))
        update = gradient
        if self.momentum:
            buffer = self.momentums[self._get_variable_index(variable)]
            velocity = ops.add(ops.multiply(buffer, self.momentum), gradient)
            self.assign(buffer, velocity)
            update = ops.add(gradient, ops.multiply(velocity, self.momentum)) if self.nesterov else velocity
        self.assign_sub(variable, ops.multiply(update, ops.cast(learning_rate, value.dtype)))

    def _apply_weight_decay(self, variables):
        """Nothing: `update_step` has decayed them."""
