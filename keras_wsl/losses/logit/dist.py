"""DIST: Huang et al., NeurIPS 2022, https://arxiv.org/abs/2205.10536."""

import keras
from keras import ops

from keras_wsl.argument_checks import check_non_negative
from keras_wsl.losses.base import LogitsLoss
from keras_wsl.ops import correlation, softmax


def inter_class_loss(student_logits, teacher_logits, *, temperature=4.0):
    r"""Compute $\tau^2 (1 - \rho(p_i, q_i))$, where $\rho$ is Pearson's correlation over the classes of an example.

    Args:
        student_logits: Floats, shape `(batch, classes)`.
        teacher_logits: Floats, shape `(batch, classes)`.
        temperature: Positive float, $\tau$.

    Returns:
        Floats, shape `(batch,)`.
    """
    q, p = softmax(student_logits, temperature), softmax(teacher_logits, temperature)
    return temperature**2 * (1 - ops.sum(correlation(q, p, axis=-1), axis=-1))


def intra_class_loss(student_logits, teacher_logits, *, temperature=4.0):
    r"""Compute $\tau^2 (1 - \frac{1}{C} \sum_c \rho(p_{\cdot c}, q_{\cdot c}))$, $\rho$ over the examples of a class.

    The value of an example has its terms of the sums in $\rho$. The mean over examples is the value of the paper.

    Args:
        student_logits: Floats, shape `(batch, classes)`.
        teacher_logits: Floats, shape `(batch, classes)`.
        temperature: Positive float, $\tau$.

    Returns:
        Floats, shape `(batch,)`.
    """
    q, p = softmax(student_logits, temperature), softmax(teacher_logits, temperature)
    examples = ops.cast(ops.shape(q)[0], q.dtype)
    return temperature**2 * (1 - examples * ops.mean(correlation(q, p, axis=0), axis=-1))


@keras.saving.register_keras_serializable("keras_wsl")
class DIST(LogitsLoss):
    r"""DIST, correlations instead of a divergence: $\ell = \beta \, \mathrm{inter} + \gamma \, \mathrm{intra}$.

    Published with `student_loss_weight=1.0`, $\beta = \gamma = 2$ and $\tau = 4$ on CIFAR-100.

    Args:
        beta: Float, the weight of `inter_class_loss`.
        gamma: Float, the weight of `intra_class_loss`.
        **kwargs: See `LogitsLoss`.

    Raises:
        ValueError: If it is built on logits of sequences.
    """

    supports_sequences = False

    def __init__(self, *, temperature=4.0, beta=2.0, gamma=2.0, **kwargs):
        super().__init__(temperature=temperature, **kwargs)
        self.beta, self.gamma = check_non_negative(beta, "beta"), check_non_negative(gamma, "gamma")

    def per_example(self, labels, student, teacher):
        """Return the weighted sum of the two parts."""
        logits = self.logits(student, teacher)
        inter = inter_class_loss(*logits, temperature=self.temperature)
        return self.beta * inter + self.gamma * intra_class_loss(*logits, temperature=self.temperature)
