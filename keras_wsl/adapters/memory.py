"""A memory bank of embeddings: Tian et al., ICLR 2020, https://arxiv.org/abs/1910.10699."""

import keras
from keras import ops

from keras_wsl.ops import l2_normalize


@keras.saving.register_keras_serializable("keras_wsl")
class MemoryBank(keras.layers.Layer):
    r"""One embedding per example of a data set: a running mean of a network's outputs for it.

    $$M_i \leftarrow \mathrm{normalize}(m M_i + (1 - m) v_i)$$

    It is initialized by $U(\pm 1 / \sqrt{d / 3})$. Under a strategy, each replica's bank has the updates of all
    replicas after a step.

    Args:
        num_examples: Integer, the number of rows.
        embedding_dim: Integer $d$, the number of columns.
        momentum: Float $m$ in [0, 1].
        name: The layer's name.
    """

    def __init__(self, num_examples, embedding_dim, *, momentum=0.5, name="memory"):
        super().__init__(name=name, dtype="float32")
        self.num_examples, self.embedding_dim, self.momentum = num_examples, embedding_dim, momentum
        bound = (embedding_dim / 3) ** -0.5
        self.features = keras.Variable(
            keras.initializers.RandomUniform(-bound, bound),
            (num_examples, embedding_dim),
            trainable=False,
            synchronization="on_read",  # Each replica updates its own copy, and the step combines them.
            aggregation="only_first_replica",
            name="features",
        )
        self.built = True

    @property
    def sum_over_replicas(self):
        """The variables to which the changes of all replicas are added after a step."""
        return [self.features]

    def scores(self, vectors):
        """Return the product of each vector with each row: `(batch, embedding_dim)` to `(batch, num_examples)`."""
        # A copy: on Torch `update` writes to the features that the gradient still needs.
        features = ops.copy(ops.stop_gradient(self.features.value))
        return ops.matmul(vectors, ops.transpose(features))

    def update(self, index, vectors):
        """Move the rows `index`, integers of shape `(batch,)`, towards `vectors`, shape `(batch, embedding_dim)`."""
        old = ops.take(self.features.value, index, axis=0)
        new = l2_normalize(self.momentum * old + (1 - self.momentum) * ops.stop_gradient(vectors))
        self.features.assign(ops.scatter_update(self.features.value, index[:, None], new))

    def get_config(self):
        """Return the constructor's arguments."""
        config = {"num_examples": self.num_examples, "embedding_dim": self.embedding_dim, "momentum": self.momentum}
        return {**config, "name": self.name}
