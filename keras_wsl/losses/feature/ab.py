"""Activation boundaries: Heo et al., AAAI 2019, https://arxiv.org/abs/1811.03233."""

import keras
from keras import ops

from keras_wsl.adapters import Regressor
from keras_wsl.losses.base import FeatureLoss

MARGIN = 1.0
SCALE = 3 / 1000  # Of the reference code.


def boundary_loss(student_map, teacher_map):
    r"""Compute a hinge loss with margin 1 on the signs of the teacher's neurons.

    $$\ell_i = \sum \begin{cases} (s + 1)^2 & s > -1, t \le 0 \\ (s - 1)^2 & s \le 1, t > 0 \end{cases}$$

    Args:
        student_map: Floats $s$ before the ReLU, shape `(batch, height, width, channels)`.
        teacher_map: Floats $t$ of the same shape.

    Returns:
        Floats, shape `(batch,)`.
    """
    off = ops.where((student_map > -MARGIN) & (teacher_map <= 0), (student_map + MARGIN) ** 2, 0.0)
    on = ops.where((student_map <= MARGIN) & (teacher_map > 0), (student_map - MARGIN) ** 2, 0.0)
    return ops.sum(off + on, axis=(1, 2, 3))


@keras.saving.register_keras_serializable("keras_wsl")
class AB(FeatureLoss):
    r"""Activation boundaries: $\ell = \frac{3}{1000} \sum_k 2^{k - K} \ell_k$, where $K$ is the last of the layers.

    A `Regressor` without ReLU maps the student's outputs to the teacher's shapes, if these differ. Published as an
    initialization: 30 epochs of this loss alone, then of the labels alone.

    Args:
        layers: Names or pairs of names of maps before their ReLU.
        **kwargs: See `FeatureLoss`.
    """

    default_layers = ("block1_preact", "block2_preact", "block3_preact")

    def __init__(self, *, weight=1.0, **kwargs):
        super().__init__(weight=weight, **kwargs)

    def build(self, labels_shape, student_shape, teacher_shape):
        """Create the regressors."""
        super().build(labels_shape, student_shape, teacher_shape)
        self.regressors = []
        for i, (student, teacher) in enumerate(self.pairs(student_shape, teacher_shape)):
            regressor = keras.layers.Identity(dtype="float32")
            if tuple(student[1:]) != tuple(teacher[1:]):
                regressor = Regressor(teacher, use_relu=False, name=f"regressor{i}")
            regressor.build(student)
            self.regressors.append(regressor)

    def per_example(self, labels, student, teacher):
        """Return the weighted sum over the layers."""
        total = 0.0
        for regressor, (student_map, teacher_map) in zip(self.regressors, self.pairs(student, teacher)):
            total = total / 2 + boundary_loss(regressor(student_map), teacher_map)
        return SCALE * total
