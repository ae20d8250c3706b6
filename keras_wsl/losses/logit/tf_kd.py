"""Teacher-free distillation: Yuan et al., CVPR 2020, https://arxiv.org/abs/1909.11723."""

import keras
from keras import ops

from keras_wsl.losses.base import DistillationLoss
from keras_wsl.losses.logit.kd import KD
from keras_wsl.ops import check_temperature, class_indices, kl_divergence


@keras.saving.register_keras_serializable("keras_wsl")
class TfKD(KD):
    r"""Tf-KD self: a trained copy of the student teaches it. `KD`, divided by the number of classes $C$ too.

    $$\ell_i = m \frac{\tau^2}{C} \mathrm{KL}(p^\tau_i \Vert q^\tau_i)$$

    Published as $(1 - \alpha) \mathrm{CE} + \alpha L$: `TfKD(weight=0.95)` with `student_loss_weight=0.05`.

    Args:
        temperature: Positive float, $\tau$: 20 for MobileNetV2, ShuffleNetV2 and others, 6 for ResNet-18.
        weight: Float, $\alpha m$: $\alpha$ is 0.95 and $m$ 1 for light networks, 50 for ResNet-18.
        **kwargs: As of `KD`.
    """

    def __init__(self, *, temperature=20.0, weight=0.95, divide_by_num_classes=True, **kwargs):
        super().__init__(temperature=temperature, weight=weight, divide_by_num_classes=divide_by_num_classes, **kwargs)


def virtual_teacher_loss(labels, student_logits, *, temperature=40.0, correct=0.99):
    r"""$\frac{1}{C} \mathrm{KL}(\mathrm{softmax}(u / \tau) \Vert q)$ against a teacher that nobody has trained.

    $u$ is `correct` at the label and $(1 - \mathrm{correct}) / (C - 1)$ elsewhere; $q$ is the student's softmax at
    temperature 1. As in the authors' code, $u$ are probabilities, whose softmax is almost uniform.

    Args:
        labels: Integers, shape `(...)`, or distributions, shape `(..., classes)`.
        student_logits: Floats, shape `(..., classes)`.
        temperature: Positive float, $\tau$.
        correct: Float in (0, 1).

    Returns:
        Floats, shape `(...)`.
    """
    classes = student_logits.shape[-1]
    one_hot = ops.one_hot(class_indices(labels, student_logits), classes, dtype=student_logits.dtype)
    teacher = correct * one_hot + (1 - correct) / (classes - 1) * (1 - one_hot)
    return kl_divergence(teacher / temperature, student_logits) / classes


@keras.saving.register_keras_serializable("keras_wsl")
class TfKDReg(DistillationLoss):
    r"""Tf-KD reg: `virtual_teacher_loss`, for which a Distiller needs no teacher: `Distiller(None, student, ...)`.

    Published as $(1 - \alpha) \mathrm{CE} + \alpha m L$: `TfKDReg(weight=0.95)` with `student_loss_weight=0.05` and
    $\tau = 40$ for MobileNetV2; `TfKDReg(temperature=20.0, weight=10.0)` with 0.9 for ResNet-18.

    Args:
        virtual_temperature: Positive float, $\tau$, which softens the virtual teacher alone.
        correct: Float in (0, 1), the virtual teacher's probability of the label.
        weight: Float, $\alpha m$.
        **kwargs: As of `DistillationLoss`. A `weighting` compares with a real teacher, which is then needed.

    Raises:
        ValueError: For a setting out of its range.
    """

    def __init__(self, *, virtual_temperature=40.0, correct=0.99, weight=0.95, **kwargs):
        super().__init__(weight=weight, **kwargs)
        if not 0 < correct < 1:
            raise ValueError(f"`correct` must be between 0 and 1. Received: correct={correct!r}.")
        self.virtual_temperature = check_temperature(virtual_temperature, "virtual_temperature")
        self.correct = float(correct)
        self.needs_teacher = self.weighting is not None

    def per_example(self, labels, student, teacher):
        """`virtual_teacher_loss` of the student's logits."""
        return virtual_teacher_loss(
            labels, student["logits"], temperature=self.virtual_temperature, correct=self.correct
        )
