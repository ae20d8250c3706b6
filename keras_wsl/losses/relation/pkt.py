"""Probabilistic knowledge transfer: Passalis and Tefas, ECCV 2018, https://arxiv.org/abs/1803.10837."""

import keras
from keras import ops

from keras_wsl.losses.base import RelationLoss
from keras_wsl.ops import safe_sqrt

EPSILON = 1e-7  # The reference code's, of the lengths and of the probabilities.


def affinity_matrix(vectors):
    r"""Rows $S_{ij} \propto (\cos(e_i, e_j) + 1) / 2$ that add up to 1: `(batch, channels)` to `(batch, batch)`."""
    vectors = vectors / (safe_sqrt(ops.sum(vectors**2, axis=-1, keepdims=True)) + EPSILON)
    similar = (ops.matmul(vectors, ops.transpose(vectors)) + 1) / 2
    return similar / ops.sum(similar, axis=-1, keepdims=True)


@keras.saving.register_keras_serializable("keras_wsl")
class PKT(RelationLoss):
    r"""Probabilistic transfer: $\ell = \frac{1}{n^2} \sum_{ij} S^t_{ij} \log \frac{S^t_{ij}}{S^s_{ij}}$.

    $S$ are `affinity_matrix`, each plus $10^{-7}$ in the logarithm.

    Args:
        layers: Names or pairs of names of vectors.
        weight: Float, the factor of the mean in the total.
        **kwargs: As of `FeatureLoss`.
    """

    def __init__(self, *, weight=30000.0, **kwargs):
        super().__init__(weight=weight, **kwargs)

    def relations(self, student, teacher):
        """The summands, `(batch, batch)`, one matrix a layer."""
        relations = []
        for pair in self.pairs(student, teacher):
            own, other = map(affinity_matrix, pair)
            relations.append(other * (ops.log(other + EPSILON) - ops.log(own + EPSILON)))
        return relations
