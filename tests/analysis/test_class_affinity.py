"""Logit gradients against the losses' and numerical ones, means per class, and rank correlation of matrices."""

import math

import keras
import numpy as np
import pytest

from keras_wsl import regularization_samples
from keras_wsl.analysis.class_affinity import class_affinity, group_means, logit_gradients, rank_correlation
from tests.common import golden


def _logits(count=12, classes=5, seed=0):
    generator = np.random.default_rng(seed)
    return generator.integers(0, classes, count), *generator.normal(0, 2, (2, count, classes))


def _cross_entropy(z, target):
    z = z - z.max()
    return -(target * (z - math.log(np.exp(z).sum()))).sum()


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_logit_gradients_match_numerical_gradients(temperature):
    labels, student, teacher = _logits()
    result = logit_gradients(labels, student_logits=student, teacher_logits=teacher, temperature=temperature)
    i, step = 3, 1e-6
    soft = np.exp(teacher[i] / temperature)

    def difference(z):
        kd = temperature**2 * _cross_entropy(z / temperature, soft / soft.sum())
        return kd - _cross_entropy(z, np.eye(5)[labels[i]])

    for k, move in enumerate(step * np.eye(5)):
        numerical = (difference(student[i] + move) - difference(student[i] - move)) / (2 * step)
        assert result[i, k] == pytest.approx(numerical, abs=1e-7)
    np.testing.assert_allclose(result.sum(-1), 0, atol=1e-14)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_logit_gradients_at_label_match_b(temperature):
    labels, student, teacher = _logits()
    b = regularization_samples.bias_variance_gradients(
        labels, student.astype("float32"), teacher.astype("float32"), temperature
    )[1]
    result = logit_gradients(labels, student_logits=student, teacher_logits=teacher, temperature=temperature)[
        np.arange(12), labels
    ]
    np.testing.assert_allclose(result, keras.ops.convert_to_numpy(b), atol=2e-6)


def test_logit_gradients_at_label_match_golden_b():
    case = golden("logits")["cases"]["A"]
    labels, student, teacher = (np.array(case[name]) for name in ("labels", "logits_s", "logits_t"))
    result = logit_gradients(labels, student_logits=student, teacher_logits=teacher, temperature=4.0)[
        np.arange(len(labels)), labels
    ]
    np.testing.assert_allclose(result, case["out"]["regularization"]["tau=4"]["b"], atol=1e-9)


def test_class_affinity_is_mean_per_class_and_nan_without_examples():
    labels, student, teacher = _logits()
    labels = np.where(labels == 2, 3, labels)
    result = class_affinity(labels, student_logits=student, teacher_logits=teacher, temperature=4.0)
    gradients = logit_gradients(labels, student_logits=student, teacher_logits=teacher, temperature=4.0)
    assert result.shape == (5, 5) and np.isnan(result[2]).all()
    for c in (0, 1, 3, 4):
        np.testing.assert_allclose(result[c], gradients[labels == c].mean(0), atol=1e-15)
    shown = class_affinity(
        labels[:, None], student_logits=student.astype("float32"), teacher_logits=teacher, temperature=4
    )
    np.testing.assert_allclose(shown, result, atol=1e-6)


def test_class_affinity_is_negative_for_confused_classes():
    student, teacher = np.zeros((2, 3)), np.array([[2.0, 1.0, -3.0], [1.0, 2.0, -3.0]])
    result = class_affinity(np.array([0, 1]), student_logits=student, teacher_logits=teacher, temperature=2.0)
    assert result[0, 1] < result[0, 2] and result[1, 0] < result[1, 2]
    assert rank_correlation(result[:2, :2], np.ones((2, 2))).pairs == 2


def test_rank_correlation_is_spearman_off_diagonal():
    # Ranks of the six entries: 1 2 3 4 5 6 against 2 1 3 4 6 5: 1 - 6 * 4 / (6 * 35).
    first = np.array([[99, 1, 2], [3, -99, 4], [5, 6, 0]])
    second = np.array([[-1.0, 0.2, 0.1], [0.3, 7, 0.4], [0.6, 0.5, 9]])
    assert rank_correlation(first, second) == (pytest.approx(1 - 24 / 210), 6)
    assert rank_correlation(first, -second).spearman == pytest.approx(-1 + 24 / 210)
    second[1] = np.nan
    assert rank_correlation(first, second).pairs == 4
    assert math.isnan(rank_correlation(first, np.ones((3, 3))).spearman)


def test_group_means_of_known_matrix():
    matrix = np.array([[50, 1, 2], [3, 50, 4], [np.nan, 6, 50]])
    assert group_means(matrix, [7, 7, 1]) == (2.0, 4.0)
    within, between = group_means(matrix, [0, 1, 2])
    assert math.isnan(within) and between == pytest.approx(16 / 5)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"labels": np.full(12, 5)}, r"in \[0, 5\).*Received: 5 in row 0"),
        ({"labels": np.zeros(12)}, "Received: float64"),
        ({"labels": np.zeros((12, 5), int)}, r"integers of shape \(12,\)"),
        ({"student_logits": np.zeros((12, 4))}, r"shapes \(12, 4\) and \(12, 5\)"),
        ({"teacher_logits": np.full((12, 5), np.inf)}, "`teacher_logits` must be finite. .*12 of 12 rows"),
        ({"temperature": 0}, "must be a positive number"),
    ],
)
def test_class_affinity_refuses_invalid_input(change, message):
    labels, student, teacher = _logits()
    arguments = {"labels": labels, "student_logits": student, "teacher_logits": teacher, "temperature": 4.0}
    with pytest.raises(ValueError, match=message):
        class_affinity(**{**arguments, **change})


@pytest.mark.parametrize("function", [logit_gradients, class_affinity])
def test_class_affinity_refuses_positional_logits(function):
    with pytest.raises(TypeError, match="positional"):
        function(*_logits(), 4.0)


def test_rank_correlation_and_group_means_refuse_mismatched_shapes():
    with pytest.raises(ValueError, match="at least two finite entries"):
        rank_correlation(np.zeros((3, 3)), np.zeros((4, 4)))
    with pytest.raises(ValueError, match="at least two finite entries"):
        rank_correlation(np.full((3, 3), np.nan), np.zeros((3, 3)))
    with pytest.raises(ValueError, match=r"must have shape \(classes, classes\). Received: shape \(3, 4\)"):
        group_means(np.zeros((3, 4)), [0, 1, 2])
    with pytest.raises(ValueError, match=r"must have shape \(3,\), one per class. Received: shape \(2,\)"):
        group_means(np.zeros((3, 3)), [0, 1])
