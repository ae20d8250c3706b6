"""Multi-level logit distillation: Jin et al., CVPR 2023."""

import keras
from keras import ops

from keras_wsl.argument_checks import check_temperature
from keras_wsl.losses.base import LogitsLoss
from keras_wsl.losses.logit.kd import soft_label_loss
from keras_wsl.ops import softmax


def _gram_difference(q, p):
    r"""Compute $Q^\top Q - P^\top P$ as the symmetric part of $(Q - P)^\top (Q + P)$, which does not cancel."""
    product = ops.matmul(ops.transpose(q - p), q + p)
    return (product + ops.transpose(product)) / 2


def batch_level_loss(student_logits, teacher_logits, *, temperature):
    r"""Compute $\frac{1}{n} \lVert Q Q^\top - P P^\top \rVert^2$, on the similarity of examples.

    Args:
        student_logits: Floats, shape `(batch, classes)`; $Q$ is their softmax at $\tau$.
        teacher_logits: Floats, shape `(batch, classes)`; $P$ is their softmax at $\tau$.
        temperature: Positive float, $\tau$.

    Returns:
        Floats, shape `(batch,)`: the sums of the rows, whose mean is the value of the paper.
    """
    q, p = softmax(student_logits, temperature), softmax(teacher_logits, temperature)
    return ops.sum(_gram_difference(ops.transpose(q), ops.transpose(p)) ** 2, axis=-1)


def class_level_loss(student_logits, teacher_logits, *, temperature):
    r"""Compute $\frac{1}{C} \lVert D \rVert^2$ with $D = Q^\top Q - P^\top P$, on the similarity of classes.

    Args:
        student_logits: Floats, shape `(batch, classes)`; $Q$ is their softmax at $\tau$.
        teacher_logits: Floats, shape `(batch, classes)`; $P$ is their softmax at $\tau$.
        temperature: Positive float, $\tau$.

    Returns:
        Floats, shape `(batch,)`: $\frac{n}{C} (q_i^\top D q_i - p_i^\top D p_i)$, whose mean is the value of
        the paper. Single ones may be negative.
    """
    q, p = softmax(student_logits, temperature), softmax(teacher_logits, temperature)
    # D is symmetric, so that q^T D q - p^T D p = (q - p)^T D (q + p).
    products = ops.sum(ops.matmul(q - p, _gram_difference(q, p)) * (q + p), axis=-1)
    return products * ops.cast(ops.shape(q)[0], q.dtype) / q.shape[-1]


@keras.saving.register_keras_serializable("keras_wsl")
class MLKD(LogitsLoss):
    r"""Multi-level distillation: of single examples, of the batch and of classes, at several temperatures.

    $$\ell = \sum_\tau (\mathrm{KD}_\tau + \tfrac12 \mathrm{BC}_\tau + \tfrac12 \mathrm{CC}_\tau)$$

    The code of the authors adds the same terms for a second, strongly augmented view of each image, has
    `student_loss_weight=0.1`, and trains twice as long. Here there is one view.

    Args:
        temperatures: List of positive floats $\tau$.
        temperature: Positive float, at which regularization samples are counted.
        **kwargs: See `LogitsLoss`.

    Raises:
        ValueError: If it is built on logits of sequences.
    """

    supports_sequences = False

    def __init__(self, *, temperatures=(2.0, 3.0, 4.0, 5.0, 6.0), weight=0.9, temperature=4.0, **kwargs):
        super().__init__(temperature=temperature, weight=weight, **kwargs)
        if not isinstance(temperatures, (list, tuple)) or not temperatures:
            raise ValueError(
                f"`temperatures` must be a list of one or more numbers. Received: temperatures={temperatures!r}."
            )
        self.temperatures = tuple(check_temperature(value, "temperatures") for value in temperatures)

    def per_example(self, labels, student, teacher):
        """Return the sum over temperatures and levels."""
        logits = self.logits(student, teacher)
        total = 0.0
        for temperature in self.temperatures:
            pairs = batch_level_loss(*logits, temperature=temperature)
            pairs = pairs + class_level_loss(*logits, temperature=temperature)
            total = total + soft_label_loss(*logits, temperature=temperature) + 0.5 * pairs
        return total
