"""Weightings and regularization samples against golden values and closed forms."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_wsl import regularization_samples, weighting
from tests.common import golden, gradient

CASES = golden("logits")["cases"]


def _case(name):
    case = CASES[name]
    inputs = [np.array(case["labels"], "int32"), *(np.array(case[k], "float32") for k in ("logits_s", "logits_t"))]
    return inputs, case["out"]


def _numpy(values):
    return ops.convert_to_numpy(values)


@pytest.mark.parametrize("case", CASES)
def test_wsl_matches_golden_values(case):
    inputs, out = _case(case)
    np.testing.assert_allclose(_numpy(weighting.wsl(*inputs)), out["wsl"]["weight"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        _numpy(weighting.wsl_sigmoid(*inputs)), out["wsl"]["weight_sigmoid_variant_A4"], rtol=1e-5
    )


@pytest.mark.parametrize("case", CASES)
def test_other_weightings_match_golden_values(case):
    inputs, out = _case(case)
    formula = out["formula"]
    np.testing.assert_array_equal(_numpy(weighting.teacher_correct(*inputs)), formula["teacher_correct_mask"])
    for beta, key in ((0, "adl_weight_gamma2_beta0_tau1"), (1, "adl_weight_gamma2_beta1_tau1_kl_only")):
        np.testing.assert_allclose(
            _numpy(weighting.hard_to_mimic(*inputs, beta=beta)), formula[key], rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("temperature", [1, 2, 4, 6])
def test_bias_variance_gradients_and_mask_match_golden_values(case, temperature):
    inputs, out = _case(case)
    expected = out["regularization"][f"tau={temperature}"]
    a, b = regularization_samples.bias_variance_gradients(*inputs, temperature)
    np.testing.assert_allclose(_numpy(a), expected["a"], atol=1e-6)
    np.testing.assert_allclose(_numpy(b), expected["b"], atol=2e-6)
    mask = _numpy(regularization_samples.mask(*inputs, temperature))
    np.testing.assert_array_equal(mask, expected["mask_abs_b_gt_abs_a"])
    assert mask.sum() == expected["count"]


def test_bias_variance_gradients_are_derivatives_of_the_losses():
    (labels, student, teacher), _ = _case("B")
    temperature = 3.0

    def hard(z):
        return -ops.sum(ops.take_along_axis(ops.log_softmax(z), labels[:, None], axis=1))

    def soft(z):
        p, log_q = ops.softmax(teacher / temperature), ops.log_softmax(z / temperature)
        return -(temperature**2) * ops.sum(p * log_q)

    rows = np.arange(len(labels))
    a, b = regularization_samples.bias_variance_gradients(labels, student, teacher, temperature)
    slope = gradient(hard, student)[rows, labels]
    np.testing.assert_allclose(_numpy(a), slope, atol=1e-5)
    np.testing.assert_allclose(_numpy(b), gradient(soft, student)[rows, labels] - slope, atol=1e-5)


def test_mask_at_temperature_one_compares_probabilities_of_the_label():
    generator = np.random.default_rng(0)
    student, teacher = generator.normal(size=(2, 500, 7)).astype("float32")
    labels = generator.integers(0, 7, 500)
    rows = np.arange(500)
    expected = _numpy(ops.softmax(student))[rows, labels] > _numpy(ops.softmax(teacher))[rows, labels]
    np.testing.assert_array_equal(_numpy(regularization_samples.mask(labels, student, teacher, 1.0)), expected)


def test_mask_is_false_for_equal_magnitudes():
    # Uniform networks of two classes: a = -1/2 and b = 1/2, exactly.
    zeros = np.zeros((1, 2), "float32")
    a, b = regularization_samples.bias_variance_gradients(np.array([0]), zeros, zeros, 1.0)
    assert float(a[0]) == -float(b[0])
    assert not bool(regularization_samples.mask(np.array([0]), zeros, zeros, 1.0)[0])


def test_one_hot_labels_match_integers():
    (labels, student, teacher), _ = _case("B")
    one_hot = np.eye(student.shape[1], dtype="float32")[labels]
    for function in (weighting.wsl, weighting.wsl_sigmoid, weighting.teacher_correct, weighting.hard_to_mimic):
        same = _numpy(function(one_hot, student, teacher))
        np.testing.assert_allclose(_numpy(function(labels, student, teacher)), same, rtol=1e-4)
    for actual, expected in zip(
        regularization_samples.bias_variance_gradients(labels, student, teacher, 4.0),
        regularization_samples.bias_variance_gradients(one_hot, student, teacher, 4.0),
    ):
        np.testing.assert_allclose(_numpy(actual), _numpy(expected), atol=1e-6)


def test_wsl_of_mixed_labels_matches_closed_form():
    (labels, student, teacher), _ = _case("B")
    other = (labels + 1) % student.shape[1]
    eye = np.eye(student.shape[1], dtype="float32")
    log_s, log_t = (_numpy(ops.log_softmax(z)) for z in (student, teacher))
    rows = np.arange(len(labels))
    ratio = (0.7 * log_s[rows, labels] + 0.3 * log_s[rows, other]) / (
        0.7 * log_t[rows, labels] + 0.3 * log_t[rows, other]
    )
    mixed = weighting.wsl(0.7 * eye[labels] + 0.3 * eye[other], student, teacher)
    np.testing.assert_allclose(_numpy(mixed), 1 - np.exp(-ratio), rtol=1e-5, atol=1e-6)


def test_wsl_of_saturated_networks_is_finite():
    certain, wrong = np.array([[200.0, 0]], "float32"), np.array([[0, 200.0]], "float32")
    label = np.array([0])
    assert float(weighting.wsl(label, certain, certain)[0]) == 0  # The student fits the label exactly.
    assert float(weighting.wsl(label, wrong, certain)[0]) == 1  # Only the teacher does.
    assert float(weighting.wsl(label, certain, wrong)[0]) == 0
    half = weighting.wsl(label, certain.astype("float16"), certain.astype("float16"))
    assert np.isfinite(_numpy(half)).all()


def test_get_multiplies_weightings_of_a_list():
    inputs, _ = _case("B")
    both = weighting.get(["wsl", {"name": "exclude_regularization_samples"}, lambda *_: 0.5], temperature=4.0)
    expected = (
        _numpy(weighting.wsl(*inputs)) * _numpy(weighting.exclude_regularization_samples(*inputs, temperature=4.0)) / 2
    )
    assert 0 < np.count_nonzero(expected) < len(expected)
    np.testing.assert_allclose(_numpy(both(*inputs)), expected, rtol=1e-6)
    stochastic = {"name": "only_regularization_samples", "keep_probability": 0.5}
    assert weighting.is_stochastic(["wsl", stochastic]) and weighting.is_stochastic(stochastic)
    assert not weighting.is_stochastic(["wsl", "wsl_sigmoid"])


@pytest.mark.parametrize("name", ["exclude_regularization_samples", "only_regularization_samples"])
def test_keep_probability_keeps_a_random_part(name):
    generator = np.random.default_rng(0)
    student, teacher = generator.normal(size=(2, 20000, 5)).astype("float32")
    labels = generator.integers(0, 5, 20000)
    mask = _numpy(regularization_samples.mask(labels, student, teacher, 4.0))
    dropped = mask if name == "exclude_regularization_samples" else ~mask
    none = _numpy(weighting.get(name, temperature=4.0)(labels, student, teacher))
    np.testing.assert_array_equal(none, ~dropped)
    weighting_fn = weighting.get(
        {"name": name, "keep_probability": 0.25}, temperature=4.0, seed=keras.random.SeedGenerator(0)
    )
    some = _numpy(weighting_fn(labels, student, teacher))
    assert (some[~dropped] == 1).all()
    # 4 standard deviations of a binomial mean.
    assert abs(some[dropped].mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / dropped.sum())
    assert (some != _numpy(weighting_fn(labels, student, teacher))).any()


@pytest.mark.parametrize("name", ["wsl", "wsl_sigmoid", "hard_to_mimic"])
def test_weightings_have_no_gradient(name):
    (labels, student, teacher), _ = _case("A")
    weighting_fn = weighting.get(name)
    slope = gradient(lambda z: ops.sum(weighting_fn(labels, z, teacher)) + ops.sum(z), student)
    np.testing.assert_array_equal(slope, np.ones_like(student))


def test_get_raises_for_bad_arguments():
    with pytest.raises(ValueError, match="needs a temperature"):
        weighting.get("exclude_regularization_samples")
    with pytest.raises(ValueError, match="`keep_probability` must be"):
        weighting.get({"name": "exclude_regularization_samples", "temperature": 4.0, "keep_probability": 1.5})
    with pytest.raises(ValueError, match=r"Labels of shape \(4, 3\) do not fit logits of shape \(4, 5\)"):
        weighting.wsl(np.zeros((4, 3), "float32"), *_case("A")[0][1:])
