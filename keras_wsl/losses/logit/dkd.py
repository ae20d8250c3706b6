"""Decoupled knowledge distillation: Zhao et al., CVPR 2022, https://arxiv.org/abs/2203.08679."""

import keras

from keras_wsl.argument_checks import check_non_negative
from keras_wsl.losses.base import LogitsLoss
from keras_wsl.ops import binary_kl_divergence, class_indices, kl_divergence, label_margin, mask_label_logit


def target_class_loss(labels, student_logits, teacher_logits, *, temperature=4.0):
    r"""Compute TCKD: $\tau^2 \mathrm{KL}([p_y, 1 - p_y] \Vert [q_y, 1 - q_y])$, on the probability of the label.

    Args:
        labels: Integers, shape `(...)`.
        student_logits: Floats, shape `(..., classes)`.
        teacher_logits: Floats, shape `(..., classes)`.
        temperature: Positive float, $\tau$.

    Returns:
        Floats, shape `(...)`.
    """
    student, teacher = (label_margin(labels, logits, temperature) for logits in (student_logits, teacher_logits))
    return temperature**2 * binary_kl_divergence(teacher, student)


def non_target_class_loss(labels, student_logits, teacher_logits, *, temperature=4.0):
    r"""Compute NCKD: $\tau^2 \mathrm{KL}$ of the softmaxes over all classes other than the label.

    Args:
        labels: Integers, shape `(...)`.
        student_logits: Floats, shape `(..., classes)`.
        teacher_logits: Floats, shape `(..., classes)`.
        temperature: Positive float, $\tau$.

    Returns:
        Floats, shape `(...)`.
    """
    student, teacher = (mask_label_logit(labels, logits) for logits in (student_logits, teacher_logits))
    return temperature**2 * kl_divergence(teacher, student, temperature)


@keras.saving.register_keras_serializable("keras_wsl")
class DKD(LogitsLoss):
    r"""$\ell_i = \alpha \, \mathrm{TCKD}_i + \beta \, \mathrm{NCKD}_i$: the two parts of KD, each with its own weight.

    KD itself has $\alpha = 1$ and $\beta = 1 - p_y$. Published with `student_loss_weight=1.0` and a warm-up of 20
    epochs, `callbacks.DistillationWarmup(20)`. $\beta$ is 8 for most pairs, 6 for WRN-40-2 to WRN, and 2 for ResNet-56
    to ResNet-20. A distribution of labels counts as its most probable class.

    Args:
        alpha: Float, the weight of `target_class_loss`.
        beta: Float, the weight of `non_target_class_loss`.
        **kwargs: See `LogitsLoss`.
    """

    def __init__(self, *, temperature=4.0, alpha=1.0, beta=8.0, **kwargs):
        super().__init__(temperature=temperature, **kwargs)
        self.alpha, self.beta = check_non_negative(alpha, "alpha"), check_non_negative(beta, "beta")

    def per_example(self, labels, student, teacher):
        """Return the weighted sum of the two parts."""
        logits = self.logits(student, teacher)
        labels = class_indices(labels, logits[0])
        target = target_class_loss(labels, *logits, temperature=self.temperature)
        return self.alpha * target + self.beta * non_target_class_loss(labels, *logits, temperature=self.temperature)
