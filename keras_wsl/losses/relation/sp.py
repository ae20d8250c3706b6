"""Similarity-preserving distillation: Tung and Mori, ICCV 2019, https://arxiv.org/abs/1907.09682."""

import keras
from keras import ops

from keras_wsl.losses.base import RelationLoss
from keras_wsl.ops import l2_normalize


def similarities(maps):
    r"""Compute $G = F F^\top$ with rows of norm 1. A row of $F$ is the map of an example: `(batch, batch)`."""
    rows = ops.reshape(maps, (ops.shape(maps)[0], -1))
    return l2_normalize(ops.matmul(rows, ops.transpose(rows)))


@keras.saving.register_keras_serializable("keras_wsl")
class SP(RelationLoss):
    r"""Similarity preserving: $\ell = \frac{1}{n^2} \lVert G^t - G^s \rVert^2$ of `similarities`, summed over layers.

    Maps of any size and channels can be compared.

    Args:
        **kwargs: See `FeatureLoss`.
    """

    default_layers = ("block3",)
    ndim = 4

    def __init__(self, *, weight=3000.0, **kwargs):
        super().__init__(weight=weight, **kwargs)

    def relations(self, student, teacher):
        """Return the squared differences, `(batch, batch)`, per layer."""
        return [(similarities(s) - similarities(t)) ** 2 for s, t in self.pairs(student, teacher)]
