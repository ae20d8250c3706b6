"""KD and WSL against the original code's numbers, closed forms and invariants."""

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
def test_kd_is_the_references(case, temperature):
    labels, student, teacher, out = _case(case)
    expected = out["kd"][f"tau={temperature}"]
    for form, key in (("kl", "kl_per_sample_x_tau2"), ("cross_entropy", "ce_per_sample_x_tau2")):
        loss = losses.KD(temperature=temperature, form=form)
        rows = ops.convert_to_numpy(_call(loss, labels, student, teacher))
        np.testing.assert_allclose(rows, expected[key], rtol=1e-5, atol=1e-5)
        slope = gradient(lambda z, loss=loss: ops.mean(_call(loss, labels, z, teacher)), student)
        np.testing.assert_allclose(slope, expected["grad_student_logits_of_kl_batchmean_x_tau2"], atol=1e-5)
    rows = ops.convert_to_numpy(_call(losses.KD(temperature=temperature), labels, student, teacher))
    np.testing.assert_allclose(rows.mean(), expected["kl_batchmean_x_tau2"], rtol=1e-5)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("temperature, alpha", [(4, 2.25), (2, 2.5), (1, 1)])
def test_wsl_is_the_references(case, temperature, alpha):
    labels, student, teacher, out = _case(case)
    expected = out["wsl"][f"tau={temperature},alpha={alpha}"]
    hard = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def total(z, form):
        loss = losses.WSL(temperature=temperature, weight=alpha, form=form)
        return hard(labels, z) + loss.weight * ops.mean(_call(loss, labels, z, teacher))

    np.testing.assert_allclose(float(total(student, "cross_entropy")), expected["total"], rtol=1e-5)
    soft = float(total(student, "kl")) - float(hard(labels, student))
    np.testing.assert_allclose(soft, alpha * expected["soft_kl_form"], atol=1e-5)
    for form in ("kl", "cross_entropy"):
        slope = gradient(lambda z, form=form: total(z, form), student)
        np.testing.assert_allclose(slope, expected["grad_student_logits_of_total"], atol=1e-5)


def test_the_weight_passes_no_gradient():
    labels, student, teacher, out = _case("A")
    wrong = np.array(out["wsl"]["WRONG_grad_without_stop_gradient_tau4_alpha2.25"])
    right = np.array(out["wsl"]["tau=4,alpha=2.25"]["grad_student_logits_of_total"])
    hard = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    loss = losses.WSL()
    slope = gradient(lambda z: hard(labels, z) + loss.weight * ops.mean(_call(loss, labels, z, teacher)), student)
    assert np.abs(slope - right).max() < 1e-5 < np.abs(wrong - right).max()


def test_wsl_is_kd_with_its_weighting():
    labels, student, teacher, _ = _case("B")
    rows = _call(losses.WSL(temperature=3.0), labels, student, teacher)
    same = _call(losses.KD(temperature=3.0, weighting="wsl"), labels, student, teacher)
    by_function = _call(losses.KD(temperature=3.0, weighting=weighting.wsl), labels, student, teacher)
    np.testing.assert_array_equal(ops.convert_to_numpy(rows), ops.convert_to_numpy(same))
    np.testing.assert_array_equal(ops.convert_to_numpy(rows), ops.convert_to_numpy(by_function))


@pytest.mark.parametrize("name", sorted(losses.NAMES))
class TestContract:
    """What every loss on logits keeps."""

    def _rows(self, name, labels, student, teacher, **kwargs):
        return ops.convert_to_numpy(_call(losses.get(name, **kwargs), labels, student, teacher))

    def test_one_float32_an_example(self, name):
        labels, student, teacher, _ = _case("B")
        rows = _call(losses.get(name), labels, student.astype("float16"), teacher.astype("float16"))
        assert tuple(rows.shape) == (len(labels),)
        assert keras.backend.standardize_dtype(rows.dtype) == "float32"

    def test_finite_at_extreme_logits(self, name):
        student = np.array([[400.0, 0, 0], [0, 400, 0], [-400, 0, 0]], "float32")
        labels = np.array([0, 0, 0], "int32")
        for teacher in (student, -student, student[:, ::-1]):
            assert np.isfinite(self._rows(name, labels, student, teacher)).all()
            loss = losses.get(name)
            slope = gradient(lambda z, loss=loss, teacher=teacher: ops.sum(_call(loss, labels, z, teacher)), student)
            assert np.isfinite(slope).all()

    def test_is_exact_where_probabilities_underflow(self, name):
        # KL of (1, ~0) against (~0, 1), a gap of 400 at temperature 4: 100 nats, times 16.
        teacher, student = np.array([[400.0, 0]], "float32"), np.array([[0, 400.0]], "float32")
        rows = self._rows(name, np.array([0], "int32"), student, teacher, temperature=4.0)
        np.testing.assert_allclose(rows, [1600.0], rtol=1e-5)  # The student is wrong: WSL's weight is 1.

    def test_rows_follow_their_examples(self, name):
        labels, student, teacher, _ = _case("B")
        order = np.random.default_rng(0).permutation(len(labels))
        rows = self._rows(name, labels, student, teacher)
        np.testing.assert_allclose(
            rows[order], self._rows(name, labels[order], student[order], teacher[order]), rtol=1e-6
        )

    def test_one_hot_labels_are_labels(self, name):
        labels, student, teacher, _ = _case("B")
        one_hot = np.eye(student.shape[1], dtype="float32")[labels]
        np.testing.assert_allclose(
            self._rows(name, labels, student, teacher), self._rows(name, one_hot, student, teacher), rtol=1e-4
        )

    def test_no_loss_without_a_difference(self, name):
        labels, student, _, _ = _case("B")
        np.testing.assert_allclose(self._rows(name, labels, student, student), 0, atol=1e-5)

    def test_sequences_are_means_over_unmasked_positions(self, name):
        labels, student, teacher, _ = _case("B")
        kept = np.array([[1, 1, 0, 1], [1, 0, 0, 0]], bool)
        rows = self._rows(name, labels, student, teacher).reshape(2, 4)
        student = student.reshape(2, 4, -1)
        student[~kept] = np.inf  # What stands in padding does not matter.
        loss = losses.get(name)
        got = loss(
            ops.convert_to_tensor(labels.reshape(2, 4)),
            {"logits": ops.convert_to_tensor(student)},
            {"logits": ops.convert_to_tensor(teacher.reshape(2, 4, -1))},
            student_mask={"logits": ops.convert_to_tensor(kept)},
        )
        np.testing.assert_allclose(ops.convert_to_numpy(got), (rows * kept).sum(1) / kept.sum(1), rtol=1e-5)

    def test_serialization_round_trip(self, name):
        labels, student, teacher, _ = _case("B")
        spec = {"name": "exclude_regularization", "probability": 0.0}
        for kwargs in ({}, {"weighting": "wsl_sigmoid"}, {"weighting": spec, "name": "other"}):
            loss = losses.get(name, temperature=3.0, weight=7.0, **kwargs)
            twin = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
            assert twin.get_config() == loss.get_config()
            np.testing.assert_array_equal(
                ops.convert_to_numpy(_call(loss, labels, student, teacher)),
                ops.convert_to_numpy(_call(twin, labels, student, teacher)),
            )


def test_a_registered_function_weighs_and_is_saved():
    @keras.saving.register_keras_serializable("tests")
    def halves(labels, student_logits, teacher_logits):
        return 0.5 * ops.ones_like(student_logits[..., 0])

    labels, student, teacher, _ = _case("A")
    loss = losses.KD(weighting=halves)
    twin = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    full = ops.convert_to_numpy(_call(losses.KD(), labels, student, teacher))
    np.testing.assert_allclose(ops.convert_to_numpy(_call(twin, labels, student, teacher)), full / 2, rtol=1e-6)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: losses.get("wls"), r"no distillation loss 'wls'.*'kd', 'wsl'"),
        (lambda: losses.get(losses.KD(), weight=2.0), "finished loss"),
        (lambda: losses.KD(temperature=0.0), "`temperature` must be a positive number"),
        (lambda: losses.KD(temperature=float("nan")), "`temperature` must be a positive number"),
        (lambda: losses.KD(weight=-1.0), "`weight` must be a number that is not negative"),
        (lambda: losses.KD(form="ce"), "`form` must be one of"),
        (lambda: losses.KD(weighting="wls"), "no weighting 'wls'.*'hard_to_mimic'"),
        (lambda: losses.KD(weighting={"name": "wsl", "gamma": 1}), r"'wsl' has no settings \['gamma'\]"),
        (
            lambda: losses.KD().build((None,), {"logits": (None, 10)}, {"logits": (None, 100)}),
            "a student of 10 classes and a teacher of 100",
        ),
    ],
)
def test_misuse_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
