"""Refined logit distillation: Sun et al., ICCV 2025, https://arxiv.org/abs/2408.07703."""

import keras
from keras import ops

from keras_wsl.argument_checks import check_non_negative, check_temperature
from keras_wsl.losses.base import LogitsLoss
from keras_wsl.ops import binary_kl_divergence, class_indices, kl_divergence, label_margin, value_at_label


@keras.saving.register_keras_serializable("keras_wsl")
class RLD(LogitsLoss):
    r"""Distillation without the errors of the teacher: $\ell_i = \alpha \, \mathrm{SCD}_i + \beta \, \mathrm{MCD}_i$.

    SCD is $\tau_s^2 \mathrm{KL}$ of the teacher's $[\max_c p_c, \text{rest}]$ and the student's $[q_y, \text{rest}]$:
    the student's probability of the label should equal the teacher's largest probability. MCD is $\tau^2 \mathrm{KL}$
    over the classes whose teacher logit is below that of the label, and 0 if there are none. Published with
    `student_loss_weight=1.0` and a warm-up of 20 epochs: `callbacks.DistillationWarmup(20)`.

    Args:
        temperature: Positive float, $\tau$ of MCD.
        scd_temperature: Positive float, $\tau_s$ of SCD; by default `temperature`, as in the published runs.
        alpha: Float, the weight of SCD.
        beta: Float, the weight of MCD.
        **kwargs: See `LogitsLoss`.
    """

    def __init__(self, *, temperature=4.0, scd_temperature=None, alpha=1.0, beta=8.0, **kwargs):
        super().__init__(temperature=temperature, **kwargs)
        scd_temperature = temperature if scd_temperature is None else scd_temperature
        self.scd_temperature = check_temperature(scd_temperature, "scd_temperature")
        self.alpha, self.beta = check_non_negative(alpha, "alpha"), check_non_negative(beta, "beta")

    def per_example(self, labels, student, teacher):
        """Return the weighted sum of the two parts."""
        student, teacher = self.logits(student, teacher)
        labels = class_indices(labels, student)
        predictions = ops.argmax(teacher, axis=-1)
        confidence = binary_kl_divergence(
            label_margin(predictions, teacher, self.scd_temperature),
            label_margin(labels, student, self.scd_temperature),
        )
        below = teacher < value_at_label(labels, teacher)[..., None]
        student, teacher = (ops.where(below, logits, -1e30) for logits in (student, teacher))
        others = kl_divergence(teacher, student, self.temperature)
        return self.alpha * self.scd_temperature**2 * confidence + self.beta * self.temperature**2 * others
