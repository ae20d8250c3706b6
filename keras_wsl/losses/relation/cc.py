"""Correlation congruence: Peng et al., ICCV 2019, https://arxiv.org/abs/1904.01802."""

import keras
from keras import ops

from keras_wsl.adapters import embeddings
from keras_wsl.losses.base import FeatureLoss
from keras_wsl.ops import masked_mean_over_time


def adjacent_products(student_vectors, teacher_vectors):
    r"""Compute $\sum_d \Delta_{id} \Delta_{i+1,d}$, $\Delta = |s - t|$, for each example and the next one in the batch.

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
    r"""Correlation congruence as in the comparison of the CRD paper: the mean of `adjacent_products` of embeddings.

    $$\ell = \frac{1}{n - 1} \sum_{i < n} \sum_d \Delta_{id} \Delta_{i+1,d}, \qquad \Delta = |W_s s - W_t t|$$

    Both linear embeddings train, that of the teacher too. The value depends on the order of the batch. Each example of
    a pair has half of the pair's product. A weighting gives each pair the mean of the two weights. The loss of a batch
    of one is 0, because it has no pair.

    Args:
        embedding_dim: Integer.
        **kwargs: See `FeatureLoss`.
    """

    default_layers = ("pooled",)
    ndim = 2
    single_layer = True

    def __init__(self, *, weight=0.02, embedding_dim=128, **kwargs):
        super().__init__(weight=weight, **kwargs)
        self.embedding_dim = embedding_dim

    def build(self, labels_shape, student_shape, teacher_shape):
        """Create the embeddings."""
        super().build(labels_shape, student_shape, teacher_shape)
        (shapes,) = self.pairs(student_shape, teacher_shape)
        self.student_embedding, self.teacher_embedding = embeddings(self.embedding_dim, *shapes)

    def weighted_per_example(self, weights, mask, labels, student, teacher):
        """Compute the part of each example in the mean over pairs, shape `(batch,)`."""
        ((student_vectors, teacher_vectors),) = self.pairs(student, teacher)
        values = adjacent_products(self.student_embedding(student_vectors), self.teacher_embedding(teacher_vectors))
        if weights is not None:
            weights = masked_mean_over_time(weights, mask)
            values = values * (weights[:-1] + weights[1:]) / 2
        count = ops.shape(student_vectors)[0]
        halves = (ops.pad(values, [[0, 1]]) + ops.pad(values, [[1, 0]]))[:count] / 2  # Empty for an empty batch.
        count = ops.cast(count, values.dtype)
        return halves * count / ops.maximum(count - 1, 1)
