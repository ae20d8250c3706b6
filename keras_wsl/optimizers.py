"""Stochastic gradient descent with the weight decay of the reference scripts."""

import keras
from keras import ops


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

    The arguments are those of `keras.optimizers.SGD`.
    """

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
