"""Decomposition into noise, bias and variance: closed forms, random ensembles and invalid input."""

import math

import numpy as np
import pytest

from keras_wsl.analysis.bias_variance import TERMS, bias_variance, compare, intervals, standard_errors


def _log_softmax(z):
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def _ensemble(runs=4, count=20, classes=6, scale=2.0, seed=0):
    return _log_softmax(np.random.default_rng(seed).normal(0, scale, (runs, count, classes)))


def _labels(kind, count=20, classes=6, seed=1):
    generator = np.random.default_rng(seed)
    if kind == "integers":
        return generator.integers(0, classes, count)
    if kind == "one-hot":
        return np.eye(classes)[generator.integers(0, classes, count)]
    return generator.dirichlet(np.full(classes, 0.3), count)


def test_bias_variance_matches_hand_computed_example():
    # p = (0.9, 0.1) and (0.5, 0.5): geometric means sqrt(0.45) and sqrt(0.05), with the ratio 3 to 1.
    result = bias_variance(np.array([0]), np.log([[[0.9, 0.1]], [[0.5, 0.5]]]))
    assert result.error[0] == pytest.approx(-0.5 * math.log(0.45), abs=1e-14)
    assert result.noise[0] == 0
    assert result.bias[0] == pytest.approx(-math.log(0.75), abs=1e-14)
    divergence = [0.75 * math.log(0.75 / p) + 0.25 * math.log(0.25 / (1 - p)) for p in (0.9, 0.5)]
    assert result.variance[0] == pytest.approx(sum(divergence) / 2, abs=1e-14)
    assert result.runs == 2


def test_bias_variance_noise_is_label_entropy():
    y = np.array([[0.25, 0.75, 0.0], [1.0, 0.0, 0.0]])
    result = bias_variance(y, _ensemble(count=2, classes=3))
    expected = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    np.testing.assert_allclose(result.noise, [expected, 0], atol=1e-15)


@pytest.mark.parametrize("kind", ["integers", "one-hot", "distributions"])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 30.0, 3000.0])
def test_bias_variance_terms_sum_to_error(kind, scale):
    log_probs, y = _ensemble(scale=scale), _labels(kind)
    result = bias_variance(y, log_probs)
    bound = 1e-10 * max(1.0, scale / 100)  # Of numbers in the thousands, float64 has fewer places.
    np.testing.assert_allclose(result.error, result.noise + result.bias + result.variance, rtol=0, atol=bound)
    totals = result.totals
    assert totals["error"] == pytest.approx(sum(totals[name] for name in TERMS[1:]), abs=bound)
    # The error is the mean cross-entropy. Heskes's variance is -log of the normalizer of the mean.
    plain = y if kind != "integers" else np.eye(6)[y]
    np.testing.assert_allclose(result.error, -(plain * log_probs).sum(-1).mean(0), rtol=1e-10, atol=1e-12)
    normalizer = np.log(np.exp(log_probs.mean(0)).sum(-1)) if scale < 100 else None
    if normalizer is not None:
        np.testing.assert_allclose(result.variance, -normalizer, rtol=1e-9, atol=1e-13)
    assert all((getattr(result, name) >= -1e-12).all() for name in TERMS)


def test_bias_variance_accepts_one_hot_labels():
    log_probs, y = _ensemble(), _labels("integers")
    one, other = bias_variance(y, log_probs), bias_variance(np.eye(6)[y], log_probs)
    for name in TERMS:
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=1e-12)


def test_bias_variance_is_zero_for_equal_runs_and_exact_labels():
    run, y = _ensemble(runs=1)[0], _labels("distributions")
    result = bias_variance(y, [run, run, run])
    np.testing.assert_allclose(result.variance, 0, atol=1e-14)
    np.testing.assert_allclose(bias_variance(np.exp(run), [run, run]).bias, 0, atol=1e-12)


def test_bias_variance_is_accurate_for_float32():
    log_probs, y = _ensemble(scale=20.0), _labels("integers")
    result, exact = bias_variance(y, log_probs.astype("float32")), bias_variance(y, log_probs)
    np.testing.assert_allclose(result.error, result.bias + result.variance, atol=1e-10)
    np.testing.assert_allclose(result.error, exact.error, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda p: p[:1], "at least 2 runs. Received: 1"),
        (lambda p: [p[0], p[1], p[2][:-1]], r"shape \(19, 6\) for run 2"),
        (lambda p: [p[0, 0], p[1, 0]], r"\(examples, classes\).* for run 0"),
        (lambda p: np.where(np.arange(4)[:, None, None] == 2, -np.inf, p), "-inf for class 0 of example 0 in run 2"),
        (lambda p: np.where(p == p.min(), np.nan, p), "Received: nan for class"),
        (lambda p: p + 0.01, r"sum to exp\(0.01\)"),
        (np.exp, "log_softmax of logits"),
        (lambda p: p.astype("float16"), "at least in float32"),
    ],
)
def test_bias_variance_refuses_invalid_log_probs(change, message):
    with pytest.raises(ValueError, match=message):
        bias_variance(_labels("integers"), change(_ensemble(scale=8.0)))


@pytest.mark.parametrize(
    "labels, message",
    [
        (np.full(20, 6), r"in \[0, 6\).*Received: 6 in row 0"),
        (np.append(np.zeros(19, int), -1), "Received: -1 in row 19; 1 of 20"),
        (np.zeros(20), "must be integers .* Received: float64"),
        (np.zeros(19, int), r"shape \(19,\) do not fit .* Expected integers of shape \(20,\)"),
        (np.zeros((20, 5)), r"do not fit logits"),
        (np.full((20, 6), 0.2), "a sum of 1.2"),
        (np.eye(6)[np.zeros(20, int)] * 2 - 1 / 6, "a minimum of -0.166667"),
    ],
)
def test_bias_variance_refuses_invalid_labels(labels, message):
    with pytest.raises(ValueError, match=message):
        bias_variance(labels, _ensemble())


def test_compare_is_paired_over_examples():
    y = _labels("integers")
    # Half the logits: less confident, and closer to each other.
    labels_only, distilled = bias_variance(y, _ensemble()), bias_variance(y, _log_softmax(0.5 * _ensemble()))
    result = compare(labels_only=labels_only, distilled=distilled, num_resamples=500)
    assert result["variance"].mean == pytest.approx((distilled.variance - labels_only.variance).mean(), abs=1e-14)
    assert result["variance"].high < 0 and result["noise"] == (0, 0, 0)
    assert result == compare(labels_only=labels_only, distilled=distilled, num_resamples=500)
    assert result["variance"].low <= result["variance"].mean <= result["variance"].high
    with pytest.raises(ValueError, match="of 20 and 19 examples"):
        compare(labels_only=labels_only, distilled=bias_variance(y[1:], _ensemble()[:, 1:]))


def test_intervals_match_normal_approximation():
    values = np.random.default_rng(5).normal(3.0, 2.0, (2000, 1))
    ((mean, low, high),) = intervals(values, num_resamples=4000)
    error = values.std(ddof=1) / math.sqrt(2000)
    assert mean == values.mean()
    assert (low - mean) / error == pytest.approx(-1.96, abs=0.12)
    assert (high - mean) / error == pytest.approx(1.96, abs=0.12)
    narrow = intervals(values, num_resamples=4000, confidence=0.5)[0]
    assert (narrow.high - mean) / error == pytest.approx(0.674, abs=0.08)
    for bad in ({"num_resamples": 0}, {"confidence": 1.0}):
        with pytest.raises(ValueError, match="must be at least 1 and `confidence` in"):
            intervals(values, **bad)


def test_standard_errors_match_closed_form_for_a_mean():
    # The error is a mean over the runs, so the jackknife is exactly std / sqrt(n).
    one, other, y = _ensemble(runs=6), _ensemble(runs=6, seed=3), _labels("integers")
    result = standard_errors(y, labels_only=one, distilled=other)
    rows = [-(p[:, np.arange(20), y]).mean(-1) for p in (one, other)]
    assert result["error"] == pytest.approx((rows[1] - rows[0]).std(ddof=1) / math.sqrt(6))
    assert result["noise"] == 0 and result["variance"] > 0
    assert standard_errors(y, labels_only=one, distilled=one) == dict.fromkeys(TERMS, 0)
    with pytest.raises(ValueError, match="ensembles of 6 and 5 runs"):
        standard_errors(y, labels_only=one, distilled=other[:5])
    with pytest.raises(ValueError, match="at least 3"):
        standard_errors(y, labels_only=one[:2], distilled=other[:2])


def test_compare_and_standard_errors_refuse_positional_ensembles():
    log_probs, y = _ensemble(), _labels("integers")
    with pytest.raises(TypeError, match="positional"):
        compare(bias_variance(y, log_probs), bias_variance(y, log_probs))
    with pytest.raises(TypeError, match="positional"):
        standard_errors(y, log_probs, log_probs)
