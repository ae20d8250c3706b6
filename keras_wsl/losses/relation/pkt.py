"""Probabilistic knowledge transfer: Passalis and Tefas, ECCV 2018, https://arxiv.org/abs/1803.10837."""

import keras
from keras import ops

from keras_wsl.losses.base import RelationLoss
from keras_wsl.ops import safe_sqrt

EPSILON = 1e-7  # Of the reference code, for norms and probabilities.


def affinity_matrix(vectors):
    r"""Compute $S_{ij} \propto (\cos(e_i, e_j) + 1) / 2$ with rows that sum to 1: `(batch, batch)`."""
    vectors = vectors / (safe_sqrt(ops.sum(vectors**2, axis=-1, keepdims=True)) + EPSILON)
    similarities = (ops.matmul(vectors, ops.transpose(vectors)) + 1) / 2
    return similarities / ops.sum(similarities, axis=-1, keepdims=True)


@keras.saving.register_keras_serializable("keras_wsl")
class PKT(RelationLoss):
    r"""Probabilistic transfer: $\ell = \frac{1}{n^2} \sum_{ij} S^t_{ij} \log \frac{S^t_{ij}}{S^s_{ij}}$.

    $S$ is `affinity_matrix`; in the logarithm, $10^{-7}$ is added to it.

    Args:
        **kwargs: See `FeatureLoss`.
    """

    def __init__(self, *, weight=30000.0, **kwargs):
        super().__init__(weight=weight, **kwargs)

    def relations(self, student, teacher):
        """Return the terms of the sum, one matrix `(batch, batch)` per layer."""
        relations = []
        for pair in self.pairs(student, teacher):
            q, p = map(affinity_matrix, pair)
            relations.append(p * (ops.log(p + EPSILON) - ops.log(q + EPSILON)))
        return relations
