"""Which classes soft labels draw together: Zhou et al., ICLR 2021, figure 4, https://arxiv.org/abs/2102.00650."""

from typing import NamedTuple

import numpy as np
from scipy.special import softmax

from keras_wsl.analysis.checks import checked_labels, checked_pair
from keras_wsl.argument_checks import check_temperature


class Agreement(NamedTuple):
    """How far two matrices over the same classes agree off the diagonal.

    `spearman` is the rank correlation of `pairs` entries, NaN where one of the matrices is constant.
    """

    spearman: float
    pairs: int


class GroupMeans(NamedTuple):
    """Means of a matrix off the diagonal: over pairs of classes of one group, and of different groups."""

    within: float
    between: float


def logit_gradients(labels, student_logits, teacher_logits, temperature):
    r"""What soft labels ask of every logit beyond what the label asks.

    $$\frac{\partial (L_{kd} - L_{ce})}{\partial z_k} = \tau (q^\tau_k - p^\tau_k) - (q_k - 1[k = y])$$

    $q$ is the student's softmax, $q^\tau$ and $p^\tau$ the student's and the teacher's at temperature $\tau$; $L_{kd}$
    carries its factor $\tau^2$. The entry at the label is the $b$ of `regularization.gradients`, and all add up to 0.

    Args:
        labels: Integers, shape `(examples,)`.
        student_logits: Finite floats, shape `(examples, classes)`.
        teacher_logits: Finite floats, shape `(examples, classes)`.
        temperature: Positive float, $\tau$ of the distillation.

    Returns:
        float64, shape `(examples, classes)`.

    Raises:
        ValueError: Shapes, labels or the temperature do not fit, or a logit is not finite.
    """
    teacher, student = checked_pair(teacher_logits, student_logits)
    temperature, labels = check_temperature(temperature), checked_labels(labels, student.shape)
    soft = temperature * (softmax(student / temperature, axis=-1) - softmax(teacher / temperature, axis=-1))
    return soft - softmax(student, axis=-1) + (labels[:, None] == np.arange(student.shape[1]))


def resemblance(labels, student_logits, teacher_logits, temperature):
    r"""The mean of `logit_gradients` over the examples of each class: figure 4.

    Descent raises $z_k$ where row $c$ is negative at $k$: there soft labels draw class $c$ towards class $k$.

    Args:
        labels: Integers, shape `(examples,)`.
        student_logits: Finite floats, shape `(examples, classes)`.
        teacher_logits: Finite floats, shape `(examples, classes)`.
        temperature: Positive float, $\tau$ of the distillation.

    Returns:
        float64, shape `(classes, classes)`, whose row $c$ is of the examples of class $c$; NaN where there are none.

    Raises:
        ValueError: As `logit_gradients`.
    """
    gradients = logit_gradients(labels, student_logits, teacher_logits, temperature)
    classes = gradients.shape[1]
    labels = np.asarray(labels).reshape(len(gradients))
    counts = np.bincount(labels, minlength=classes)[:, None]
    sums = np.zeros((classes, classes))
    np.add.at(sums, labels, gradients)
    return np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)


def agreement(matrix, similarity):
    """Spearman's rank correlation of two matrices, off the diagonal and where both are numbers.

    Of a `resemblance` and a similarity of meaning, it is negative where soft labels draw classes to their like. Entries
    of a row depend on each other, so there is no p-value.

    Args:
        matrix: Floats, shape `(classes, classes)`.
        similarity: Floats, shape `(classes, classes)`.

    Returns:
        `Agreement`.

    Raises:
        ValueError: The shapes differ or are not square, or fewer than two entries can be compared.
    """
    import scipy.stats  # Half a second, which nothing else here needs.

    matrix, similarity = np.asarray(matrix, "float64"), np.asarray(similarity, "float64")
    kept = _off_diagonal(matrix) & np.isfinite(similarity) if matrix.shape == similarity.shape else np.zeros(1, bool)
    if kept.sum() < 2:
        raise ValueError(
            f"Matrices of shapes {matrix.shape} and {similarity.shape} have no two entries to compare off the "
            "diagonal. Expected both over the same classes, with numbers."
        )
    one, other = matrix[kept], similarity[kept]
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return Agreement(float("nan"), int(kept.sum()))
    return Agreement(float(scipy.stats.spearmanr(one, other).statistic), int(kept.sum()))


def group_means(matrix, groups):
    """The mean entry of pairs of classes within a group, and of pairs of different groups; NaN where there are none.

    Args:
        matrix: Floats, shape `(classes, classes)`; what is not a number is left out, as is the diagonal.
        groups: Integers, the group of each class, shape `(classes,)`.

    Returns:
        `GroupMeans`.

    Raises:
        ValueError: The matrix is not square, or there are more or fewer groups than classes.
    """
    matrix, groups = np.asarray(matrix, "float64"), np.asarray(groups)
    kept = _off_diagonal(matrix)
    if groups.shape != matrix.shape[:1]:
        raise ValueError(f"Groups have shape {groups.shape}. Expected {matrix.shape[:1]}: one for each class.")
    same = groups[:, None] == groups
    means = (float(matrix[part].mean()) if part.any() else float("nan") for part in (kept & same, kept & ~same))
    return GroupMeans(*means)


def _off_diagonal(matrix):
    """Which entries are numbers and not on the diagonal."""
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"The matrix has shape {matrix.shape}. Expected (classes, classes).")
    return np.isfinite(matrix) & ~np.eye(len(matrix), dtype=bool)
