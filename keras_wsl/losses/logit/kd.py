"""Knowledge distillation: Hinton et al., 2015, https://arxiv.org/abs/1503.02531."""

import keras

from keras_wsl.argument_checks import check_bool
from keras_wsl.losses.base import LogitsLoss
from keras_wsl.ops import entropy, kl_divergence

OBJECTIVES = ("kl", "cross_entropy")


def soft_label_loss(student_logits, teacher_logits, *, temperature=4.0, objective="kl"):
    r"""Compute the loss of the student's softened softmax $q$ against the teacher's $p$.

    $$\ell_i = \tau^2 \sum_c p_{ic} (\log p_{ic} - \log q_{ic}) \quad (\text{kl}), \qquad
      \ell_i = -\tau^2 \sum_c p_{ic} \log q_{ic} \quad (\text{cross\_entropy})$$

    The two differ by $\tau^2 H(p_i)$, which depends on the teacher alone: their gradients are equal.

    Args:
        student_logits: Floats, shape `(..., classes)`.
        teacher_logits: Floats, shape `(..., classes)`.
        temperature: Positive float, $\tau$.
        objective: `"kl"`, which is 0 if the two are equal, or `"cross_entropy"`, as printed in the papers.

    Returns:
        Floats, shape `(...)`.
    """
    loss = kl_divergence(teacher_logits, student_logits, temperature)
    if objective == "cross_entropy":
        loss = loss + entropy(teacher_logits, temperature)
    return temperature**2 * loss


@keras.saving.register_keras_serializable("keras_wsl")
class KD(LogitsLoss):
    r"""Knowledge distillation: `soft_label_loss` of the logits, times $\omega_i$ if it has a weighting.

    The published results on CIFAR-100 are of $0.1\,\mathrm{CE} + 0.9\,L$ with $\tau = 4$:
    `Distiller(teacher, student, KD(temperature=4.0, weight=0.9), student_loss_weight=0.1)`.

    Args:
        objective: `"kl"` or `"cross_entropy"`, see `soft_label_loss`. The gradients are equal, the logged values are
            not.
        divide_by_num_classes: Whether to divide by the number of classes, as the default of PyTorch's `KLDivLoss`
            does, and with it the code of Tf-KD and PKD.
        **kwargs: See `LogitsLoss`.
    """

    def __init__(self, *, temperature=4.0, weight=0.9, objective="kl", divide_by_num_classes=False, **kwargs):
        if objective not in OBJECTIVES:
            raise ValueError(f"`objective` must be one of {OBJECTIVES}. Received: objective={objective!r}.")
        super().__init__(temperature=temperature, weight=weight, **kwargs)
        self.objective = objective
        self.divide_by_num_classes = check_bool(divide_by_num_classes, "divide_by_num_classes")

    def per_example(self, labels, student, teacher):
        """Return `soft_label_loss` of the logits."""
        student_logits, teacher_logits = self.logits(student, teacher)
        loss = soft_label_loss(student_logits, teacher_logits, temperature=self.temperature, objective=self.objective)
        return loss / student_logits.shape[-1] if self.divide_by_num_classes else loss
