"""Multi-level logit distillation: Jin et al., CVPR 2023."""

import keras
from keras import ops

from keras_wsl.losses.base import LogitsLoss
from keras_wsl.losses.logit.kd import soft_label_loss
from keras_wsl.ops import check_temperature, softmax


def _gram_difference(q, p):
    r"""Compute $Q^\top Q - P^\top P$ as the symmetric part of $(Q - P)^\top (Q + P)$, which does not cancel."""
    product = ops.matmul(ops.transpose(q - p), q + p)
    return (product + ops.transpose(product)) / 2


def batch_level_loss(student_logits, teacher_logits, *, temperature):
    r"""$\frac{1}{n} \lVert Q Q^\top - P P^\top \rVert^2$: which examples are alike.

    Args:
        student_logits: Floats, shape `(batch, classes)`; $Q$ is their softmax at $\tau$.
        teacher_logits: Floats, shape `(batch, classes)`; $P$ likewise.
        temperature: Positive float, $\tau$.

    Returns:
        Floats, shape `(batch,)`: the rows' sums, whose mean is the paper's number.
    """
    q, p = softmax(student_logits, temperature), softmax(teacher_logits, temperature)
    return ops.sum(_gram_difference(ops.transpose(q), ops.transpose(p)) ** 2, axis=-1)


def class_level_loss(student_logits, teacher_logits, *, temperature):
    r"""$\frac{1}{C} \lVert D \rVert^2$ with $D = Q^\top Q - P^\top P$: which classes go together in the batch.

    Args:
        student_logits: Floats, shape `(batch, classes)`; $Q$ is their softmax at $\tau$.
        teacher_logits: Floats, shape `(batch, classes)`; $P$ likewise.
        temperature: Positive float, $\tau$.

    Returns:
        Floats, shape `(batch,)`: $\frac{n}{C} (q_i^\top D q_i - p_i^\top D p_i)$, whose mean is the paper's number;
        one of them may be negative.
    """
    q, p = softmax(student_logits, temperature), softmax(teacher_logits, temperature)
    # D is symmetric, so that q^T D q - p^T D p = (q - p)^T D (q + p).
    own = ops.sum(ops.matmul(q - p, _gram_difference(q, p)) * (q + p), axis=-1)
    return own * ops.cast(ops.shape(q)[0], q.dtype) / q.shape[-1]


@keras.saving.register_keras_serializable("keras_wsl")
class MLKD(LogitsLoss):
    r"""Soft labels of examples, batch and classes, at several temperatures.

    $$\ell = \sum_\tau (\mathrm{KD}_\tau + \tfrac12 \mathrm{BC}_\tau + \tfrac12 \mathrm{CC}_\tau)$$

    The authors' code adds the same of a second, strongly augmented view of each image, weighs 0.1 of the cross-entropy
    beside 0.9 of this, and trains twice as long. Here there is one view: its terms count once.

    Args:
        temperatures: Positive floats, the $\tau$.
        weight: Float, the factor of the mean in the total.
        temperature: Positive float, at which regularization samples are counted.
        **kwargs: As of `LogitsLoss`.

    Raises:
        ValueError: For a setting out of its range, logits of a sequence, or different numbers of classes.
    """

    supports_sequences = False

    def __init__(self, *, temperatures=(2.0, 3.0, 4.0, 5.0, 6.0), weight=0.9, temperature=4.0, **kwargs):
        super().__init__(temperature=temperature, weight=weight, **kwargs)
        if not isinstance(temperatures, (list, tuple)) or not temperatures:
            raise ValueError(f"`temperatures` must be a list of one or more numbers. Received: {temperatures!r}.")
        self.temperatures = tuple(check_temperature(value, "temperatures") for value in temperatures)

    def per_example(self, labels, student, teacher):
        """The sum over temperatures and levels."""
        logits = self.logits(student, teacher)
        total = 0.0
        for temperature in self.temperatures:
            pairs = batch_level_loss(*logits, temperature=temperature)
            pairs = pairs + class_level_loss(*logits, temperature=temperature)
            total = total + soft_label_loss(*logits, temperature=temperature) + 0.5 * pairs
        return total
