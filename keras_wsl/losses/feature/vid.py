"""Variational information distillation: Ahn et al., CVPR 2019, https://arxiv.org/abs/1904.05835."""

import math

import keras
from keras import ops

from keras_wsl.adapters import convolution
from keras_wsl.losses.base import FeatureLoss
from keras_wsl.ops import common_spatial_size, match_spatial_size

VARIANCE = 5.0  # Before training.
EPSILON = 1e-5


def gaussian_nll_loss(mean, teacher_map, variance):
    r"""Compute the negative log-likelihood of the teacher's map for the student's mean $\mu$, without a constant.

    $$\ell_i = \frac{1}{h w c} \sum \frac12 \left( \frac{(\mu - t)^2}{\sigma_c^2} + \log \sigma_c^2 \right)$$

    Args:
        mean: Floats $\mu$, shape `(batch, height, width, channels)`.
        teacher_map: Floats $t$ of the same shape.
        variance: Positive floats $\sigma^2$, shape `(channels,)`.

    Returns:
        Floats, shape `(batch,)`.
    """
    return ops.mean(0.5 * ((mean - teacher_map) ** 2 / variance + ops.log(variance)), axis=(1, 2, 3))


@keras.saving.register_keras_serializable("keras_wsl")
class VID(FeatureLoss):
    r"""Variational information distillation: the sum of `gaussian_nll_loss` over the layers.

    Three 1x1 convolutions with ReLUs between them compute $\mu$ from the student's map.
    $\sigma_c^2 = \mathrm{softplus}(s_c) + 10^{-5}$ is trained, and 5 at first. The larger map is pooled to the size of
    the smaller one.

    Args:
        **kwargs: See `FeatureLoss`.
    """

    resize_to_smaller = True

    def __init__(self, *, weight=1.0, **kwargs):
        super().__init__(weight=weight, **kwargs)

    def build(self, labels_shape, student_shape, teacher_shape):
        """Create the convolutions and the variances."""
        super().build(labels_shape, student_shape, teacher_shape)
        self.regressors, self.scales = [], []
        start = math.log(math.expm1(VARIANCE - EPSILON))
        for i, (student, teacher) in enumerate(self.pairs(student_shape, teacher_shape)):
            size, filters = common_spatial_size(student, teacher), (student[-1], *[teacher[-1]] * 3)
            regressor = [
                convolution(filters[k + 1], 1, filters[k], use_bias=False, name=f"regressor{i}_{k}") for k in range(3)
            ]
            for layer, channels in zip(regressor, filters):
                layer.build((None, *size, channels))
            self.regressors.append(regressor)
            self.scales.append(
                self.add_weight(shape=(teacher[-1],), initializer=keras.initializers.Constant(start), name=f"scale{i}")
            )

    def per_example(self, labels, student, teacher):
        """Return the sum over the layers."""
        total = 0.0
        for regressor, scale, pair in zip(self.regressors, self.scales, self.pairs(student, teacher)):
            mean, teacher_map = match_spatial_size(*pair)
            for layer in regressor[:-1]:
                mean = ops.relu(layer(mean))
            total = total + gaussian_nll_loss(regressor[-1](mean), teacher_map, ops.softplus(scale) + EPSILON)
        return total
