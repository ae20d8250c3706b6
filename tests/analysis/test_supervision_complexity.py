"""Supervision complexity: golden values, closed forms, invariances and invalid input."""

import math

import keras
import numpy as np
import pytest

from keras_wsl import analysis
from tests.common import golden

GOLDEN = golden("supervision_complexity")
X = np.asarray(GOLDEN["inputs"]["X"])
SIGNS, SOFT = (np.asarray(GOLDEN["inputs"][name]) for name in ("y_pm", "y_soft"))
TEACHER = np.asarray(GOLDEN["inputs"]["teacher_logits"])
LABELS = np.asarray(GOLDEN["inputs"]["labels"])


def check(result, expected):
    np.testing.assert_allclose(result.quadratic, expected["quad"], rtol=1e-8)
    np.testing.assert_allclose(result.complexity, expected["sc"], rtol=1e-8)
    np.testing.assert_allclose(result.adjusted, expected["adjusted"], rtol=1e-8)
    np.testing.assert_allclose(result.trace, expected["trace"], rtol=1e-12)
    assert result.adjusted >= expected["adjusted_lower_bound"]


@pytest.mark.parametrize("case", ["binary", "binary_bias"])
def test_supervision_complexity_matches_binary_golden_values(case):
    kernel = np.asarray(GOLDEN[case]["K"])
    check(analysis.supervision_complexity(kernel, SIGNS), GOLDEN[case]["pm1"])
    check(analysis.supervision_complexity(kernel, SOFT), GOLDEN[case]["soft"])
    for ridge in ("1e-1", "1e-3"):
        result = analysis.supervision_complexity(kernel, SIGNS, ridge=float(ridge), ridges=(float(ridge),))
        check(result, GOLDEN[case][f"pm1_ridge_{ridge}"])
        assert result.ridge == float(ridge) and result.ridges == {float(ridge): pytest.approx(result.adjusted)}
    values = GOLDEN[case]["eigvals"]
    result = analysis.supervision_complexity(kernel, SIGNS)
    np.testing.assert_allclose(result.smallest_eigenvalue, values[0], rtol=1e-10)
    np.testing.assert_allclose(result.smallest_relative, values[0] / np.mean(values), rtol=1e-10)
    np.testing.assert_allclose(result.condition, values[-1] / values[0], rtol=1e-10)
    np.testing.assert_allclose(analysis.random_labels(kernel), GOLDEN[case]["random_pm1_rms"], rtol=1e-10)


TEACHERS = {
    "one_hot": np.eye(3)[LABELS],
    "one_hot_centred": np.eye(3)[LABELS] - 1 / 3,
    "teacher_tau1_centred": analysis.targets(TEACHER),
    "teacher_tau4_centred": analysis.targets(TEACHER, temperature=4.0),
    "teacher_logits_centred": analysis.targets(TEACHER, "logit_centered"),
}


@pytest.mark.parametrize("case", TEACHERS)
def test_supervision_complexity_matches_multiclass_golden_values(case):
    inner, expected = X @ X.T, GOLDEN["multiclass"][case]
    result = analysis.supervision_complexity(np.kron(inner, np.eye(3)), TEACHERS[case])
    check(result, expected)
    assert (result.examples, result.outputs) == (4, 3)
    reduced = analysis.supervision_complexity(inner, TEACHERS[case])
    np.testing.assert_allclose(reduced.adjusted, expected["adjusted_pseudo_ntk"], rtol=1e-8)


def test_supervision_complexity_of_singular_kernel():
    case = GOLDEN["rank_deficient"]
    x = np.asarray(case["X"])
    kernel, inside, outside = x @ x.T, np.asarray(case["y_in_range"]), np.asarray(case["y_out_of_range"])
    result = analysis.supervision_complexity(kernel, inside, ridge=0.0)
    np.testing.assert_allclose(result.quadratic, case["quad_in_range_pinv"], rtol=1e-8)
    assert result.condition == math.inf == analysis.random_labels(kernel)
    assert analysis.supervision_complexity(kernel, outside, ridge=0.0).complexity == math.inf
    for ridge in ("1e-1", "1e-3"):
        result = analysis.supervision_complexity(kernel, outside, ridge=float(ridge))
        check(result, case[f"out_of_range_ridge_{ridge}"])
    # By default, the required ridge is added and reported.
    assert analysis.supervision_complexity(kernel, outside).ridge == 1e-6
    assert analysis.margin_bound(kernel, inside).total < math.inf


def test_supervision_complexity_of_ill_conditioned_kernel():
    case = GOLDEN["ill_conditioned"]
    values = np.asarray(case["lam"])
    k, i = np.mgrid[:12, :12]
    basis = np.cos(np.pi * (i + 0.5) * k / 12) * np.where(k == 0, math.sqrt(1 / 12), math.sqrt(2 / 12))
    kernel, y = basis.T @ np.diag(values) @ basis, basis.T @ np.ones(12)
    result = analysis.supervision_complexity(kernel, y, ridge=0.0)
    np.testing.assert_allclose(result.quadratic, case["quad_exact"], rtol=case["rel_err_float64_below"])
    for ridge in ("1e-3", "1e-6"):
        check(analysis.supervision_complexity(kernel, y, ridge=float(ridge)), case[f"ridge_{ridge}"])
    assert analysis.supervision_complexity(kernel, y).ridge == 1e-6


def test_supervision_complexity_invariances():
    kernel, expected = np.asarray(GOLDEN["binary"]["K"]), GOLDEN["invariances"]

    def adjusted(kernel, y):
        return analysis.supervision_complexity(kernel, y).adjusted

    order = expected["permutation"]
    np.testing.assert_allclose(adjusted(7.5 * kernel, SIGNS), expected["kernel_scale_7.5"], rtol=1e-8)
    np.testing.assert_allclose(adjusted(kernel, 2 * SIGNS), expected["targets_times_2"], rtol=1e-8)
    np.testing.assert_allclose(adjusted(kernel[np.ix_(order, order)], SIGNS[order]), expected["permuted"], rtol=1e-8)
    assert adjusted(np.eye(4), SIGNS) == pytest.approx(1.0) == expected["identity_kernel_pm1_adjusted"]
    result = analysis.supervision_complexity(kernel, 3 * SIGNS)
    assert result.rms == pytest.approx(3.0) and result.adjusted_over_rms == pytest.approx(adjusted(kernel, SIGNS))


def test_margin_bound_matches_golden_values():
    kernel, expected = np.asarray(GOLDEN["binary"]["K"]), GOLDEN["bound"]
    result = analysis.margin_bound(kernel, SOFT, margin=expected["gamma"], delta=expected["delta"])
    np.testing.assert_allclose(
        result,
        [expected[name] for name in ("ramp_margin_loss", "complexity_term", "confidence_term", "bound")],
        rtol=1e-10,
    )
    # A student that is half as confident as the teacher on one example, and wrong on another.
    result = analysis.margin_bound(kernel, SOFT, predictions=[0.75, -0.125, -0.1, -0.5], margin=0.25)
    assert result.margin_loss == pytest.approx((0 + 0.5 + 1 + 0) / 4)


def test_margin_bound_of_several_outputs():
    inner, y = X @ X.T, TEACHERS["teacher_tau1_centred"]
    result = analysis.margin_bound(np.kron(inner, np.eye(3)), y, margin=0.5)
    quadratic = GOLDEN["multiclass"]["teacher_tau1_centred"]["quad"]
    ball = max(1, math.ceil(math.sqrt(quadratic)))
    assert result.complexity == pytest.approx(4 * ball / (0.5 * 4) * math.sqrt(96))
    ordered = np.sort(y, axis=1)
    assert result.margin_loss == pytest.approx(np.clip(1 - (ordered[:, 2] - ordered[:, 1]) / 0.5, 0, 1).mean())
    np.testing.assert_allclose(analysis.margin_bound(inner, y, margin=0.5), result)


@pytest.mark.parametrize("columns", [None, 3])
def test_leave_one_out_matches_regression_on_other_examples(columns):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(9, 20))
    kernel, y = x @ x.T, generator.normal(size=(9, columns) if columns else 9)
    result = analysis.leave_one_out(kernel, y, ridge=0.1)
    assert result.shape == y.shape
    added = 0.1 * np.trace(kernel) / 9
    for i in range(9):
        others = np.delete(np.arange(9), i)
        inner = kernel[np.ix_(others, others)] + added * np.eye(8)
        np.testing.assert_allclose(result[i], kernel[i, others] @ np.linalg.solve(inner, y[others]), rtol=1e-8)


def test_ntk_similarity_matches_golden_values():
    case = GOLDEN["ntk_similarity"]
    student, teacher = np.asarray(GOLDEN["binary"]["K"]), np.asarray(case["K_teacher"])
    assert analysis.ntk_similarity(student, teacher) == pytest.approx(case["cosine"], rel=1e-10)
    assert analysis.ntk_similarity(student, teacher, centered=True) == pytest.approx(case["centred_cosine"], rel=1e-10)
    assert analysis.ntk_similarity(student, 5 * student, centered=True) == pytest.approx(1.0)


def test_targets_of_each_kind():
    logits = np.array([[0.0, math.log(3.0)], [2.0, 2.0]])
    np.testing.assert_allclose(analysis.targets(logits), [[-0.25, 0.25], [0, 0]], atol=1e-12)
    single = logits[:, 1:] - logits[:, :1]
    np.testing.assert_allclose(analysis.targets(single), [0.5, 0.0], atol=1e-12)
    np.testing.assert_allclose(analysis.targets(single, temperature=2.0), [math.tanh(math.log(3) / 4), 0.0], atol=1e-12)
    np.testing.assert_allclose(analysis.targets(logits, "logit_centered", 2.0)[0], np.array([-1, 1]) * math.log(3) / 4)
    np.testing.assert_allclose(analysis.targets(logits, "raw", 2.0), logits / 2)
    np.testing.assert_array_equal(analysis.targets(logits, "pm1"), [1.0, -1.0])
    np.testing.assert_array_equal(analysis.targets(np.array([0, 1, 1]), "pm1"), [-1.0, 1.0, 1.0])


def test_supervision_complexity_of_keras_model_kernel():
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3, use_bias=False)])
    kernel = analysis.empirical_ntk(model, X.astype("float32"))
    result = analysis.supervision_complexity(kernel, TEACHERS["teacher_tau1_centred"])
    assert result.adjusted == pytest.approx(GOLDEN["multiclass"]["teacher_tau1_centred"]["adjusted"], rel=1e-6)


KERNEL = np.asarray(GOLDEN["binary"]["K"])
BAD = {
    "no square": (lambda: analysis.supervision_complexity(KERNEL[:3], SIGNS), "must be a square matrix"),
    "not symmetric": (lambda: analysis.supervision_complexity(np.triu(KERNEL), SIGNS), "must be symmetric"),
    "not positive": (lambda: analysis.supervision_complexity(np.diag([1.0, -1]), [1, 1]), "eigenvalue -1"),
    "NaN kernel": (lambda: analysis.random_labels(KERNEL * np.nan), "Received: 16 of 16 are not"),
    "other length": (lambda: analysis.supervision_complexity(KERNEL, np.ones(3)), "Received: "),
    "NaN targets": (
        lambda: analysis.supervision_complexity(KERNEL, [1, np.nan, 1, np.inf]),
        "`targets` must be finite. Received: 2 of 4",
    ),
    "ridge": (
        lambda: analysis.supervision_complexity(KERNEL, SIGNS, ridge=-1.0),
        "Received: ridge=-1.0",
    ),
    "kind": (lambda: analysis.targets(TEACHER, "log"), "Received: kind='log'"),
    "temperature": (
        lambda: analysis.targets(TEACHER, temperature=0.0),
        "must be a positive number. Received: temperature=0",
    ),
    "NaN logits": (lambda: analysis.targets([[1, np.nan]]), "`logits` must be finite. Received: 1 of 2"),
    "signs of three": (lambda: analysis.targets(TEACHER, "pm1"), "must be of two classes .*Received: 3"),
    "labels": (lambda: analysis.targets(np.array([0, 7]), "pm1"), "Labels must be 0 or 1"),
    "margin": (lambda: analysis.margin_bound(KERNEL, SOFT, margin=0.0), "positive number. Received: margin=0.0"),
    "other networks": (lambda: analysis.ntk_similarity(KERNEL, np.eye(3)), "of the same examples"),
    "constant": (lambda: analysis.ntk_similarity(np.ones((2, 2)), np.eye(2), centered=True), "must be nonzero"),
    "full": (lambda: analysis.leave_one_out(np.eye(8), np.ones((4, 2))), "with outputs='trace' or 'sum'"),
    "singular": (lambda: analysis.leave_one_out(np.ones((3, 3)), np.ones(3), ridge=0.0), "is singular with ridge=0.0"),
}


@pytest.mark.parametrize("case", BAD)
def test_supervision_complexity_refuses_invalid_input(case):
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call()
