"""KD without the label's logit: Zhou et al., ICLR 2021, section 3.3 and table 2, https://arxiv.org/abs/2102.00650."""

import keras
from keras import ops

from keras_wsl.losses.base import LogitsLoss
from keras_wsl.losses.logit.dkd import non_target_class_loss
from keras_wsl.ops import class_indices, is_class, log_softmax, softmax

READINGS = ("literal", "stop_gradient", "renormalized")


def masked_soft_label_loss(labels, student_logits, teacher_logits, *, temperature=4.0, reading="literal"):
    r"""Compute the loss on soft labels without the label's class: $L^*_{kd} = \sum_{k \ne y} p_k \log q_k$.

    The paper prints neither the sign nor $\tau^2$. It states that $\partial L^*_{kd} / \partial z_y = 0$, but the
    derivative of this sum is $\tau q_y \sum_{k \ne y} p_k$. There are three readings:

    - `"literal"`: $-\tau^2 \sum_{k \ne y} p_k \log q_k$;
    - `"stop_gradient"`: the same value, with no gradient to $z_y$;
    - `"renormalized"`: $\tau^2 \mathrm{KL}$ over the other classes, DKD's `non_target_class_loss`.

    Args:
        labels: Integers, shape `(...)`.
        student_logits: Floats, shape `(..., classes)`; $q$ is their softmax at $\tau$.
        teacher_logits: Floats, shape `(..., classes)`; $p$ is their softmax at $\tau$.
        temperature: Positive float, $\tau$.
        reading: `"literal"`, `"stop_gradient"` or `"renormalized"`.

    Returns:
        Floats, shape `(...)`.
    """
    if reading == "renormalized":
        return non_target_class_loss(labels, student_logits, teacher_logits, temperature=temperature)
    is_label = is_class(labels, student_logits)
    if reading == "stop_gradient":
        student_logits = ops.where(is_label, ops.stop_gradient(student_logits), student_logits)
    terms = -softmax(teacher_logits, temperature) * log_softmax(student_logits, temperature)
    return temperature**2 * ops.sum(ops.where(is_label, 0.0, terms), axis=-1)


@keras.saving.register_keras_serializable("keras_wsl")
class MaskedKD(LogitsLoss):
    """`masked_soft_label_loss` of the logits: table 2 of the paper, on the part of the label in what KD gains.

    KD in the paper has the weight 0.9, and `student_loss_weight=0.1`.

    Args:
        reading: `"literal"`, `"stop_gradient"` or `"renormalized"`.
        **kwargs: See `LogitsLoss`.
    """

    def __init__(self, *, reading="literal", temperature=4.0, weight=0.9, name="masked_kd", **kwargs):
        if reading not in READINGS:
            raise ValueError(f"`reading` must be one of {READINGS}. Received: reading={reading!r}.")
        super().__init__(temperature=temperature, weight=weight, name=name, **kwargs)
        self.reading = reading

    def per_example(self, labels, student, teacher):
        """Return `masked_soft_label_loss` of the logits."""
        logits = self.logits(student, teacher)
        labels = class_indices(labels, logits[0])
        return masked_soft_label_loss(labels, *logits, temperature=self.temperature, reading=self.reading)
