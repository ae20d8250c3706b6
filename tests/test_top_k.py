"""Top-k soft labels: what is kept of a row is exact, and the rest has its mass."""

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
    logits[2, LABELS[2]] = logits[2].min() - 2  # A label that is not among the highest.
    return logits.astype("float32")


def _softmax(z):
    p = np.exp(z - z.max(axis=-1, keepdims=True))
    return p / p.sum(axis=-1, keepdims=True)


def _partial(logits, k, temperatures=(1.0, 4.0), labels=LABELS):
    rows = top_k_logits.encode(logits, labels, k, temperatures)
    return top_k_logits.expand(
        top_k_logits.decode(rows, temperatures), keras.ops.convert_to_tensor(labels), logits.shape[1]
    )


def _loss(loss, labels, student, teacher):
    """The loss as the objective computes it of one teacher's logits."""
    return compute_distillation_loss(loss, Targets(labels), student, {"teacher": {"logits": teacher}})


@pytest.mark.parametrize("k", [1, 3, 6, 7])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_what_is_known_and_the_mass_of_the_rest(k, temperature):
    logits = _logits()
    found = keras.ops.convert_to_numpy(_partial(logits, k).to_dense(temperature))
    p, q = (_softmax(z.astype("float64") / temperature) for z in (logits, found))
    kept = np.zeros(p.shape, bool)
    np.put_along_axis(kept, np.argsort(-logits, axis=1)[:, :k], True, axis=1)
    kept[np.arange(4), LABELS] = True
    np.testing.assert_allclose(q[kept], p[kept], rtol=6e-3)  # float16: 2**-11 of a logit's distance to the highest.
    np.testing.assert_allclose(np.where(kept, 0, q).sum(axis=1), np.where(kept, 0, p).sum(axis=1), rtol=6e-3, atol=1e-6)
    for row, rest in zip(q, ~kept):
        assert not rest.any() or np.ptp(row[rest]) < 1e-6


def test_the_label_is_as_precise_as_float32():
    logits = keras.ops.convert_to_tensor(_logits())
    dense = weighting.cross_entropy(LABELS, logits)
    found = weighting.cross_entropy(LABELS, _partial(_logits(), 6).to_dense(1.0))
    to_numpy = keras.ops.convert_to_numpy
    np.testing.assert_allclose(to_numpy(found), to_numpy(dense), rtol=2e-3)


def test_a_label_that_is_a_distribution_counts_by_its_likeliest_class():
    logits, one_hot = _logits(), np.eye(7, dtype="float32")[LABELS]
    rows = top_k_logits.decode(top_k_logits.encode(logits, LABELS, 2, (1.0,)), (1.0,))
    ones, others = (
        top_k_logits.expand(rows, keras.ops.convert_to_tensor(y), 7).to_dense(1.0) for y in (LABELS, one_hot)
    )
    np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, (ones, others)))


@pytest.mark.parametrize("name", ["kd", "wsl", "dkd"])
def test_losses_hear_it_at_their_temperature(name):
    logits = _logits()
    student = {"logits": np.random.default_rng(1).normal(size=(4, 7)).astype("float32")}
    loss = losses.get(name, temperature=4.0)
    to_numpy = keras.ops.convert_to_numpy
    dense, top = (to_numpy(_loss(loss, LABELS, student, z)) for z in (logits, _partial(logits, 7)))
    np.testing.assert_allclose(top, dense, rtol=2e-3)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_the_divergence_is_of_the_known_classes_and_one_for_all_others(k):
    logits, student = _logits(), np.random.default_rng(1).normal(size=(4, 7)).astype("float32")
    known = np.zeros(logits.shape, bool)
    np.put_along_axis(known, np.argsort(-logits, axis=1)[:, :k], True, axis=1)
    known[np.arange(4), LABELS] = True
    p, q = (_softmax(z.astype("float64") / 4.0) for z in (logits, student))
    rest_p, rest_q = (np.where(known, 0, probabilities).sum(axis=1) for probabilities in (p, q))
    divergence = np.where(known, p * np.log(p / q), 0).sum(axis=1) + rest_p * np.log(rest_p / rest_q)
    pulls = np.where(known, q - p, q * (1 - rest_p / rest_q)[:, None])  # The rest of the student moves as one.

    loss, labels, teacher = losses.KD(temperature=4.0), keras.ops.convert_to_tensor(LABELS), _partial(logits, k)

    def found(values):
        return _loss(loss, labels, {"logits": values}, teacher)

    np.testing.assert_allclose(keras.ops.convert_to_numpy(found(student)), 16 * divergence, rtol=2e-2)
    total = gradient(lambda values: keras.ops.sum(found(values)), student)
    np.testing.assert_allclose(total, 4 * pulls, atol=4e-3)


def test_wsl_weights_and_regularization_samples_of_all_logits():
    logits, student = _logits(), np.random.default_rng(1).normal(size=(4, 7)).astype("float32")
    partial, to_numpy = _partial(logits, 2), keras.ops.convert_to_numpy
    ones, others = (weighting.wsl(LABELS, student, z) for z in (logits, partial.to_dense(1.0)))
    np.testing.assert_allclose(to_numpy(others), to_numpy(ones), rtol=2e-2)
    ones, others = (regularization_samples.mask(LABELS, student, z, 4.0) for z in (logits, partial.to_dense(4.0)))
    np.testing.assert_array_equal(to_numpy(others), to_numpy(ones))


def test_another_temperature_is_refused():
    with pytest.raises(ValueError, match="must be one of those of the top-k soft labels, 1, 4. Received: 2"):
        _loss(losses.KD(temperature=2.0), LABELS, {"logits": _logits()}, _partial(_logits(), 3))


def test_many_classes_have_wider_numbers():
    assert top_k_logits.row_type(5, 2**16, (1.0,)).itemsize == 5 * 4 + 4 + 4
    assert top_k_logits.row_type(5, 2**16 + 1, (1.0,)).itemsize == 5 * 6 + 4 + 4
