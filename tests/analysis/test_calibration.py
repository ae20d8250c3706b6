"""Calibration against closed forms, loops over the bins, and scikit-learn."""

import math

import numpy as np
import pytest
from sklearn import metrics

from keras_wsl.analysis.calibration import calibration, fit_temperature


def _binary(confidences):
    """Return logits of two classes, the first of which has these probabilities."""
    p = np.asarray(confidences, "float64")
    return np.stack([np.log(p / (1 - p)), np.zeros(len(p))], axis=-1)


def _random(count=200, classes=7, scale=2.0, seed=0):
    generator = np.random.default_rng(seed)
    return generator.integers(0, classes, count), scale * generator.normal(size=(count, classes))


def _softmax(logits):
    p = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return p / p.sum(axis=-1, keepdims=True)


def test_calibration_matches_hand_counted_bins():
    # Five bins: 0.55 in (0.4, 0.6], 0.7 and 0.75 in (0.6, 0.8], 0.9 in (0.8, 1]; correct, correct, wrong, correct.
    result = calibration([0, 0, 1, 0], _binary([0.55, 0.7, 0.75, 0.9]), bins=5)
    table = result["reliability"]
    np.testing.assert_allclose(table["edges"], [0, 0.2, 0.4, 0.6, 0.8, 1])
    np.testing.assert_array_equal(table["count"], [0, 0, 1, 2, 1])
    np.testing.assert_allclose(table["confidence"], [np.nan, np.nan, 0.55, 0.725, 0.9])
    np.testing.assert_allclose(table["accuracy"], [np.nan, np.nan, 1, 0.5, 1])
    assert result["ece"] == pytest.approx((0.45 + 2 * 0.225 + 0.1) / 4)
    assert result["accuracy"] == 0.75 and result["mean_confidence"] == pytest.approx(2.9 / 4)
    assert result["nll"] == pytest.approx(-sum(map(math.log, (0.55, 0.7, 0.25, 0.9))) / 4)
    assert result["brier"] == pytest.approx(2 * (0.45**2 + 0.3**2 + 0.75**2 + 0.1**2) / 4)


def test_adaptive_ece_has_bins_of_equal_count():
    # Two bins of three examples: gaps |1/3 - 0.65| and |1 - 0.9|.
    confidences = [0.6, 0.65, 0.7, 0.85, 0.9, 0.95]
    result = calibration([1, 0, 1, 0, 0, 0], _binary(confidences), bins=2)
    assert result["adaptive_ece"] == pytest.approx(((0.65 - 1 / 3) + 0.1) / 2)
    # All six are in the bin (0.5, 1], in which the errors cancel.
    assert result["ece"] == pytest.approx(abs(4 / 6 - np.mean(confidences)))


def test_calibration_matches_reference_loops():
    labels, logits = _random()
    p = _softmax(logits)
    confidence, right = p.max(-1), p.argmax(-1) == labels
    for bins in (1, 10, 15):
        result = calibration(labels, logits, bins)
        equal_width = 0.0
        for m in range(1, bins + 1):
            inside = ((m - 1) / bins < confidence) & (confidence <= m / bins)
            if inside.any():
                equal_width += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
        groups = np.array_split(np.argsort(confidence), bins)
        equal_mass = sum(len(g) / len(p) * abs(right[g].mean() - confidence[g].mean()) for g in groups)
        assert result["ece"] == pytest.approx(equal_width, abs=1e-12)
        assert result["adaptive_ece"] == pytest.approx(equal_mass, abs=1e-12)
    assert calibration(labels, logits, 1)["ece"] == pytest.approx(abs(right.mean() - confidence.mean()))
    assert result["nll"] == pytest.approx(metrics.log_loss(labels, p, labels=np.arange(7)))
    assert result["brier"] == pytest.approx(np.mean(np.sum((p - np.eye(7)[labels]) ** 2, axis=-1)))


def test_calibration_detects_overconfidence():
    generator = np.random.default_rng(3)
    logits = 2 * generator.normal(size=(20_000, 4))
    labels = (generator.random((20_000, 1)) > np.cumsum(_softmax(logits), axis=-1)).sum(axis=-1)
    honest, loud = calibration(labels, logits), calibration(labels, 3 * logits)
    # Bins of about a thousand examples: the standard deviation of a fraction is about 0.01.
    assert honest["ece"] < 0.02 and honest["adaptive_ece"] < 0.02
    assert loud["ece"] > 0.15 and loud["accuracy"] == honest["accuracy"] and loud["nll"] > honest["nll"]
    assert fit_temperature(labels, logits) == pytest.approx(1, abs=0.03)
    assert fit_temperature(labels, 3 * logits) == pytest.approx(3 * fit_temperature(labels, logits), rel=1e-10)


def test_calibration_is_invariant_to_order_and_shift():
    labels, logits = _random(30, 3)
    logits = np.concatenate([logits, np.tile(logits[:1], (20, 1))])  # Twenty of one confidence, right and wrong.
    labels = np.concatenate([labels, np.arange(20) % 3])
    first = calibration(labels, logits)
    order = np.random.default_rng(1).permutation(50)
    for other in (calibration(labels[order], logits[order]), calibration(labels, logits + 700)):
        assert {name: other[name] for name in first if name != "reliability"} == pytest.approx(
            {name: first[name] for name in first if name != "reliability"}, abs=1e-10
        )


def test_calibration_of_confidences_on_bin_edges():
    on_edge = calibration([0, 1], _binary([0.5, 0.5]), bins=4)["reliability"]
    np.testing.assert_array_equal(on_edge["count"], [0, 2, 0, 0])
    certain = calibration([0, 1, 2], np.diag([1000.0] * 3)[:, [0, 2, 1]])
    assert certain["mean_confidence"] == 1 and certain["reliability"]["count"][-1] == 3
    assert certain["accuracy"] == 1 / 3 and certain["ece"] == pytest.approx(2 / 3)
    assert certain["nll"] == pytest.approx(2000 / 3) and certain["brier"] == pytest.approx(4 / 3)


def test_calibration_with_more_bins_than_examples():
    result = calibration(*_random(3, 4), bins=100)
    p = _softmax(_random(3, 4)[1])
    right = p.argmax(-1) == _random(3, 4)[0]
    assert result["adaptive_ece"] == pytest.approx(np.abs(right - p.max(-1)).mean())


def test_fit_temperature_matches_closed_form_for_two_classes():
    # Margin 5, three quarters correct: sigmoid(5 / T) = 3/4, T = 5 / log 3.
    logits = np.tile([5.0, 0.0], (8, 1))
    labels = [0, 0, 0, 0, 0, 0, 1, 1]
    assert fit_temperature(labels, logits) == pytest.approx(5 / math.log(3), rel=1e-12)
    assert fit_temperature(labels, 1e-3 * logits + 40) == pytest.approx(5e-3 / math.log(3), rel=1e-9)
    cooled = calibration(labels, logits / fit_temperature(labels, logits))
    assert cooled["ece"] == pytest.approx(0, abs=1e-12)


def test_fit_temperature_maximizes_likelihood():
    generator = np.random.default_rng(5)
    logits = 4 * generator.normal(size=(300, 6))
    labels = np.where(generator.random(300) < 0.6, logits.argmax(-1), generator.integers(0, 6, 300))
    best = fit_temperature(labels, logits)
    nll = [calibration(labels, logits / t)["nll"] for t in (0.999 * best, best, 1.001 * best)]
    assert nll[1] < min(nll[0], nll[2])


@pytest.mark.parametrize(
    "labels, logits, message",
    [
        ([0, 1], [[0.0, 1.0], [0.0, math.nan]], "`logits` must be finite. .*1 of 2 rows.* is row 1"),
        ([0, 1], [[math.inf, 1.0], [0.0, 1.0]], "first is row 0"),
        ([0, 1, 1], [[0.0, 2.0], [0.0, 1.5]], r"integers of shape \(2,\).*shape \(3,\)"),
        ([0.0, 1.0], [[0.0, 2.0], [0.0, 1.5]], "float64.*argmax"),
        ([[1, 0], [0, 1]], [[0.0, 2.0], [0.0, 1.5]], r"of shape \(2, 2\)"),
        ([0, 2], [[0.0, 2.0], [0.0, 1.5]], r"in \[0, 2\).*Received: 2 in row 1; 1 of 2"),
        ([-1, 0], [[0.0, 2.0], [0.0, 1.5]], "Received: -1 in row 0"),
        ([], np.zeros((0, 3)), r"one example.*shape \(0, 3\)"),
        ([0], [[1.5]], "two classes"),
        ([0], [1.0, 2.0], r"shape \(2,\)"),
        ([0, 1], [[0.25, 0.75], [0.5, 0.5]], "must be logits.*before the softmax"),
    ],
)
@pytest.mark.parametrize("function", [calibration, fit_temperature])
def test_calibration_refuses_invalid_input(function, labels, logits, message):
    with pytest.raises(ValueError, match=message):
        function(labels, logits)


@pytest.mark.parametrize("bins", [0, -3, 2.5, True, "15"])
def test_calibration_refuses_invalid_bins(bins):
    with pytest.raises(ValueError, match="`bins` must be a positive integer"):
        calibration([0], [[1.0, 2.0]], bins)


@pytest.mark.parametrize(
    "labels, logits, message",
    [
        ([0, 1], [[2.0, 0.0], [0.0, 1.5]], "optimal temperature is 0"),
        ([0, 1], [[3.0, 3.0], [3.0, 3.0]], "optimal temperature is 0"),
        ([1, 0], [[2.0, 0.0], [0.0, 1.5]], "optimal temperature is infinite"),
    ],
)
def test_fit_temperature_refuses_data_without_optimum(labels, logits, message):
    with pytest.raises(ValueError, match=message):
        fit_temperature(labels, logits)
