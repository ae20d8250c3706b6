"""Attention transfer: Zagoruyko and Komodakis, ICLR 2017, https://arxiv.org/abs/1612.03928."""

import keras
from keras import ops

from keras_wsl.losses.base import FeatureLoss
from keras_wsl.ops import l2_normalize, match_spatial_size


def attention(maps):
    r"""Compute $v / \lVert v \rVert_2$, $v$ the means of $f^2$ over the channels: `(batch, height * width)`."""
    return l2_normalize(ops.reshape(ops.mean(maps**2, axis=-1), (-1, maps.shape[1] * maps.shape[2])))


def attention_loss(student_map, teacher_map):
    r"""Compute $\ell_i = \frac{1}{h w} \lVert a(s_i) - a(t_i) \rVert^2$, the larger map pooled to the smaller size.

    Args:
        student_map: Floats, shape `(batch, height, width, channels)`.
        teacher_map: Floats, shape `(batch, height, width, channels)`; size and channels may differ.

    Returns:
        Floats, shape `(batch,)`.
    """
    student_map, teacher_map = match_spatial_size(student_map, teacher_map)
    return ops.mean((attention(student_map) - attention(teacher_map)) ** 2, axis=-1)


@keras.saving.register_keras_serializable("keras_wsl")
class AT(FeatureLoss):
    """Attention transfer: the sum of `attention_loss` over the layers.

    It has the mean of squares, as the comparison of the CRD paper, instead of the norm. The default weight fits it.

    Args:
        **kwargs: See `FeatureLoss`.
    """

    resize_to_smaller = True

    def __init__(self, *, weight=1000.0, **kwargs):
        super().__init__(weight=weight, **kwargs)

    def per_example(self, labels, student, teacher):
        """Return the sum over the layers."""
        return sum(attention_loss(*pair) for pair in self.pairs(student, teacher))
