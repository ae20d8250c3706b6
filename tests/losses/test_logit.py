"""KD and WSL against the values of the original code, closed forms and invariants."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_wsl import losses, weighting
from tests.common import golden, gradient

CASES = golden("logits")["cases"]


def _case(name):
    case = CASES[name]
    return (
        np.array(case["labels"], "int32"),
        np.array(case["logits_s"], "float32"),
        np.array(case["logits_t"], "float32"),
        case["out"],
    )


def _call(loss, labels, student, teacher):
    return loss(ops.convert_to_tensor(labels), {"logits": student}, {"logits": teacher})


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("temperature", [1, 2, 4, 6])
def test_kd_matches_reference(case, temperature):
    labels, student, teacher, out = _case(case)
    expected = out["kd"][f"tau={temperature}"]
    for objective, key in (("kl", "kl_per_sample_x_tau2"), ("cross_entropy", "ce_per_sample_x_tau2")):
        loss = losses.KD(temperature=temperature, objective=objective)
        rows = ops.convert_to_numpy(_call(loss, labels, student, teacher))
        np.testing.assert_allclose(rows, expected[key], rtol=1e-5, atol=1e-5)
        slope = gradient(lambda z, loss=loss: ops.mean(_call(loss, labels, z, teacher)), student)
        np.testing.assert_allclose(slope, expected["grad_student_logits_of_kl_batchmean_x_tau2"], atol=1e-5)
    rows = ops.convert_to_numpy(_call(losses.KD(temperature=temperature), labels, student, teacher))
    np.testing.assert_allclose(rows.mean(), expected["kl_batchmean_x_tau2"], rtol=1e-5)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("temperature, alpha", [(4, 2.25), (2, 2.5), (1, 1)])
def test_wsl_matches_reference(case, temperature, alpha):
    labels, student, teacher, out = _case(case)
    expected = out["wsl"][f"tau={temperature},alpha={alpha}"]
    hard = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def total(z, objective):
        loss = losses.WSL(temperature=temperature, weight=alpha, objective=objective)
        return hard(labels, z) + loss.weight * ops.mean(_call(loss, labels, z, teacher))

    np.testing.assert_allclose(float(total(student, "cross_entropy")), expected["total"], rtol=1e-5)
    soft = float(total(student, "kl")) - float(hard(labels, student))
    np.testing.assert_allclose(soft, alpha * expected["soft_kl_form"], atol=1e-5)
    for objective in ("kl", "cross_entropy"):
        slope = gradient(lambda z, objective=objective: total(z, objective), student)
        np.testing.assert_allclose(slope, expected["grad_student_logits_of_total"], atol=1e-5)


def test_wsl_weight_has_no_gradient():
    labels, student, teacher, out = _case("A")
    wrong = np.array(out["wsl"]["WRONG_grad_without_stop_gradient_tau4_alpha2.25"])
    right = np.array(out["wsl"]["tau=4,alpha=2.25"]["grad_student_logits_of_total"])
    hard = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    loss = losses.WSL()
    slope = gradient(lambda z: hard(labels, z) + loss.weight * ops.mean(_call(loss, labels, z, teacher)), student)
    assert np.abs(slope - right).max() < 1e-5 < np.abs(wrong - right).max()


def test_wsl_matches_kd_with_its_weighting():
    labels, student, teacher, _ = _case("B")
    rows = _call(losses.WSL(temperature=3.0), labels, student, teacher)
    same = _call(losses.KD(temperature=3.0, weighting="wsl"), labels, student, teacher)
    by_function = _call(losses.KD(temperature=3.0, weighting=weighting.wsl), labels, student, teacher)
    np.testing.assert_array_equal(ops.convert_to_numpy(rows), ops.convert_to_numpy(same))
    np.testing.assert_array_equal(ops.convert_to_numpy(rows), ops.convert_to_numpy(by_function))


def test_weighting_may_be_a_registered_function():
    @keras.saving.register_keras_serializable("tests")
    def halves(labels, student_logits, teacher_logits):
        return 0.5 * ops.ones_like(student_logits[..., 0])

    labels, student, teacher, _ = _case("A")
    loss = losses.KD(weighting=halves)
    twin = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    full = ops.convert_to_numpy(_call(losses.KD(), labels, student, teacher))
    np.testing.assert_allclose(ops.convert_to_numpy(_call(twin, labels, student, teacher)), full / 2, rtol=1e-6)
