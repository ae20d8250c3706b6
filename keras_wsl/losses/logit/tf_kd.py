"""Teacher-free distillation: Yuan et al., CVPR 2020, https://arxiv.org/abs/1909.11723."""

import keras
from keras import ops

from keras_wsl.argument_checks import check_temperature
from keras_wsl.losses.base import DistillationLoss
from keras_wsl.losses.logit.kd import KD
from keras_wsl.ops import class_indices, kl_divergence


@keras.saving.register_keras_serializable("keras_wsl")
class TfKD(KD):
    r"""Tf-KD self: the teacher is a trained copy of the student. `KD`, divided by the number of classes $C$.

    $$\ell_i = m \frac{\tau^2}{C} \mathrm{KL}(p^\tau_i \Vert q^\tau_i)$$

    Published as $(1 - \alpha) \mathrm{CE} + \alpha L$: `TfKD(weight=0.95)` with `student_loss_weight=0.05`.

    Args:
        temperature: Positive float, $\tau$: 20 for MobileNetV2, ShuffleNetV2 and others, 6 for ResNet-18.
        weight: Float, $\alpha m$: $\alpha$ is 0.95; $m$ is 1 for light networks and 50 for ResNet-18.
        **kwargs: See `KD`.
    """

    def __init__(self, *, temperature=20.0, weight=0.95, divide_by_num_classes=True, **kwargs):
        super().__init__(temperature=temperature, weight=weight, divide_by_num_classes=divide_by_num_classes, **kwargs)


def virtual_teacher_loss(labels, student_logits, *, temperature=40.0, label_probability=0.99):
    r"""Compute $\frac{1}{C} \mathrm{KL}(\mathrm{softmax}(u / \tau) \Vert q)$, $u$ from a virtual teacher.

    $u$ is `label_probability`, $c$, at the label and $(1 - c) / (C - 1)$ elsewhere; $q$ is the student's softmax at
    temperature 1. As in the code of the authors, $u$ are probabilities, whose softmax is almost uniform.

    Args:
        labels: Integers, shape `(...)`, or distributions, shape `(..., classes)`.
        student_logits: Floats, shape `(..., classes)`.
        temperature: Positive float, $\tau$.
        label_probability: Float in (0, 1).

    Returns:
        Floats, shape `(...)`.
    """
    classes = student_logits.shape[-1]
    one_hot = ops.one_hot(class_indices(labels, student_logits), classes, dtype=student_logits.dtype)
    teacher = label_probability * one_hot + (1 - label_probability) / (classes - 1) * (1 - one_hot)
    return kl_divergence(teacher / temperature, student_logits) / classes


@keras.saving.register_keras_serializable("keras_wsl")
class TfKDReg(DistillationLoss):
    r"""Tf-KD reg: `virtual_teacher_loss`. A Distiller needs no teacher for it: `Distiller(None, student, ...)`.

    Published as $(1 - \alpha) \mathrm{CE} + \alpha m L$: `TfKDReg(weight=0.95)` with `student_loss_weight=0.05` and
    $\tau = 40$ for MobileNetV2; `TfKDReg(temperature=20.0, weight=10.0)` with 0.9 for ResNet-18.

    Args:
        virtual_temperature: Positive float, $\tau$, of the virtual teacher alone.
        label_probability: Float in (0, 1), the virtual teacher's probability of the label.
        weight: Float, $\alpha m$.
        **kwargs: See `DistillationLoss`. A `weighting` needs a real teacher.
    """

    def __init__(self, *, virtual_temperature=40.0, label_probability=0.99, weight=0.95, **kwargs):
        super().__init__(weight=weight, **kwargs)
        if not 0 < label_probability < 1:
            raise ValueError(
                f"`label_probability` must be in (0, 1). Received: label_probability={label_probability!r}."
            )
        self.virtual_temperature = check_temperature(virtual_temperature, "virtual_temperature")
        self.label_probability = float(label_probability)
        self.needs_teacher = self.weighting is not None

    def per_example(self, labels, student, teacher):
        """Return `virtual_teacher_loss` of the student's logits."""
        return virtual_teacher_loss(
            labels, student["logits"], temperature=self.virtual_temperature, label_probability=self.label_probability
        )
