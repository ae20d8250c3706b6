"""Knowledge distillation: Hinton et al., 2015, https://arxiv.org/abs/1503.02531."""

import keras

from keras_wsl.losses.base import LogitsLoss
from keras_wsl.ops import check_bool, entropy, kl_divergence

FORMS = ("kl", "cross_entropy")


def soft_label_loss(student_logits, teacher_logits, *, temperature=4.0, form="kl"):
    r"""How far the student's softened softmax $q$ is from the teacher's $p$.

    $$\ell_i = \tau^2 \sum_c p_{ic} (\log p_{ic} - \log q_{ic}) \quad (\text{kl}), \qquad
      \ell_i = -\tau^2 \sum_c p_{ic} \log q_{ic} \quad (\text{cross\_entropy})$$

    The two differ by $\tau^2 H(p_i)$, a constant of the teacher, and so have the same gradient.

    Args:
        student_logits: Floats, shape `(..., classes)`.
        teacher_logits: Floats, shape `(..., classes)`.
        temperature: Positive float, $\tau$.
        form: `"kl"`, which is 0 where the two agree, or `"cross_entropy"`, as the papers print it.

    Returns:
        Floats, shape `(...)`.
    """
    loss = kl_divergence(teacher_logits, student_logits, temperature)
    if form == "cross_entropy":
        loss = loss + entropy(teacher_logits, temperature)
    return temperature**2 * loss


@keras.saving.register_keras_serializable("keras_wsl")
class KD(LogitsLoss):
    r"""Knowledge distillation: `soft_label_loss` of the logits, times $\omega_i$ where it has a weighting.

    The published CIFAR-100 numbers are of $0.1\,\mathrm{CE} + 0.9\,L$ with $\tau = 4$:
    `Distiller(teacher, student, KD(temperature=4.0, weight=0.9), student_loss_weight=0.1)`.

    Args:
        temperature: Positive float, $\tau$.
        weight: Float, the factor of the mean in the total.
        form: `"kl"` or `"cross_entropy"`, as of `soft_label_loss`: the same gradient, another value in the logs.
        divide_by_num_classes: Whether to divide by the number of classes too, as PyTorch's `KLDivLoss()` does by
        default
            and with it the code of Tf-KD and of PKD.
        **kwargs: As of `LogitsLoss`: `standardize`, `weighting`, `teacher`, `name`.

    Raises:
        ValueError: For a setting out of its range, or networks with different numbers of classes.
    """

    def __init__(self, *, temperature=4.0, weight=0.9, form="kl", divide_by_num_classes=False, **kwargs):
        if form not in FORMS:
            raise ValueError(f"`form` must be one of {FORMS}. Received: form={form!r}.")
        super().__init__(temperature=temperature, weight=weight, **kwargs)
        self.form = form
        self.divide_by_num_classes = check_bool(divide_by_num_classes, "divide_by_num_classes")

    def per_example(self, labels, student, teacher):
        """`soft_label_loss` of the two logits."""
        student_logits, teacher_logits = self.logits(student, teacher)
        loss = soft_label_loss(student_logits, teacher_logits, temperature=self.temperature, form=self.form)
        return loss / student_logits.shape[-1] if self.divide_by_num_classes else loss
