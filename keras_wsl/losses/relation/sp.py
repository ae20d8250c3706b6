"""Similarity-preserving distillation: Tung and Mori, ICCV 2019, https://arxiv.org/abs/1907.09682."""

import keras
from keras import ops

from keras_wsl.losses.base import RelationLoss
from keras_wsl.ops import l2_normalize


def similarities(maps):
    """$G = F F^\\top$ with rows of length 1, where a row of $F$ is an example's whole map: `(batch, batch)`."""
    rows = ops.reshape(maps, (ops.shape(maps)[0], -1))
    return l2_normalize(ops.matmul(rows, ops.transpose(rows)))


@keras.saving.register_keras_serializable("keras_wsl")
class SP(RelationLoss):
    r"""Similarity preserving: $\ell = \frac{1}{n^2} \lVert G^t - G^s \rVert^2$ of `similarities`, over the layers.

    Maps of any size and channels can be compared.

    Args:
        layers: Names or pairs of names of maps.
        weight: Float, the factor of the mean in the total.
        **kwargs: As of `FeatureLoss`.
    """

    default_layers = ("block3",)
    ndim = 4

    def __init__(self, *, weight=3000.0, **kwargs):
        super().__init__(weight=weight, **kwargs)

    def relations(self, student, teacher):
        """Squared differences, `(batch, batch)`, one a layer."""
        return [(similarities(own) - similarities(other)) ** 2 for own, other in self.pairs(student, teacher)]
