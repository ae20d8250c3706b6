"""Correlation congruence: Peng et al., ICCV 2019, https://arxiv.org/abs/1904.01802."""

import keras
from keras import ops

from keras_wsl.adapters import embeddings
from keras_wsl.losses.base import FeatureLoss
from keras_wsl.ops import masked_mean_over_time


def adjacent_products(student_vectors, teacher_vectors):
    r"""$\sum_d \Delta_{id} \Delta_{i+1,d}$ with $\Delta = |s - t|$, of each example and the next one in the batch.

    Args:
        student_vectors: Floats, shape `(batch, channels)`.
        teacher_vectors: Floats of the same shape.

    Returns:
        Floats, shape `(batch - 1,)`.
    """
    gaps = ops.abs(student_vectors - teacher_vectors)
    return ops.sum(gaps[:-1] * gaps[1:], axis=-1)


@keras.saving.register_keras_serializable("keras_wsl")
class CC(FeatureLoss):
    r"""Correlation congruence, as in the comparison of CRD: the mean of `adjacent_products` of two linear embeddings.

    $$\ell = \frac{1}{n - 1} \sum_{i < n} \sum_d \Delta_{id} \Delta_{i+1,d}, \qquad \Delta = |W_s s - W_t t|$$

    Both embeddings train, the teacher's too. The value depends on the order of the batch: each pair's product is
    divided between its two examples. A weighting gives each pair the mean of the two weights. A batch of one has no
    pair, and gives 0.

    Args:
        layers: The vectors' layer, or a pair, in a list of one.
        dimensions: Integer, of the embeddings.
        weight: Float, the factor of the mean in the total.
        **kwargs: As of `FeatureLoss`.
    """

    default_layers = ("pooled",)
    ndim = 2
    single_layer = True

    def __init__(self, *, weight=0.02, dimensions=128, **kwargs):
        super().__init__(weight=weight, **kwargs)
        self.dimensions = dimensions

    def build(self, labels_shape, student_shape, teacher_shape):
        """Makes the embeddings."""
        super().build(labels_shape, student_shape, teacher_shape)
        ((own, other),) = self.pairs(student_shape, teacher_shape)
        self.student_embedding, self.teacher_embedding = embeddings(self.dimensions, own, other)

    def weighted_per_example(self, weights, mask, labels, student, teacher):
        """Each example's share of the mean over pairs, shape `(batch,)`."""
        ((own, other),) = self.pairs(student, teacher)
        values = adjacent_products(self.student_embedding(own), self.teacher_embedding(other))
        if weights is not None:
            weights = masked_mean_over_time(weights, mask)
            values = values * (weights[:-1] + weights[1:]) / 2
        count = ops.shape(own)[0]
        shares = (ops.pad(values, [[0, 1]]) + ops.pad(values, [[1, 0]]))[:count] / 2  # None of an empty batch.
        examples = ops.cast(count, values.dtype)
        return shares * examples / ops.maximum(examples - 1, 1)
