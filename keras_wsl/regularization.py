"""Regularization samples: Zhou et al., ICLR 2021, sections 3.1 and 3.2, https://arxiv.org/abs/2102.00650."""

from keras import ops

from keras_wsl.ops import expected_at_label, labels_are_distributions


def gradients(labels, student_logits, teacher_logits, temperature):
    r"""What labels and soft labels each ask of the label's logit $z_y$.

    $$a = \frac{\partial L_{ce}}{\partial z_y} = q_y - 1, \qquad
      b = \frac{\partial (L_{kd} - L_{ce})}{\partial z_y} = \tau (q^\tau_y - p^\tau_y) - (q_y - 1)$$

    $q$ is the student's softmax, $q^\tau$ and $p^\tau$ the student's and the teacher's at temperature $\tau$; $L_{kd}$
    carries its factor $\tau^2$. $a$ belongs to the bias, $b$ to the variance. Where labels are distributions $y$, both
    are $\sum_c y_c \, \partial / \partial z_c$, which is the same for a one-hot one.

    Args:
        labels: Integers, shape `(...)`, or distributions, shape `(..., classes)`.
        student_logits: Floats, shape `(..., classes)`.
        teacher_logits: Floats, shape `(..., classes)`.
        temperature: Positive float, $\tau$ of the distillation.

    Returns:
        `(a, b)`, floats, each of shape `(...)`.
    """
    difference = ops.softmax(student_logits / temperature) - ops.softmax(teacher_logits / temperature)
    target = 1.0
    if labels_are_distributions(labels, student_logits):
        target = expected_at_label(labels, ops.cast(labels, student_logits.dtype))
    a = expected_at_label(labels, ops.softmax(student_logits)) - target
    b = temperature * expected_at_label(labels, difference) - a
    return a, b


def mask(labels, student_logits, teacher_logits, temperature):
    r"""Which examples are regularization samples: $|b| > |a|$, the variance term rules their gradient.

    Args:
        labels: Integers, shape `(...)`, or distributions, shape `(..., classes)`.
        student_logits: Floats, shape `(..., classes)`.
        teacher_logits: Floats, shape `(..., classes)`.
        temperature: Positive float, $\tau$ of the distillation.

    Returns:
        Booleans, shape `(...)`.
    """
    a, b = gradients(labels, student_logits, teacher_logits, temperature)
    return ops.abs(b) > ops.abs(a)
