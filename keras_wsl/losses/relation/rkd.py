"""Relational knowledge distillation: Park et al., CVPR 2019, https://arxiv.org/abs/1904.05068."""

import keras
from keras import ops

from keras_wsl.argument_checks import check_non_negative
from keras_wsl.losses.base import RelationLoss
from keras_wsl.ops import l2_normalize, smooth_l1


def distances(vectors):
    """Compute the Euclidean distances of all pairs, divided by the mean of those that are not 0: `(batch, batch)`."""
    squares = ops.sum(vectors**2, axis=-1)
    squared = squares[:, None] + squares[None] - 2 * ops.matmul(vectors, ops.transpose(vectors))
    values = ops.sqrt(ops.maximum(squared, 1e-12)) * (1 - ops.eye(ops.shape(vectors)[0], dtype=vectors.dtype))
    positive = ops.cast(values > 0, values.dtype)
    # All distances of a batch of one are 0.
    return values * ops.maximum(ops.sum(positive), 1) / ops.maximum(ops.sum(values), 1e-12)


def angles(vectors):
    r"""Compute $u_{ij} \cdot u_{ik}$ with $u_{ij} = (e_j - e_i) / \lVert e_j - e_i \rVert$: `(batch, batch, batch)`."""
    directions = l2_normalize(vectors[None] - vectors[:, None])
    return ops.matmul(directions, ops.transpose(directions, (0, 2, 1)))


@keras.saving.register_keras_serializable("keras_wsl")
class RKD(RelationLoss):
    r"""Relational distillation: distances of pairs and angles of triples, with the smooth L1 loss $h$.

    $$\ell = \frac{w_d}{n^2} \sum_{ij} h(d^s_{ij} - d^t_{ij}) + \frac{w_a}{n^3} \sum_{ijk} h(A^s_{ijk} - A^t_{ijk})$$

    With `weighting="wsl"`, pairs and triples have the mean of their examples' weights: WSL + RKD of Zhou et al., ICLR
    2021, appendix A.3.

    Args:
        distance_weight: Float, $w_d$.
        angle_weight: Float, $w_a$.
        **kwargs: See `FeatureLoss`.
    """

    def __init__(self, *, weight=1.0, distance_weight=25.0, angle_weight=50.0, **kwargs):
        super().__init__(weight=weight, **kwargs)
        self.distance_weight = check_non_negative(distance_weight, "distance_weight")
        self.angle_weight = check_non_negative(angle_weight, "angle_weight")

    def relations(self, student, teacher):
        """Return the weighted losses of distances, `(batch, batch)`, and angles, `(batch, batch, batch)`, per layer."""
        relations = []
        for s, t in self.pairs(student, teacher):
            relations.append(self.distance_weight * smooth_l1(distances(s) - distances(t)))
            relations.append(self.angle_weight * smooth_l1(angles(s) - angles(t)))
        return relations
