"""A memory bank of embeddings: Tian et al., ICLR 2020, https://arxiv.org/abs/1910.10699."""

import keras
from keras import ops

from keras_wsl.ops import l2_normalize


@keras.saving.register_keras_serializable("keras_wsl")
class MemoryBank(keras.layers.Layer):
    r"""One embedding for each example of a data set, a running mean of what a network gave for it.

    $$M_i \leftarrow \mathrm{normalize}(m M_i + (1 - m) v_i)$$

    It starts as $U(\pm 1 / \sqrt{d / 3})$. Under a strategy every replica's bank has all replicas'
    rows after a step.

    Args:
        examples: Integer, the rows.
        dimensions: Integer $d$, the columns.
        momentum: Float $m$ in [0, 1].
        name: The layer's name.
    """

    def __init__(self, examples, dimensions, *, momentum=0.5, name="memory"):
        super().__init__(name=name, dtype="float32")
        self.examples, self.dimensions, self.momentum = examples, dimensions, momentum
        bound = (dimensions / 3) ** -0.5
        self.rows = keras.Variable(
            keras.initializers.RandomUniform(-bound, bound),
            (examples, dimensions),
            trainable=False,
            synchronization="on_read",  # Each replica writes its own, and the step puts them together.
            aggregation="only_first_replica",
            name="rows",
        )
        self.built = True

    @property
    def sum_over_replicas(self):
        """The variable to which every replica's changes are added after a step."""
        return [self.rows]

    def scores(self, vectors):
        """The product of each vector with each row: `(batch, dimensions)` to `(batch, examples)`."""
        # A copy: on Torch `update` writes into the rows that the gradient still needs.
        rows = ops.copy(ops.stop_gradient(self.rows.value))
        return ops.matmul(vectors, ops.transpose(rows))

    def update(self, index, vectors):
        """Moves the rows `index`, integers of shape `(batch,)`, towards `vectors`, `(batch, dimensions)`."""
        old = ops.take(self.rows.value, index, axis=0)
        new = l2_normalize(self.momentum * old + (1 - self.momentum) * ops.stop_gradient(vectors))
        self.rows.assign(ops.scatter_update(self.rows.value, index[:, None], new))

    def get_config(self):
        """The constructor's arguments."""
        config = {"examples": self.examples, "dimensions": self.dimensions, "momentum": self.momentum}
        return {**config, "name": self.name}
