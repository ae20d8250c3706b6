"""Fidelity of a student to its teacher: Stanton et al., NeurIPS 2021, https://arxiv.org/abs/2106.05945."""

import numpy as np
from scipy.special import log_softmax

from keras_wsl.analysis.checks import mean_or_none, validate_labels, validate_logit_pair
from keras_wsl.argument_checks import check_temperature


def fidelity(labels=None, *, student_logits, teacher_logits, temperature=1.0):
    r"""Compute the agreement of the two networks' predictions and the distance of their distributions.

    $$\mathrm{TV} = \frac{1}{2n} \sum_{i, c} |p_{ic} - q_{ic}|, \qquad
      \mathrm{KL} = \frac{1}{n} \sum_{i, c} p_{ic} (\log p_{ic} - \log q_{ic})$$

    $p$ is the teacher's softmax at the temperature and $q$ the student's, both in float64. Agreement is the fraction of
    examples for which both have their highest logit at the same class; of equal logits, the first one counts.

    Args:
        labels: Integers in `[0, classes)`, shape `(n,)`, or `None`.
        student_logits: Floats, shape `(n, classes)`.
        teacher_logits: Floats, shape `(n, classes)`.
        temperature: Positive float, $\tau$.

    Returns:
        Dict of floats: `top1_agreement`; `mean_total_variation`; `mean_overlap`, which is
        $1 - \mathrm{TV} = \frac{1}{n} \sum_{i, c} \min(p_{ic}, q_{ic})$, in `[0, 1]`; `kl` in nats, without the factor
        $\tau^2$. With labels also `teacher_accuracy`, and the agreement on the examples that the teacher classifies
        correctly, `agreement_teacher_correct`, and on the others, `agreement_teacher_wrong`; `None` if there is no
        such example.

    Raises:
        ValueError: If shapes differ, a label is out of range, a logit is not finite, rows are probabilities, there is
            no example, or the temperature is not a positive number.
    """
    student_logits, teacher_logits = validate_logit_pair(student_logits, teacher_logits)
    temperature = check_temperature(temperature)
    log_p, log_q = (log_softmax(logits / temperature, axis=-1) for logits in (teacher_logits, student_logits))
    p, q = np.exp(log_p), np.exp(log_q)
    gap = log_p - log_q
    # p and q both sum to 1: the sum of these terms is the divergence, and none of them is negative.
    terms = np.where(gap > -1, p * (gap + np.expm1(-np.maximum(gap, -1))), p * gap + (q - p))
    total_variation = float(np.abs(p - q).sum(axis=-1).mean() / 2)
    teacher_predictions = teacher_logits.argmax(axis=-1)
    agreement = teacher_predictions == student_logits.argmax(axis=-1)
    result = {
        "top1_agreement": float(agreement.mean()),
        "mean_total_variation": total_variation,
        "mean_overlap": 1 - total_variation,
        "kl": float(terms.sum(axis=-1).mean()),
    }
    if labels is not None:
        correct = teacher_predictions == validate_labels(labels, teacher_logits.shape)
        result["teacher_accuracy"] = float(correct.mean())
        result["agreement_teacher_correct"] = mean_or_none(agreement[correct])
        result["agreement_teacher_wrong"] = mean_or_none(agreement[~correct])
    return result
