"""Which classes soft labels bring closer: Zhou et al., ICLR 2021, figure 4, https://arxiv.org/abs/2102.00650."""

from typing import NamedTuple

import numpy as np
from scipy.special import softmax

from keras_wsl.analysis.checks import validate_labels, validate_logit_pair
from keras_wsl.argument_checks import check_temperature


class RankCorrelation(NamedTuple):
    """The rank correlation of two matrices over the same classes, off the diagonal.

    `spearman` is the coefficient over `pairs` entries, NaN if one of the matrices is constant.
    """

    spearman: float
    pairs: int


class GroupMeans(NamedTuple):
    """Means of a matrix off the diagonal: over pairs of classes of the same group, and of different groups."""

    within: float
    between: float


def logit_gradients(labels, *, student_logits, teacher_logits, temperature):
    r"""Compute the gradient of the distillation loss minus that of the cross-entropy, per logit.

    $$\frac{\partial (L_{kd} - L_{ce})}{\partial z_k} = \tau (q^\tau_k - p^\tau_k) - (q_k - 1[k = y])$$

    $q$ is the student's softmax, $q^\tau$ and $p^\tau$ are the student's and the teacher's at temperature $\tau$;
    $L_{kd}$ includes its factor $\tau^2$. The entry of the label is $b$ of
    `keras_wsl.regularization_samples.bias_variance_gradients`. The entries of a row sum to 0.

    Args:
        labels: Integers, shape `(examples,)`.
        student_logits: Finite floats, shape `(examples, classes)`.
        teacher_logits: Finite floats, shape `(examples, classes)`.
        temperature: Positive float, $\tau$ of the distillation.

    Returns:
        float64, shape `(examples, classes)`.

    Raises:
        ValueError: If shapes, labels or the temperature are invalid, or a logit is not finite.
    """
    student, teacher = validate_logit_pair(student_logits, teacher_logits)
    temperature, labels = check_temperature(temperature), validate_labels(labels, student.shape)
    soft = temperature * (softmax(student / temperature, axis=-1) - softmax(teacher / temperature, axis=-1))
    return soft - softmax(student, axis=-1) + (labels[:, None] == np.arange(student.shape[1]))


def class_affinity(labels, *, student_logits, teacher_logits, temperature):
    r"""Compute the mean of `logit_gradients` over the examples of each class: figure 4 of the paper.

    If row $c$ is negative at $k$, gradient descent raises $z_k$: soft labels bring class $c$ closer to class $k$.

    Args:
        labels: Integers, shape `(examples,)`.
        student_logits: Finite floats, shape `(examples, classes)`.
        teacher_logits: Finite floats, shape `(examples, classes)`.
        temperature: Positive float, $\tau$ of the distillation.

    Returns:
        float64, shape `(classes, classes)`. Row $c$ is the mean over the examples of class $c$, NaN if there are none.

    Raises:
        ValueError: See `logit_gradients`.
    """
    gradients = logit_gradients(
        labels, student_logits=student_logits, teacher_logits=teacher_logits, temperature=temperature
    )
    classes = gradients.shape[1]
    labels = np.asarray(labels).reshape(len(gradients))
    counts = np.bincount(labels, minlength=classes)[:, None]
    sums = np.zeros((classes, classes))
    np.add.at(sums, labels, gradients)
    return np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)


def rank_correlation(matrix, similarity):
    """Compute Spearman's rank correlation of two matrices, off the diagonal and where both are finite.

    For a `class_affinity` and a semantic similarity, it is negative if soft labels bring similar classes closer. The
    entries of a row depend on each other, so there is no p-value.

    Args:
        matrix: Floats, shape `(classes, classes)`.
        similarity: Floats, shape `(classes, classes)`.

    Returns:
        `RankCorrelation`.

    Raises:
        ValueError: If the shapes differ or are not square, or fewer than two entries can be compared.
    """
    import scipy.stats  # Takes half a second, which nothing else here needs.

    matrix, similarity = np.asarray(matrix, "float64"), np.asarray(similarity, "float64")
    valid = _off_diagonal(matrix) & np.isfinite(similarity) if matrix.shape == similarity.shape else np.zeros(1, bool)
    count = int(valid.sum())
    if count < 2:
        raise ValueError(
            "`matrix` and `similarity` must be of the same classes and have at least two finite entries off the "
            f"diagonal in common. Received: {count} entries of matrices of shapes {matrix.shape} and "
            f"{similarity.shape}."
        )
    if np.ptp(matrix[valid]) == 0 or np.ptp(similarity[valid]) == 0:
        return RankCorrelation(float("nan"), count)
    return RankCorrelation(float(scipy.stats.spearmanr(matrix[valid], similarity[valid]).statistic), count)


def group_means(matrix, groups):
    """Compute the mean entry of pairs of classes of the same group and of different groups; NaN if there are none.

    Args:
        matrix: Floats, shape `(classes, classes)`. The diagonal and entries that are not finite are ignored.
        groups: Integers, the group of each class, shape `(classes,)`.

    Returns:
        `GroupMeans`.

    Raises:
        ValueError: If the matrix is not square, or the number of groups differs from the number of classes.
    """
    matrix, groups = np.asarray(matrix, "float64"), np.asarray(groups)
    valid = _off_diagonal(matrix)
    if groups.shape != matrix.shape[:1]:
        raise ValueError(f"`groups` must have shape {matrix.shape[:1]}, one per class. Received: shape {groups.shape}.")
    same = groups[:, None] == groups
    means = (float(matrix[mask].mean()) if mask.any() else float("nan") for mask in (valid & same, valid & ~same))
    return GroupMeans(*means)


def _off_diagonal(matrix):
    """Return a mask of the finite entries off the diagonal."""
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"`matrix` must have shape (classes, classes). Received: shape {matrix.shape}.")
    return np.isfinite(matrix) & ~np.eye(len(matrix), dtype=bool)
