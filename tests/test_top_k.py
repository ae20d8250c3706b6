"""Top-k soft labels: known logits are exact, and the other classes have their mass."""

import keras
import numpy as np
import pytest

from keras_wsl import losses, regularization_samples, top_k_logits, weighting
from keras_wsl.objective import compute_distillation_loss
from keras_wsl.targets import Targets
from tests.common import gradient

LABELS = np.array([3, 0, 5, 1])


def _logits(classes=7):
    logits = np.random.default_rng(0).normal(size=(4, classes)) * 4
    logits[2, LABELS[2]] = logits[2].min() - 2  # This label is not among the highest.
    return logits.astype("float32")


def _softmax(z):
    p = np.exp(z - z.max(axis=-1, keepdims=True))
    return p / p.sum(axis=-1, keepdims=True)


def _partial(logits, k, temperatures=(1.0, 4.0), labels=LABELS):
    rows = top_k_logits.encode(logits, labels, k, temperatures)
    return top_k_logits.expand(
        top_k_logits.decode(rows, temperatures), keras.ops.convert_to_tensor(labels), logits.shape[1]
    )


def _known(logits, k):
    """Return which logits are known: the k highest and that of the label."""
    known = np.zeros(logits.shape, bool)
    np.put_along_axis(known, np.argsort(-logits, axis=1)[:, :k], True, axis=1)
    known[np.arange(4), LABELS] = True
    return known


def _loss(loss, labels, student, teacher):
    """Compute the loss for the logits of one teacher."""
    return compute_distillation_loss(loss, Targets(labels), student, {"teacher": {"logits": teacher}})


@pytest.mark.parametrize("k", [1, 3, 6, 7])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_to_dense_keeps_known_probabilities_and_the_mass_of_the_rest(k, temperature):
    logits = _logits()
    dense = keras.ops.convert_to_numpy(_partial(logits, k).to_dense(temperature))
    p, q = (_softmax(z.astype("float64") / temperature) for z in (logits, dense))
    known = _known(logits, k)
    np.testing.assert_allclose(q[known], p[known], rtol=6e-3)  # float16: 2**-11 of a logit's distance to the highest.
    mass, expected = (np.where(known, 0, probabilities).sum(axis=1) for probabilities in (q, p))
    np.testing.assert_allclose(mass, expected, rtol=6e-3, atol=1e-6)
    for row, rest in zip(q, ~known):
        assert not rest.any() or np.ptp(row[rest]) < 1e-6


def test_to_dense_keeps_the_cross_entropy_of_the_label():
    logits = keras.ops.convert_to_tensor(_logits())
    dense = weighting.cross_entropy(LABELS, logits)
    top = weighting.cross_entropy(LABELS, _partial(_logits(), 6).to_dense(1.0))
    to_numpy = keras.ops.convert_to_numpy
    np.testing.assert_allclose(to_numpy(top), to_numpy(dense), rtol=2e-3)


def test_expand_takes_one_hot_labels():
    logits, one_hot = _logits(), np.eye(7, dtype="float32")[LABELS]
    rows = top_k_logits.decode(top_k_logits.encode(logits, LABELS, 2, (1.0,)), (1.0,))
    actual, expected = (
        top_k_logits.expand(rows, keras.ops.convert_to_tensor(y), 7).to_dense(1.0) for y in (one_hot, LABELS)
    )
    np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, (actual, expected)))


@pytest.mark.parametrize("name", ["kd", "wsl", "dkd"])
def test_losses_use_top_k_logits_at_their_temperature(name):
    logits = _logits()
    student = {"logits": np.random.default_rng(1).normal(size=(4, 7)).astype("float32")}
    loss = losses.get(name, temperature=4.0)
    to_numpy = keras.ops.convert_to_numpy
    dense, top = (to_numpy(_loss(loss, LABELS, student, z)) for z in (logits, _partial(logits, 7)))
    np.testing.assert_allclose(top, dense, rtol=2e-3)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_kd_merges_the_unknown_classes(k):
    logits, student = _logits(), np.random.default_rng(1).normal(size=(4, 7)).astype("float32")
    known = _known(logits, k)
    p, q = (_softmax(z.astype("float64") / 4.0) for z in (logits, student))
    rest_p, rest_q = (np.where(known, 0, probabilities).sum(axis=1) for probabilities in (p, q))
    divergence = np.where(known, p * np.log(p / q), 0).sum(axis=1) + rest_p * np.log(rest_p / rest_q)
    slopes = np.where(known, q - p, q * (1 - rest_p / rest_q)[:, None])  # The other classes are one class.

    loss, labels, teacher = losses.KD(temperature=4.0), keras.ops.convert_to_tensor(LABELS), _partial(logits, k)

    def compute_loss(values):
        return _loss(loss, labels, {"logits": values}, teacher)

    np.testing.assert_allclose(keras.ops.convert_to_numpy(compute_loss(student)), 16 * divergence, rtol=2e-2)
    total = gradient(lambda values: keras.ops.sum(compute_loss(values)), student)
    np.testing.assert_allclose(total, 4 * slopes, atol=4e-3)


def test_weights_and_mask_match_those_of_dense_logits():
    logits, student = _logits(), np.random.default_rng(1).normal(size=(4, 7)).astype("float32")
    partial, to_numpy = _partial(logits, 2), keras.ops.convert_to_numpy
    expected, actual = (weighting.wsl(LABELS, student, z) for z in (logits, partial.to_dense(1.0)))
    np.testing.assert_allclose(to_numpy(actual), to_numpy(expected), rtol=2e-2)
    expected, actual = (regularization_samples.mask(LABELS, student, z, 4.0) for z in (logits, partial.to_dense(4.0)))
    np.testing.assert_array_equal(to_numpy(actual), to_numpy(expected))


def test_other_temperatures_raise():
    with pytest.raises(ValueError, match="must be one of 1, 4. Received: 2"):
        _loss(losses.KD(temperature=2.0), LABELS, {"logits": _logits()}, _partial(_logits(), 3))


def test_row_type_has_wider_integers_for_many_classes():
    assert top_k_logits.row_type(5, 2**16, (1.0,)).itemsize == 5 * 4 + 4 + 4
    assert top_k_logits.row_type(5, 2**16 + 1, (1.0,)).itemsize == 5 * 6 + 4 + 4
