"""Fidelity against golden values, SciPy and the losses' own divergence."""

import keras
import numpy as np
import pytest
from scipy import special, stats

from keras_wsl import ops
from keras_wsl.analysis.calibration import calibration
from keras_wsl.analysis.fidelity import fidelity
from tests.common import golden

GOLDEN = golden("fidelity")
LOGITS = {name: GOLDEN["inputs"][name] for name in ("student_logits", "teacher_logits")}
LABELS = GOLDEN["inputs"]["labels"]


def _random(count=50, classes=6, seed=0):
    return np.random.default_rng(seed).normal(size=(2, count, classes)) * 2


def test_fidelity_matches_golden_values():
    result = fidelity(**LOGITS)
    assert result["top1_agreement"] == GOLDEN["fidelity"]["top1_agreement"]
    assert result["mean_total_variation"] == pytest.approx(GOLDEN["fidelity"]["mean_total_variation"], rel=1e-12)
    assert result["mean_overlap"] == pytest.approx(1 - GOLDEN["fidelity"]["mean_total_variation"], rel=1e-12)
    assert set(result) == {"top1_agreement", "mean_total_variation", "mean_overlap", "kl"}
    for temperature, expected in GOLDEN["kl"].items():
        assert fidelity(**LOGITS, temperature=float(temperature))["kl"] == pytest.approx(expected, rel=1e-12)
    assert calibration(LABELS, LOGITS["student_logits"])["nll"] == pytest.approx(GOLDEN["hard_ce"], rel=1e-12)


def test_fidelity_splits_agreement_by_teacher_correctness():
    # The golden teacher classifies all four correctly; with another label for row 1, three.
    assert fidelity(LABELS, **LOGITS)["agreement_teacher_wrong"] is None
    result = fidelity([0, 1, 1, 0], **LOGITS)
    assert result["teacher_accuracy"] == 0.75
    assert result["agreement_teacher_correct"] == pytest.approx(2 / 3)
    assert result["agreement_teacher_wrong"] == 1
    wrong = fidelity([1, 0, 0, 1], **LOGITS)
    assert wrong["agreement_teacher_correct"] is None and wrong["agreement_teacher_wrong"] == 0.75


@pytest.mark.parametrize("temperature", [0.5, 1, 4])
def test_fidelity_matches_scipy(temperature):
    teacher, student = _random()
    p, q = (special.softmax(logits / temperature, axis=-1) for logits in (teacher, student))
    result = fidelity(student_logits=student, teacher_logits=teacher, temperature=temperature)
    assert result["kl"] == pytest.approx(np.mean([stats.entropy(*rows) for rows in zip(p, q)]), rel=1e-10)
    assert result["mean_overlap"] == pytest.approx(np.minimum(p, q).sum(-1).mean(), rel=1e-12)
    rows = keras.ops.convert_to_numpy(
        ops.kl_divergence(*(keras.ops.cast(x / temperature, "float32") for x in (teacher, student)))
    )
    assert result["kl"] == pytest.approx(rows.mean(), rel=1e-5)


def test_fidelity_of_equal_and_opposite_networks():
    teacher, _ = _random()
    same = fidelity(np.zeros(50, int), student_logits=teacher + 3.0, teacher_logits=teacher)
    assert same["top1_agreement"] == 1 and same["mean_overlap"] == pytest.approx(1)
    assert [same["kl"], same["mean_total_variation"]] == pytest.approx([0, 0], abs=1e-12)
    # Certain of different classes: no overlap, and a divergence equal to the gap of the logits, not clipped to 16.
    far = fidelity(student_logits=[[0.0, 400.0]], teacher_logits=[[400.0, 0.0]])
    assert (far["top1_agreement"], far["mean_total_variation"]) == (0, 1) and far["kl"] == pytest.approx(400)


@pytest.mark.parametrize(
    "teacher, student, settings, message",
    [
        ([[0.0, 2.0]], [[0.0, 2.0, 1.0]], {}, r"\(1, 3\) and \(1, 2\)"),
        ([[0.0, 2.0]], [[0.0, 2.0]] * 2, {}, r"\(2, 2\) and \(1, 2\)"),
        ([[0.0, 2.0]], [[0.0, np.nan]], {}, "`student_logits` must be finite"),
        ([[np.inf, 2.0]], [[0.0, 3.0]], {}, "`teacher_logits` must be finite"),
        (np.zeros((0, 2)), np.zeros((0, 2)), {}, r"one example.*\(0, 2\)"),
        ([[0.5, 0.5]], [[0.0, 2.0]], {}, "`teacher_logits` must be logits"),
        ([[0.0, 2.0]], [[0.0, 2.0]], {"labels": [2]}, r"in \[0, 2\)"),
        ([[0.0, 2.0]], [[0.0, 2.0]], {"labels": [0, 1]}, r"shape \(1,\)"),
        ([[0.0, 2.0]], [[0.0, 2.0]], {"temperature": 0.0}, "positive number"),
    ],
)
def test_fidelity_refuses_invalid_input(teacher, student, settings, message):
    with pytest.raises(ValueError, match=message):
        fidelity(student_logits=student, teacher_logits=teacher, **settings)


def test_fidelity_refuses_positional_logits():
    with pytest.raises(TypeError, match="positional"):
        fidelity(LABELS, LOGITS["student_logits"], LOGITS["teacher_logits"])
    with pytest.raises(TypeError, match="positional"):
        fidelity(LOGITS["teacher_logits"], LOGITS["student_logits"])
