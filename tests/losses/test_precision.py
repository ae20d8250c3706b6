"""Losses, weights and counts of certain networks, high temperatures and shifted logits against 60 decimal digits."""

import decimal
import functools
from decimal import Decimal

import numpy as np
import pytest
from keras import ops

from keras_wsl import analysis, losses, regularization_samples, top_k_logits, weighting
from keras_wsl.ops import binary_kl_divergence, cross_entropy, kl_divergence, log_mean_softmax, standardize
from tests.common import gradient

LOGIT_LOSSES = sorted(name for name in losses.REGISTRY if issubclass(losses.REGISTRY[name], losses.LogitsLoss))
LOGIT_LOSSES.append("tf_kd_reg")
# Losses that sum over the batch: the value of one example may be negative.
SUMS_OVER_BATCH = {"dist", "mlkd"}
KINDS = ("integer", "one_hot", "smoothed", "mixed")
CLASSES = (2, 3, 10, 100, 1000)
MARGINS = (2, 5, 10, 20, 30, 40, 60)
kinds, class_counts = pytest.mark.parametrize("kind", KINDS), pytest.mark.parametrize("classes", CLASSES)

_decimals, _exp, _ln = (np.frompyfunc(f, 1, 1) for f in (lambda x: Decimal(float(x)), Decimal.exp, Decimal.ln))


@pytest.fixture(autouse=True)
def many_digits():
    """Set the precision of the references."""
    with decimal.localcontext() as context:
        context.prec = 60
        yield


def numpy(values):
    return ops.convert_to_numpy(values)


def probabilities(logits, temperature=1):
    """Softmax by its definition, in decimal digits."""
    exponentials = _exp(_decimals(logits) / Decimal(temperature))
    return exponentials / exponentials.sum(-1, keepdims=True)


def divergence(p, q):
    """KL by its definition, in decimal digits."""
    return (p * (_ln(p) - _ln(q))).sum(-1)


@functools.cache
def adversarial_networks(classes):
    """Logits of networks that are right (label 0) or wrong by `MARGINS`, that tie, and that are uniform."""
    logits = np.random.default_rng(0).integers(-8, 1, (2 * len(MARGINS) + 2, classes)) / 8
    logits[:, :2] = 0
    logits[: len(MARGINS), 0] = logits[len(MARGINS) : -2, 1] = MARGINS
    logits[-2, :2] = 30
    logits[-1] = 0
    return logits.astype("float32")


@functools.cache
def adversarial_probabilities(classes, temperature=1):
    """`probabilities` of these networks, and the logarithms."""
    p = probabilities(adversarial_networks(classes), temperature)
    return p, _ln(p)


def all_pairs(classes):
    """Student and teacher: the numbers of each adversarial network with each other one, and with itself."""
    count = len(adversarial_networks(classes))
    return np.indices((count, count)).reshape(2, -1)


def adversarial_errors(kind, classes):
    """Compute the cross-entropies of the adversarial networks, in decimal digits."""
    y = _decimals(labels_of(kind, classes, 1)[1])
    return -(y * adversarial_probabilities(classes)[1]).sum(-1)


@functools.cache
def adversarial_divergences(classes, temperature):
    """KL of `all_pairs`, in decimal digits."""
    (student, teacher), (p, log_p) = all_pairs(classes), adversarial_probabilities(classes, temperature)
    return (p[teacher] * (log_p[teacher] - log_p[student])).sum(-1)


def labels_of(kind, classes, count):
    """`(labels, distributions)`: the labels as a user passes them, and the same as distributions."""
    one_hot = np.zeros((count, classes), "float32")
    one_hot[:, 0] = 1
    if kind == "integer":
        return np.zeros(count, "int32"), one_hot
    if kind == "smoothed":
        one_hot = np.float32(0.9) * one_hot + np.float32(0.1 / classes)
    if kind == "mixed":
        one_hot[:, :2] = 0.75, 0.25
    return one_hot, one_hot


def assert_close_rows(actual, expected, rtol, atol=1e-35):
    """Assert that rows of vectors differ by at most `rtol` of the largest entry of their row."""
    expected = expected.astype("float64")
    size = np.abs(expected).max(-1, keepdims=True)
    assert (np.abs(actual - expected) <= rtol * size + atol).all(), np.abs(actual - expected).max()


# Certain networks.


@kinds
@class_counts
def test_cross_entropy_keeps_its_digits(kind, classes):
    logits, q = adversarial_networks(classes), adversarial_probabilities(classes)[0]
    labels, y = labels_of(kind, classes, len(logits))
    errors = numpy(cross_entropy(labels, logits))
    np.testing.assert_allclose(errors, adversarial_errors(kind, classes).astype("float64"), rtol=1e-6)
    slopes = gradient(lambda z: ops.sum(cross_entropy(labels, z)), logits)
    y = _decimals(y)
    assert_close_rows(slopes, y.sum(-1, keepdims=True) * q - y, rtol=2e-6)
    if kind == "one_hot":
        np.testing.assert_array_equal(errors, numpy(cross_entropy(labels.argmax(-1), logits)))


@kinds
@class_counts
def test_wsl_weights_keep_their_digits(kind, classes):
    student, teacher = all_pairs(classes)
    errors, logits = adversarial_errors(kind, classes), adversarial_networks(classes)
    inputs = labels_of(kind, classes, len(student))[0], logits[student], logits[teacher]
    falls = _exp(-errors[student] / (errors[teacher] + Decimal("1e-7")))
    np.testing.assert_allclose(numpy(weighting.wsl(*inputs)), (1 - falls).astype("float64"), rtol=3e-6)
    expected = (2 / (1 + falls) - 1).astype("float64")
    np.testing.assert_allclose(numpy(weighting.wsl_sigmoid(*inputs)), expected, rtol=3e-6)


@kinds
@class_counts
@pytest.mark.parametrize("temperature", [1, 4])
def test_mask_of_certain_networks_matches_references(kind, classes, temperature):
    (student, teacher), logits = all_pairs(classes), adversarial_networks(classes)
    y = _decimals(labels_of(kind, classes, 1)[1])
    a = (y * (adversarial_probabilities(classes)[0] - y)).sum(-1)[student]
    at_label = (y * adversarial_probabilities(classes, temperature)[0]).sum(-1)
    d = temperature * (at_label[student] - at_label[teacher])
    b = d - a
    inputs = labels_of(kind, classes, len(student))[0], logits[student], logits[teacher], temperature
    actual = [numpy(values).astype("float64") for values in regularization_samples.bias_variance_gradients(*inputs)]
    # For other distributions, a and d are sums whose terms may cancel.
    rounding = 0 if kind in ("integer", "one_hot") else 1e-7
    np.testing.assert_allclose(actual[0], a.astype("float64"), rtol=1e-6, atol=rounding)
    size = np.maximum(np.abs(a), np.abs(d)).astype("float64")
    assert (np.abs(actual[1] - b.astype("float64")) <= 4e-6 * size + 4 * rounding).all()
    # Compare only where rounding errors cannot decide which of the two is larger.
    clear = np.abs(np.abs(b) - np.abs(a)).astype("float64") > 10 * rounding
    mask = numpy(regularization_samples.mask(*inputs))
    np.testing.assert_array_equal(mask[clear], (np.abs(b) > np.abs(a))[clear])
    assert clear.sum() > len(clear) / 2 and 0 < mask.sum() < len(mask)


@kinds
@pytest.mark.parametrize("classes", [2, 10, 100])
@pytest.mark.parametrize("temperature", [1, 4])
def test_wsl_and_its_gradient_keep_their_digits(kind, classes, temperature):
    (student, teacher), logits = all_pairs(classes), adversarial_networks(classes)
    errors, p = adversarial_errors(kind, classes), adversarial_probabilities(classes, temperature)[0]
    weights = 1 - _exp(-errors[student] / (errors[teacher] + Decimal("1e-7")))
    labels, loss = labels_of(kind, classes, len(student))[0], losses.WSL(temperature=temperature)

    def rows(student_logits):
        return loss(ops.convert_to_tensor(labels), {"logits": student_logits}, {"logits": logits[teacher]})

    expected = temperature**2 * weights * adversarial_divergences(classes, temperature)
    np.testing.assert_allclose(numpy(rows(logits[student])), expected.astype("float64"), rtol=1e-5, atol=1e-35)
    slopes = gradient(lambda z: ops.sum(rows(z)), logits[student])
    assert_close_rows(slopes, temperature * weights[:, None] * (p[student] - p[teacher]), rtol=1e-5)


# Divergences.


def decoupled(logits, labels, temperature):
    """The two distributions of DKD, in decimal digits: `[y, rest]`, and of the rest; and which entries are the rest."""
    p = probabilities(logits, temperature)
    is_rest = np.arange(logits.shape[1]) != labels[:, None]
    rest = p[is_rest].reshape(len(p), -1)
    mass = rest.sum(-1, keepdims=True)
    return np.concatenate([p[~is_rest][:, None], mass], axis=1), rest / mass, is_rest


@pytest.mark.parametrize("classes", [3, 10, 100])
@pytest.mark.parametrize("temperature", [0.5, 4.0, 100.0])
def test_kd_and_dkd_of_shifted_logits_match_references(classes, temperature):
    generator = np.random.default_rng(classes)
    student, teacher = (generator.integers(-40, 41, (2, 16, classes)) / 8).astype("float32")
    student[-1] = teacher[-1]
    labels = generator.integers(0, classes, 16).astype("int32")
    square, shift = Decimal(temperature) ** 2, np.float32(1e4)
    p, q = probabilities(teacher, temperature), probabilities(student, temperature)
    (p_label, p_rest, is_rest), (q_label, q_rest, _) = (decoupled(z, labels, temperature) for z in (teacher, student))
    target = q_label[:, :1] - p_label[:, :1]
    rest_slope = np.zeros_like(q)
    rest_slope[is_rest] = (8 * (q_rest - p_rest) - target * q_rest).ravel()
    cases = {
        "kd": (divergence(p, q), q - p),
        "dkd": (divergence(p_label, q_label) + 8 * divergence(p_rest, q_rest), np.where(is_rest, rest_slope, target)),
    }
    for name, (value, slope) in cases.items():
        loss = losses.get(name, temperature=temperature)

        def rows(logits, loss=loss):
            return loss(ops.convert_to_tensor(labels), {"logits": logits}, {"logits": teacher - shift})

        actual = numpy(rows(student + shift))
        # DKD's margins, unlike KD's differences, have the rounding of a sum over the classes.
        expected = (square * value).astype("float64")
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-10 * temperature**2)
        assert actual[-1] == 0
        slopes = gradient(lambda z: ops.sum(rows(z)), student + shift)
        assert_close_rows(slopes, Decimal(temperature) * slope, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", sorted(set(LOGIT_LOSSES) - SUMS_OVER_BATCH))
@pytest.mark.parametrize("temperature", [0.5, 4.0, 100.0])
def test_losses_are_not_negative(name, temperature):
    generator = np.random.default_rng(0)
    settings = {"virtual_temperature": temperature} if name == "tf_kd_reg" else {"temperature": temperature}
    teacher = generator.normal(size=(3000, 10)).astype("float32") * 10
    # Students that differ by one rounding error up to 1, and networks that are certain.
    nearly = teacher + generator.normal(size=teacher.shape) * 10 ** generator.uniform(-7, 0, (3000, 1))
    certain = (adversarial_networks(10)[numbers] for numbers in all_pairs(10))
    student, teacher = (np.concatenate(parts) for parts in zip((nearly.astype("float32"), teacher), certain))
    labels = generator.integers(0, 10, len(teacher)).astype("int32")
    rows = numpy(losses.get(name, **settings)(labels, {"logits": student}, {"logits": teacher}))
    assert rows.min() >= 0 and rows.max() > 0


def test_kl_divergence_is_not_negative_if_probabilities_underflow():
    # Around the smallest normal float32, exp(-87.3), hardware may replace p or q by 0, but not both.
    gaps = np.arange(-89, -86, 1 / 64, dtype="float32")
    p, q = (values.reshape(-1, 1) for values in np.meshgrid(gaps, gaps))
    rows = numpy(kl_divergence(*(np.concatenate([np.zeros_like(z), z], axis=1) for z in (p, q))))
    assert rows.min() >= 0
    assert numpy(binary_kl_divergence(p[:, 0], q[:, 0])).min() >= 0


# Shifts.

# Multiples of 1/8 stay exact if these are added.
SHIFTS = [(1e3, -1e4), (-1e5, 1e5)]


def exact_logits(classes=7, count=6):
    generator = np.random.default_rng(0)
    student, teacher = (generator.integers(-60, 61, (2, count, classes)) / 8).astype("float32")
    return generator.integers(0, classes, count).astype("int32"), student, teacher


@pytest.mark.parametrize("name", LOGIT_LOSSES)
@pytest.mark.parametrize("temperature, standardize", [(0.5, False), (100.0, False), (100.0, True)])
def test_losses_ignore_shifts_of_logits(name, temperature, standardize):
    settings = {"temperature": temperature, "standardize": standardize, "weighting": "wsl"}
    if name == "tf_kd_reg":
        settings = {"virtual_temperature": temperature, "weighting": "wsl"}
    if name == "mlkd":
        settings["temperatures"] = [temperature]
    loss, (labels, student, teacher) = losses.get(name, **settings), exact_logits()

    def rows(student, teacher):
        return loss(ops.convert_to_tensor(labels), {"logits": student}, {"logits": ops.convert_to_tensor(teacher)})

    def values_and_slopes(student, teacher):
        return numpy(rows(student, teacher)), gradient(lambda z: ops.sum(rows(z, teacher)), student)

    expected = values_and_slopes(student, teacher)
    for shifts in SHIFTS:
        moved = values_and_slopes(*(z + np.float32(shift) for z, shift in zip((student, teacher), shifts)))
        for actual, same in zip(moved, expected):
            np.testing.assert_array_equal(actual, same)


@pytest.mark.parametrize("kind", ["integer", "smoothed"])
@pytest.mark.parametrize("temperature", [0.5, 100.0])
def test_weights_and_counts_ignore_shifts_of_logits(kind, temperature):
    labels, student, teacher = exact_logits()
    if kind == "smoothed":
        labels = 0.9 * np.eye(7, dtype="float32")[labels] + np.float32(0.1 / 7)

    def everything(student, teacher):
        weights = [weighting.get(name, temperature=temperature) for name in weighting.REGISTRY]
        results = [weigh(labels, student, teacher) for weigh in weights]
        results += regularization_samples.bias_variance_gradients(labels, student, teacher, temperature)
        results.append(standardize(student))
        mean = log_mean_softmax([student, teacher], [0.75, 0.25], temperature)
        is_rest, rest = teacher > teacher[:, :1], {f"{temperature:g}": ops.zeros(len(teacher))}
        partial = top_k_logits.TopKLogits(ops.zeros(teacher.shape), ops.convert_to_tensor(is_rest), rest)
        return [numpy(values) for values in (*results, mean, partial.to_dense(temperature, student))]

    expected = everything(student, teacher)
    for shifts in SHIFTS:
        moved = everything(*(z + np.float32(shift) for z, shift in zip((student, teacher), shifts)))
        for actual, same in zip(moved, expected, strict=True):
            np.testing.assert_array_equal(actual, same)


def test_standardize_keeps_its_digits():
    logits = (np.random.default_rng(0).integers(-8, 9, (20, 100)) / 8).astype("float32")
    exact = logits.astype("float64") - logits.astype("float64").mean(-1, keepdims=True)
    exact = exact / (logits.astype("float64").std(-1, ddof=1, keepdims=True) + 1e-7)
    np.testing.assert_allclose(numpy(standardize(logits + np.float32(1e5))), exact, rtol=1e-5, atol=1e-6)


def test_analyses_ignore_shifts_of_logits():
    labels, student, teacher = exact_logits(count=40)
    labels[::2] = student[::2].argmax(-1)

    def everything(student, teacher):
        pair = {"student_logits": student, "teacher_logits": teacher, "temperature": 100.0}
        found = {**analysis.fidelity(**pair), **analysis.calibration(labels, student)}
        found.pop("reliability")
        found |= analysis.regularization_sample_rates(labels, **pair)
        found["temperature"] = analysis.fit_temperature(labels, student)
        found["class_affinity"] = analysis.class_affinity(labels, **pair)
        return found | {kind: analysis.targets(teacher, kind, 100.0) for kind in ("prob_centered", "logit_centered")}

    expected = everything(student, teacher)
    for shifts in SHIFTS:
        moved = everything(*(z + shift for z, shift in zip((student, teacher), shifts)))
        for name, value in moved.items():
            np.testing.assert_array_equal(value, expected[name], err_msg=name)


def _kl(student, teacher):
    return analysis.fidelity(student_logits=student, teacher_logits=teacher)["kl"]


def test_scores_of_certain_networks_are_not_negative():
    networks, (student, teacher) = adversarial_networks(10), all_pairs(10)
    assert min(_kl(student=networks[[j]], teacher=networks[[i]]) for i, j in zip(teacher, student)) >= 0
    for shift in np.arange(-8, 0) * 2.0**-20:  # Students that nearly agree.
        assert _kl(student=networks + shift * np.arange(10), teacher=networks) > 0
    generator = np.random.default_rng(0)
    for margin in generator.uniform(5, 40, 100):
        assert 0 < analysis.calibration([0], [[margin, 0.0, -1.0]])["brier"] < 1e-3
