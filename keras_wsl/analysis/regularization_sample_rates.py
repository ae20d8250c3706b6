"""Where regularization samples lie: Zhou et al., ICLR 2021, sections 3.1 and 3.2, https://arxiv.org/abs/2102.00650."""

from keras import ops

from keras_wsl import regularization_samples
from keras_wsl.analysis.checks import checked_labels, checked_pair, mean_of
from keras_wsl.argument_checks import check_temperature


def regularization_sample_rates(teacher_logits, student_logits, labels, temperature):
    r"""Shares of regularization samples, in all examples and by whether the teacher has the label right.

    With $a$ and $b$ of `keras_wsl.regularization_samples.bias_variance_gradients`, an example is one if $|b| > |a|$. As
    $a \le 0$, there are two kinds: soft labels hold the label's logit back, $a + b = \tau (q^\tau_y - p^\tau_y) > 0$,
    since the student gives its label more than the teacher does; or they pull it up more than twice as hard as the
    label, $a + b < 2 a$.

    Args:
        teacher_logits: Floats, shape `(n, classes)`.
        student_logits: Floats, shape `(n, classes)`.
        labels: Integers in `[0, classes)`, shape `(n,)`.
        temperature: Positive float, $\tau$ of the distillation.

    Returns:
        Dict of floats in `[0, 1]`: `regularization_sample_rate`; the part of it whose label's logit is held back,
        `regularization_rate_student_above_teacher`, also a share of all examples; and the shares of the examples that
        the teacher has right, `regularization_rate_teacher_correct`, and of the others, `..._where_teacher_wrong`;
        `None` where there is no such example.

    Raises:
        ValueError: If shapes differ, a label is out of range, a logit is not finite, rows are probabilities, there is
            no example, or the temperature is not a positive number.
    """
    teacher_logits, student_logits = checked_pair(teacher_logits, student_logits)
    labels = checked_labels(labels, teacher_logits.shape)
    inputs = labels, student_logits, teacher_logits, check_temperature(temperature)
    chosen = ops.convert_to_numpy(regularization_samples.mask(*inputs))
    held_back = ops.convert_to_numpy(regularization_samples.label_and_distillation_gradients(*inputs)[1] > 0)
    right = teacher_logits.argmax(axis=-1) == labels
    return {
        "regularization_sample_rate": float(chosen.mean()),
        "regularization_rate_student_above_teacher": float((chosen & held_back).mean()),
        "regularization_rate_teacher_correct": mean_of(chosen[right]),
        "regularization_rate_teacher_wrong": mean_of(chosen[~right]),
    }
