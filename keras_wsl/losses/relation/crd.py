"""Contrastive representation distillation: Tian et al., ICLR 2020, https://arxiv.org/abs/1910.10699."""

import keras
import numpy as np
from keras import ops

from keras_wsl.adapters import MemoryBank, embeddings
from keras_wsl.argument_checks import check_fraction, check_temperature
from keras_wsl.losses.base import FeatureLoss
from keras_wsl.ops import l2_normalize

EPSILON = 1e-7  # Of the reference code, in the denominators.


def contrastive_loss(scores, selected, noise):
    r"""Compute the noise-contrastive loss of the student and teacher embeddings of the same example.

    $$\ell_i = -\log \frac{P_{i0}}{P_{i0} + q} - \sum_{k > 0} \log \frac{q}{P_{ik} + q}, \qquad q = K / n$$

    Args:
        scores: Positive floats $P$, shape `(batch, pairs)`: the positive pair first, then candidates for negatives.
        selected: Booleans of the same shape: the positive pair, and the $K$ candidates that are negatives.
        noise: Float $q$.

    Returns:
        Floats, shape `(batch,)`. $10^{-7}$ is added to the denominators.
    """
    total = scores + noise + EPSILON
    positive = ops.log(scores[:, 0] / total[:, 0])
    return -positive - ops.sum(ops.where(selected[:, 1:], ops.log(noise / total[:, 1:]), 0.0), axis=-1)


@keras.saving.register_keras_serializable("keras_wsl")
class CRD(FeatureLoss):
    r"""Contrastive distillation of the embeddings of an example against those of examples of other classes.

    $$P_{ik} = \exp(M^t_{j_{ik}} \cdot v^s_i / T) / Z_s$$

    The loss is the sum of `contrastive_loss` of these scores and of those with student and teacher exchanged. $v$ are
    linear embeddings of norm 1, and both train. $M$ are `MemoryBank`s of all examples, $j_{i0}$ is the example itself,
    and the negatives $j_{ik}$ are sampled in each step, without replacement, from the examples of other classes. $Z$ is
    the mean of the exponentials of the first batch times the number of examples, and stays constant.

    A step shuffles the data set once, and each example of the batch reads from a random position on: the negatives of
    an example are a uniform sample, which is not independent of those of other examples. Targets need an `"index"`, as
    in `data.train_batches`. Two banks of 50,000 x 128 take 51 MB, and the scores of a batch of 64 another 26 MB.

    Args:
        labels: Integers, shape `(examples,)`: the class of each example of the data set by its index, -1 if no example
            has the index.
        negatives: Integer $K$.
        dimensions: Integer, of the embeddings.
        nce_temperature: Positive float $T$.
        momentum: Float in [0, 1], of the memories.
        **kwargs: See `FeatureLoss`.

    Raises:
        ValueError: If a class has fewer than `negatives` examples of other classes, or an argument is out of range.
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
        self.num_members = int((labels >= 0).sum())
        self.largest_class = int(np.unique(labels[labels >= 0], return_counts=True)[1].max())
        if not 0 < negatives <= self.num_members - self.largest_class:
            raise ValueError(
                f"`negatives` must be in [1, {self.num_members - self.largest_class}], the number of examples outside "
                f"the largest class. Received: negatives={negatives}."
            )
        self.negatives, self.dimensions = negatives, dimensions
        self.nce_temperature = check_temperature(nce_temperature, "nce_temperature")
        self.momentum = check_fraction(momentum, "momentum")
        self.seed = keras.random.SeedGenerator()
        self.seed_state = self.seed.state  # Keras saves variables, and no generators.

    def build(self, labels_shape, student_shape, teacher_shape):
        """Create embeddings and memories."""
        super().build(labels_shape, student_shape, teacher_shape)
        (shapes,) = self.pairs(student_shape, teacher_shape)
        self.student_embedding, self.teacher_embedding = embeddings(self.dimensions, *shapes)
        self.student_memory, self.teacher_memory = (
            MemoryBank(len(self.labels), self.dimensions, momentum=self.momentum, name=f"{role}_memory")
            for role in ("student", "teacher")
        )
        # Of both directions; 0 before the first batch.
        self.partition_constants = keras.Variable(
            "zeros", (2,), trainable=False, synchronization="on_read", aggregation="mean", name="partition_constants"
        )

    def sample_negatives(self, index):
        """Sample negatives among candidates.

        Args:
            index: Integers, shape `(batch,)`.

        Returns:
            `(pairs, selected)`, each of shape `(batch, 1 + candidates)`: the index of the example itself, then those of
            candidates; and booleans, of which `1 + negatives` per row are true.
        """
        classes = ops.convert_to_tensor(self.labels)
        keys = keras.random.uniform((len(self.labels),), seed=self.seed)
        order = ops.argsort(ops.where(classes < 0, 2.0, keys))  # Indices without an example come last.
        starts = keras.random.randint(ops.shape(index), 0, self.num_members, seed=self.seed)
        # Enough candidates, even if those of the largest class are left out.
        offsets = ops.arange(self.negatives + self.largest_class, dtype="int32")
        candidates = ops.cast(ops.take(order, (starts[:, None] + offsets) % self.num_members), "int32")
        is_other = ops.take(classes, candidates) != ops.take(classes, index)[:, None]
        selected = ops.logical_and(is_other, ops.cumsum(ops.cast(is_other, "int32"), axis=-1) <= self.negatives)
        index = index[:, None]
        pairs = ops.concatenate([index, candidates], axis=-1)
        return pairs, ops.concatenate([ops.equal(index, index), selected], axis=-1)

    def per_example(self, labels, student, teacher, index):
        """Compute the loss in both directions, and update the memories with the batch."""
        if index is None:
            raise ValueError(
                f"{self.name} needs the index of each example in the data set. Received: index=None. Pass targets "
                'as {"labels": ..., "index": ...}, such as from `keras_wsl.data.train_batches`.'
            )
        in_range = ops.logical_and(index >= 0, index < self.num_examples)
        index = ops.where(in_range, index, 0)
        values = self.contrast(*self.pairs(student, teacher)[0], index, *self.sample_negatives(index))
        return ops.where(in_range, values, float("nan"))

    def contrast(self, student_vectors, teacher_vectors, index, pairs, selected):
        """Compute the loss of a batch for the result of `sample_negatives`; update memories and constants."""
        student_vectors = l2_normalize(self.student_embedding(student_vectors))
        teacher_vectors = l2_normalize(self.teacher_embedding(teacher_vectors))
        total, constants = 0.0, []
        directions = ((student_vectors, self.teacher_memory), (teacher_vectors, self.student_memory))
        for i, (vectors, memory) in enumerate(directions):
            scores = ops.take_along_axis(memory.scores(vectors), pairs, axis=-1)
            scores = ops.exp(scores / self.nce_temperature)
            counted = ops.where(selected, ops.stop_gradient(scores), 0.0)
            mean = ops.mean(ops.sum(counted, axis=-1)) / (1 + self.negatives)
            constant = self.partition_constants[i]
            constants.append(ops.where(constant > 0, constant, mean * self.num_members))
            total = total + contrastive_loss(scores / constants[i], selected, self.negatives / self.num_members)
        self.partition_constants.assign(ops.stack(constants))
        self.student_memory.update(index, student_vectors)
        self.teacher_memory.update(index, teacher_vectors)
        return total

    @property
    def averaged_over_replicas(self):
        """Variables that become the mean over the examples of all replicas after a step."""
        return [self.partition_constants]

    @property
    def num_examples(self):
        """Upper bound of the indices, an integer."""
        return len(self.labels)
