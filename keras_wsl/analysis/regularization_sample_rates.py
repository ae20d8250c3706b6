"""Rates of regularization samples: Zhou et al., ICLR 2021, sections 3.1 and 3.2, https://arxiv.org/abs/2102.00650."""

from keras import ops

from keras_wsl import regularization_samples
from keras_wsl.analysis.checks import mean_or_none, validate_labels, validate_logit_pair
from keras_wsl.argument_checks import check_temperature


def regularization_sample_rates(labels, *, student_logits, teacher_logits, temperature):
    r"""Compute the rates of regularization samples, in total and by whether the teacher is correct.

    With $a$ and $b$ of `keras_wsl.regularization_samples.bias_variance_gradients`, an example is a regularization
    sample if $|b| > |a|$. Since $a \le 0$, there are two kinds. Either soft labels lower the label's logit, $a + b =
    \tau (q^\tau_y - p^\tau_y) > 0$, because the student's probability of the label is higher than the teacher's; or
    they raise it more than twice as much as the label does, $a + b < 2 a$.

    Args:
        labels: Integers in `[0, classes)`, shape `(n,)`.
        student_logits: Floats, shape `(n, classes)`.
        teacher_logits: Floats, shape `(n, classes)`.
        temperature: Positive float, $\tau$ of the distillation.

    Returns:
        Dict of floats in `[0, 1]`: `regularization_sample_rate`; `regularization_rate_student_above_teacher`, the
        fraction of all examples that are of the first kind; and the rates among the examples that the teacher
        classifies correctly, `regularization_rate_teacher_correct`, and among the others,
        `regularization_rate_teacher_wrong`; `None` if there is no such example.

    Raises:
        ValueError: If shapes differ, a label is out of range, a logit is not finite, rows are probabilities, there is
            no example, or the temperature is not a positive number.
    """
    student_logits, teacher_logits = validate_logit_pair(student_logits, teacher_logits)
    labels = validate_labels(labels, teacher_logits.shape)
    inputs = labels, student_logits, teacher_logits, check_temperature(temperature)
    mask = ops.convert_to_numpy(regularization_samples.mask(*inputs))
    lowered = ops.convert_to_numpy(regularization_samples.label_and_distillation_gradients(*inputs)[1] > 0)
    teacher_correct = teacher_logits.argmax(axis=-1) == labels
    return {
        "regularization_sample_rate": float(mask.mean()),
        "regularization_rate_student_above_teacher": float((mask & lowered).mean()),
        "regularization_rate_teacher_correct": mean_or_none(mask[teacher_correct]),
        "regularization_rate_teacher_wrong": mean_or_none(mask[~teacher_correct]),
    }
