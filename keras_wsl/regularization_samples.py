"""Regularization samples: Zhou et al., ICLR 2021, sections 3.1 and 3.2, https://arxiv.org/abs/2102.00650."""

from keras import ops

from keras_wsl.ops import labels_are_categorical, log_softmax, softmax_difference, value_at_label


def label_and_distillation_gradients(labels, student_logits, teacher_logits, temperature):
    r"""Compute the gradients of the two losses with respect to the label's logit $z_y$.

    $$a = \frac{\partial L_{ce}}{\partial z_y} = q_y - 1, \qquad
      d = \frac{\partial L_{kd}}{\partial z_y} = \tau (q^\tau_y - p^\tau_y)$$

    See `bias_variance_gradients` for the symbols, and for labels that are distributions. Both keep their digits if the
    networks are certain.

    Args:
        labels: Integers, shape `(...)`, or distributions, shape `(..., classes)`.
        student_logits: Floats, shape `(..., classes)`.
        teacher_logits: Floats, shape `(..., classes)`.
        temperature: Positive float, $\tau$ of the distillation.

    Returns:
        `(a, d)`, floats, each of shape `(...)`.
    """
    log_q, *softened = (
        log_softmax(student_logits),
        *(log_softmax(logits, temperature) for logits in (student_logits, teacher_logits)),
    )
    if not labels_are_categorical(labels, student_logits):  # Only the class of the label matters.
        log_q, *softened = (value_at_label(labels, values) for values in (log_q, *softened))
        return ops.expm1(log_q), temperature * softmax_difference(*softened)
    to_label = ops.expm1(log_q) + (1 - ops.cast(labels, log_q.dtype))  # q - y
    return value_at_label(labels, to_label), temperature * value_at_label(labels, softmax_difference(*softened))


def bias_variance_gradients(labels, student_logits, teacher_logits, temperature):
    r"""Compute the gradients of bias and variance with respect to the label's logit $z_y$.

    $$a = \frac{\partial L_{ce}}{\partial z_y} = q_y - 1, \qquad
      b = \frac{\partial (L_{kd} - L_{ce})}{\partial z_y} = \tau (q^\tau_y - p^\tau_y) - (q_y - 1)$$

    $q$ is the student's softmax, $q^\tau$ and $p^\tau$ the student's and the teacher's at temperature $\tau$; $L_{kd}$
    has the factor $\tau^2$. $a$ belongs to the bias, $b$ to the variance. For distributions $y$ of labels, both are
    $\sum_c y_c \, \partial / \partial z_c$, with the same values for a one-hot $y$.

    Args:
        labels: Integers, shape `(...)`, or distributions, shape `(..., classes)`.
        student_logits: Floats, shape `(..., classes)`.
        teacher_logits: Floats, shape `(..., classes)`.
        temperature: Positive float, $\tau$ of the distillation.

    Returns:
        `(a, b)`, floats, each of shape `(...)`.
    """
    a, d = label_and_distillation_gradients(labels, student_logits, teacher_logits, temperature)
    return a, d - a


def mask(labels, student_logits, teacher_logits, temperature):
    r"""Return which examples are regularization samples: $|b| > |a|$, the variance term dominates the gradient.

    Args:
        labels: Integers, shape `(...)`, or distributions, shape `(..., classes)`.
        student_logits: Floats, shape `(..., classes)`.
        teacher_logits: Floats, shape `(..., classes)`.
        temperature: Positive float, $\tau$ of the distillation.

    Returns:
        Booleans, shape `(...)`.
    """
    a, d = label_and_distillation_gradients(labels, student_logits, teacher_logits, temperature)
    # b**2 - a**2 = d * (d - 2 * a), without the rounding of b if d is small compared to a.
    return ops.sign(d) * ops.sign(d - 2 * a) > 0
