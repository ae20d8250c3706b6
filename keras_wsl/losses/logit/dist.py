"""DIST: Huang et al., NeurIPS 2022, https://arxiv.org/abs/2205.10536."""

import keras
from keras import ops

from keras_wsl.losses.base import LogitsLoss
from keras_wsl.ops import check_non_negative, correlation, softmax


def inter_class_loss(student_logits, teacher_logits, *, temperature=4.0):
    r"""$\tau^2 (1 - \rho(p_i, q_i))$, with Pearson's correlation $\rho$ over the classes of an example.

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
    r"""$\tau^2 (1 - \frac{1}{C} \sum_c \rho(p_{\cdot c}, q_{\cdot c}))$, with $\rho$ over the examples of a class.

    Each example's value is its part of the sums in $\rho$, so that the mean over examples is the paper's number.

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
    r"""Correlation in place of divergence: $\ell = \beta \, \mathrm{inter} + \gamma \, \mathrm{intra}$.

    Published beside the whole cross-entropy, with $\beta = \gamma = 2$ and $\tau = 4$ on CIFAR-100.

    Args:
        temperature: Positive float, $\tau$.
        beta: Float, the weight of `inter_class_loss`.
        gamma: Float, the weight of `intra_class_loss`.
        **kwargs: As of `LogitsLoss`.

    Raises:
        ValueError: For a setting out of its range, logits of a sequence, or different numbers of classes.
    """

    supports_sequences = False

    def __init__(self, *, temperature=4.0, beta=2.0, gamma=2.0, **kwargs):
        super().__init__(temperature=temperature, **kwargs)
        self.beta, self.gamma = check_non_negative(beta, "beta"), check_non_negative(gamma, "gamma")

    def per_example(self, labels, student, teacher):
        """The weighted sum of the two parts."""
        logits = self.logits(student, teacher)
        inter = inter_class_loss(*logits, temperature=self.temperature)
        return self.beta * inter + self.gamma * intra_class_loss(*logits, temperature=self.temperature)
