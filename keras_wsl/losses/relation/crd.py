"""Contrastive representation distillation: Tian et al., ICLR 2020, https://arxiv.org/abs/1910.10699."""

import keras
import numpy as np
from keras import ops

from keras_wsl.adapters import MemoryBank, embeddings
from keras_wsl.losses.base import FeatureLoss
from keras_wsl.ops import check_fraction, check_temperature, l2_normalize

EPSILON = 1e-7  # The reference code's, in the denominators.


def contrastive_loss(scores, chosen, noise):
    r"""Noise-contrastive estimation of which pair belongs together.

    $$\ell_i = -\log \frac{P_{i0}}{P_{i0} + q} - \sum_{k > 0} \log \frac{q}{P_{ik} + q}, \qquad q = K / n$$

    Args:
        scores: Positive floats $P$, shape `(batch, pairs)`: an example's own pair first, then candidates.
        chosen: Booleans of the same shape: the own pair, and the $K$ candidates that are its negatives.
        noise: Float $q$.

    Returns:
        Floats, shape `(batch,)`; the denominators have $10^{-7}$ more.
    """
    total = scores + noise + EPSILON
    own = ops.log(scores[:, 0] / total[:, 0])
    return -own - ops.sum(ops.where(chosen[:, 1:], ops.log(noise / total[:, 1:]), 0.0), axis=-1)


@keras.saving.register_keras_serializable("keras_wsl")
class CRD(FeatureLoss):
    r"""Contrastive distillation: an example's student and teacher embeddings belong together, others do not.

    $$P_{ik} = \exp(M^t_{j_{ik}} \cdot v^s_i / T) / Z_s$$

    and likewise for the other direction; the loss is the sum of `contrastive_loss` of both. $v$ are linear embeddings
    of length 1, and both train. $M$ are `MemoryBank`s of all examples, $j_{i0}$ is the example itself, and the
    negatives $j_{ik}$ are drawn in the step, without replacement, among the examples of other classes. $Z$ is the mean
    of the first batch's exponentials times the number of examples, and stays.

    A step orders the data set at random once, and every example of the batch begins at a place of its own: each one's
    negatives are a uniform draw, and not independent of its neighbours'. Labels travel with their `"index"`, as in
    `data.train_batches`. Two banks of 50,000 x 128 take 51 MB, and the scores of a batch of 64 another 26 MB.

    Args:
        labels: Integers, shape `(examples,)`: the class of each example of the data set by its index, -1 where there is
            none of that index.
        negatives: Integer $K$.
        dimensions: Integer, of the embeddings.
        nce_temperature: Positive float $T$.
        momentum: Float in [0, 1], of the memories.
        layers: The vectors' layer, or a pair, in a list of one.
        weight: Float, the factor of the mean in the total.
        **kwargs: As of `FeatureLoss`.

    Raises:
        ValueError: If a class has fewer than `negatives` examples of other classes, or a setting is out of its range.
    """

    default_layers = ("pooled",)
    ndim = 2
    single_layer = True
    requires_example_index = True

    def __init__(
        self, labels, *, weight=0.8, negatives=16384, dimensions=128, nce_temperature=0.07, momentum=0.5, **kwargs
    ):
        super().__init__(weight=weight, **kwargs)
        labels = np.asarray(labels)
        if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer) or not (labels >= 0).any():
            raise ValueError(
                "`labels` must be the class of every example of the data set, integers of shape (examples,). "
                f"Received: {labels.dtype} of shape {labels.shape}."
            )
        if labels.max() >= 2**31:
            raise ValueError(f"`labels` must be class numbers below 2**31. Received: {labels.max()}.")
        self.labels = labels.astype("int32")
        self.members = int((labels >= 0).sum())
        self.largest_class = int(np.unique(labels[labels >= 0], return_counts=True)[1].max())
        if not 0 < negatives <= self.members - self.largest_class:
            raise ValueError(
                f"CRD draws {negatives} negatives of other classes, and a class of {self.largest_class} leaves "
                f"{self.members - self.largest_class} of {self.members} examples. Pass `negatives` of at most that."
            )
        self.negatives, self.dimensions = negatives, dimensions
        self.nce_temperature = check_temperature(nce_temperature, "nce_temperature")
        self.momentum = check_fraction(momentum, "momentum")
        self.seed = keras.random.SeedGenerator()
        self.seed_state = self.seed.state  # Else in no file: Keras writes variables there, and no generators.

    def build(self, labels_shape, student_shape, teacher_shape):
        """Makes embeddings and memories."""
        super().build(labels_shape, student_shape, teacher_shape)
        ((own, other),) = self.pairs(student_shape, teacher_shape)
        self.student_embedding, self.teacher_embedding = embeddings(self.dimensions, own, other)
        settings = {"momentum": self.momentum}
        self.student_memory = MemoryBank(len(self.labels), self.dimensions, name="student_memory", **settings)
        self.teacher_memory = MemoryBank(len(self.labels), self.dimensions, name="teacher_memory", **settings)
        # Of both directions; 0 until the first batch.
        self.normalizers = keras.Variable(
            "zeros", (2,), trainable=False, synchronization="on_read", aggregation="mean", name="normalizers"
        )

    def draw(self, index):
        """What each example is paired with, and which of it counts: the example itself, then candidates.

        Args:
            index: Integers, shape `(batch,)`.

        Returns:
            Integers, shape `(batch, 1 + candidates)`, and booleans, of which `1 + negatives` in each row are true.
        """
        classes = ops.convert_to_tensor(self.labels)
        keys = keras.random.uniform((len(self.labels),), seed=self.seed)
        order = ops.argsort(ops.where(classes < 0, 2.0, keys))  # Those that are no members come last.
        starts = keras.random.randint(ops.shape(index), 0, self.members, seed=self.seed)
        # So many that enough are left without the largest class.
        places = (starts[:, None] + ops.arange(self.negatives + self.largest_class, dtype="int32")) % self.members
        candidates = ops.cast(ops.take(order, places), "int32")
        others = ops.take(classes, candidates) != ops.take(classes, index)[:, None]
        chosen = ops.logical_and(others, ops.cumsum(ops.cast(others, "int32"), axis=-1) <= self.negatives)
        own = index[:, None]
        return ops.concatenate([own, candidates], axis=-1), ops.concatenate([ops.equal(own, own), chosen], axis=-1)

    def per_example(self, labels, student, teacher, index):
        """Both directions; then the memories take the batch in."""
        if index is None:
            raise ValueError(
                f"{self.name} keeps a memory of every example and must know which ones a batch holds. Give the labels "
                'as {"labels": ..., "index": ...}, as `keras_wsl.data.train_batches` does.'
            )
        inside = ops.logical_and(index >= 0, index < self.num_examples)
        index = ops.where(inside, index, 0)
        rows = self.contrast(*self.pairs(student, teacher)[0], index, *self.draw(index))
        return ops.where(inside, rows, float("nan"))

    def contrast(self, student_vectors, teacher_vectors, index, pairs, chosen):
        """The loss of a batch and its `pairs`, as `draw` gives them; updates memories and normalizers."""
        student_vectors = l2_normalize(self.student_embedding(student_vectors))
        teacher_vectors = l2_normalize(self.teacher_embedding(teacher_vectors))
        total, normalizers = 0.0, []
        directions = ((student_vectors, self.teacher_memory), (teacher_vectors, self.student_memory))
        for i, (vectors, memory) in enumerate(directions):
            scores = ops.take_along_axis(memory.scores(vectors), pairs, axis=-1)
            scores = ops.exp(scores / self.nce_temperature)
            counted = ops.where(chosen, ops.stop_gradient(scores), 0.0)
            mean = ops.mean(ops.sum(counted, axis=-1)) / (1 + self.negatives)
            normalizers.append(ops.where(self.normalizers[i] > 0, self.normalizers[i], mean * self.members))
            total = total + contrastive_loss(scores / normalizers[i], chosen, self.negatives / self.members)
        self.normalizers.assign(ops.stack(normalizers))
        self.student_memory.update(index, student_vectors)
        self.teacher_memory.update(index, teacher_vectors)
        return total

    @property
    def averaged_over_replicas(self):
        """The variable that is the mean over all replicas' rows after a step."""
        return [self.normalizers]

    @property
    def num_examples(self):
        """The number of examples, an integer: every index is below it."""
        return len(self.labels)
