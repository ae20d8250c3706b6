"""Neuron selectivity transfer: Huang and Wang, 2017, https://arxiv.org/abs/1707.01219."""

import keras
from keras import ops

from keras_wsl.losses.base import FeatureLoss
from keras_wsl.ops import l2_normalize, match_spatial_size


def mmd_loss(student_map, teacher_map):
    r"""Compute the squared maximum mean discrepancy of the channels, by the kernel $k(a, b) = (a^\top b)^2$.

    $$\ell_i = \overline{k(t, t')} + \overline{k(s, s')} - 2 \, \overline{k(s, t)}$$

    The means are over pairs of channels, which are flattened and normalized. The larger map is pooled to the size of
    the smaller one. The first term is constant.

    Args:
        student_map: Floats, shape `(batch, height, width, channels)`.
        teacher_map: Floats, shape `(batch, height, width, channels)`; size and channels may differ.

    Returns:
        Floats, shape `(batch,)`.
    """
    student, teacher = (
        l2_normalize(ops.reshape(maps, (-1, maps.shape[1] * maps.shape[2], maps.shape[3])), axis=1)
        for maps in match_spatial_size(student_map, teacher_map)
    )

    def mean_kernel(a, b):
        return ops.mean(ops.matmul(ops.transpose(a, (0, 2, 1)), b) ** 2, axis=(1, 2))

    return mean_kernel(teacher, teacher) + mean_kernel(student, student) - 2 * mean_kernel(student, teacher)


@keras.saving.register_keras_serializable("keras_wsl")
class NST(FeatureLoss):
    """Neuron selectivity transfer: the sum of `mmd_loss` over the layers.

    Args:
        **kwargs: See `FeatureLoss`.
    """

    resize_to_smaller = True

    def __init__(self, *, weight=50.0, **kwargs):
        super().__init__(weight=weight, **kwargs)

    def per_example(self, labels, student, teacher):
        """Return the sum over the layers."""
        return sum(mmd_loss(*pair) for pair in self.pairs(student, teacher))
