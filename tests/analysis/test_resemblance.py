"""The gradients against the package's own and numerical ones; means by class; agreement of matrices."""

import math

import keras
import numpy as np
import pytest

from keras_wsl import regularization_samples
from keras_wsl.analysis.class_affinity import agreement, group_means, logit_gradients, resemblance
from tests.common import golden


def _logits(count=12, classes=5, seed=0):
    generator = np.random.default_rng(seed)
    return generator.integers(0, classes, count), *generator.normal(0, 2, (2, count, classes))


def _cross_entropy(z, target):
    z = z - z.max()
    return -(target * (z - math.log(np.exp(z).sum()))).sum()


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_gradient_is_that_of_the_losses(temperature):
    labels, student, teacher = _logits()
    found = logit_gradients(labels, student, teacher, temperature)
    i, step = 3, 1e-6
    soft = np.exp(teacher[i] / temperature)

    def difference(z):
        kd = temperature**2 * _cross_entropy(z / temperature, soft / soft.sum())
        return kd - _cross_entropy(z, np.eye(5)[labels[i]])

    for k, move in enumerate(step * np.eye(5)):
        numerical = (difference(student[i] + move) - difference(student[i] - move)) / (2 * step)
        assert found[i, k] == pytest.approx(numerical, abs=1e-7)
    np.testing.assert_allclose(found.sum(-1), 0, atol=1e-14)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_the_labels_entry_is_b(temperature):
    labels, student, teacher = _logits()
    b = regularization_samples.bias_variance_gradients(
        labels, student.astype("float32"), teacher.astype("float32"), temperature
    )[1]
    found = logit_gradients(labels, student, teacher, temperature)[np.arange(12), labels]
    np.testing.assert_allclose(found, keras.ops.convert_to_numpy(b), atol=2e-6)


def test_the_labels_entry_is_the_golden_b():
    case = golden("logits")["cases"]["A"]
    labels, student, teacher = (np.array(case[name]) for name in ("labels", "logits_s", "logits_t"))
    found = logit_gradients(labels, student, teacher, 4.0)[np.arange(len(labels)), labels]
    np.testing.assert_allclose(found, case["out"]["regularization"]["tau=4"]["b"], atol=1e-9)


def test_rows_are_means_of_classes_and_empty_ones_are_nan():
    labels, student, teacher = _logits()
    labels = np.where(labels == 2, 3, labels)
    found = resemblance(labels, student, teacher, 4.0)
    gradients = logit_gradients(labels, student, teacher, 4.0)
    assert found.shape == (5, 5) and np.isnan(found[2]).all()
    for c in (0, 1, 3, 4):
        np.testing.assert_allclose(found[c], gradients[labels == c].mean(0), atol=1e-15)
    shown = resemblance(labels[:, None], student.astype("float32"), teacher, 4)
    np.testing.assert_allclose(shown, found, atol=1e-6)


def test_a_teacher_who_confuses_two_classes_draws_them_together():
    student, teacher = np.zeros((2, 3)), np.array([[2.0, 1.0, -3.0], [1.0, 2.0, -3.0]])
    found = resemblance(np.array([0, 1]), student, teacher, 2.0)
    assert found[0, 1] < found[0, 2] and found[1, 0] < found[1, 2]
    assert agreement(found[:2, :2], np.ones((2, 2))).pairs == 2


def test_agreement_is_spearmans_off_the_diagonal():
    # Ranks of the six entries: 1 2 3 4 5 6 against 2 1 3 4 6 5: 1 - 6 * 4 / (6 * 35).
    one = np.array([[99, 1, 2], [3, -99, 4], [5, 6, 0]])
    other = np.array([[-1.0, 0.2, 0.1], [0.3, 7, 0.4], [0.6, 0.5, 9]])
    assert agreement(one, other) == (pytest.approx(1 - 24 / 210), 6)
    assert agreement(one, -other).spearman == pytest.approx(-1 + 24 / 210)
    other[1] = np.nan
    assert agreement(one, other).pairs == 4
    assert math.isnan(agreement(one, np.ones((3, 3))).spearman)


def test_means_of_groups():
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
        ({"student_logits": np.zeros((12, 4))}, r"shapes \(12, 5\) and \(12, 4\)"),
        ({"teacher_logits": np.full((12, 5), np.inf)}, "`teacher_logits` must be finite. .*12 of 12 rows"),
        ({"temperature": 0}, "must be a positive number"),
    ],
)
def test_bad_input_is_refused(change, message):
    labels, student, teacher = _logits()
    given = {"labels": labels, "student_logits": student, "teacher_logits": teacher, "temperature": 4.0}
    with pytest.raises(ValueError, match=message):
        resemblance(**{**given, **change})


def test_matrices_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="no two entries to compare"):
        agreement(np.zeros((3, 3)), np.zeros((4, 4)))
    with pytest.raises(ValueError, match="no two entries to compare"):
        agreement(np.full((3, 3), np.nan), np.zeros((3, 3)))
    with pytest.raises(ValueError, match=r"shape \(3, 4\). Expected \(classes, classes\)"):
        group_means(np.zeros((3, 4)), [0, 1, 2])
    with pytest.raises(ValueError, match=r"Groups have shape \(2,\). Expected \(3,\)"):
        group_means(np.zeros((3, 3)), [0, 1])
