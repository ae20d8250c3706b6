"""Rates of regularization samples against hand-computed examples, and against the mask of the training step."""

import keras
import numpy as np
import pytest

from keras_wsl import regularization_samples
from keras_wsl.analysis.regularization_sample_rates import regularization_sample_rates


def _logits(*first_class_probabilities):
    """Return logits of two classes with these probabilities of the first class."""
    p = np.array(first_class_probabilities)
    return np.log(np.stack([p, 1 - p], axis=-1))


def test_regularization_sample_rates_by_kind_and_teacher_correctness():
    # Label 0, temperature 1: a = q - 1, a + b = q - p. Lowered if q > p. The second kind does not occur, because q - p
    # is more than 2 (q - 1) for all p.
    teacher, student = _logits(0.9, 0.6, 0.2, 0.3), _logits(0.8, 0.7, 0.6, 0.1)
    assert regularization_sample_rates(
        [0, 0, 0, 0], student_logits=student, teacher_logits=teacher, temperature=1.0
    ) == {
        "regularization_sample_rate": 0.5,
        "regularization_rate_student_above_teacher": 0.5,
        "regularization_rate_teacher_correct": 0.5,
        "regularization_rate_teacher_wrong": 0.5,
    }
    # Temperature 4, teacher and student confident: 4 (q^4 - p^4) = -0.31, twice the label's gradient is -0.02.
    confident = {"student_logits": _logits(0.99), "teacher_logits": _logits(0.999)}
    assert regularization_sample_rates([[0]], **confident, temperature=4.0) == {
        "regularization_sample_rate": 1.0,
        "regularization_rate_student_above_teacher": 0.0,
        "regularization_rate_teacher_correct": 1.0,
        "regularization_rate_teacher_wrong": None,
    }


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_regularization_sample_rates_match_training_mask(temperature):
    generator = np.random.default_rng(0)
    teacher, student = generator.normal(size=(2, 400, 6)).astype("float32") * 3
    labels = np.where(generator.random(400) < 0.6, student.argmax(-1), generator.integers(0, 6, 400))
    mask = keras.ops.convert_to_numpy(regularization_samples.mask(labels, student, teacher, temperature))
    result = regularization_sample_rates(
        labels, student_logits=student, teacher_logits=teacher, temperature=temperature
    )
    correct = teacher.argmax(-1) == labels
    assert 0.1 < result["regularization_sample_rate"] == mask.mean() < 1
    assert result["regularization_rate_teacher_correct"] == mask[correct].mean()
    assert result["regularization_rate_teacher_wrong"] == mask[~correct].mean()
    p, q = (np.exp(z / temperature) for z in (teacher, student))
    p, q = ((z / z.sum(-1, keepdims=True))[np.arange(400), labels] for z in (p, q))
    assert result["regularization_rate_student_above_teacher"] == (mask & (q > p)).mean()
    assert (
        temperature == 1 or result["regularization_rate_student_above_teacher"] < result["regularization_sample_rate"]
    )


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"labels": [0, 2]}, "must be in \\[0, 2\\)"),
        ({"temperature": 0.0}, "temperature"),
        ({"student_logits": _logits(0.5)}, "the same examples and classes"),
        ({"teacher_logits": np.full((2, 2), 0.5)}, "must be logits"),
    ],
)
def test_regularization_sample_rates_refuses_invalid_input(changes, message):
    arguments = {"teacher_logits": _logits(0.5, 0.6), "student_logits": _logits(0.4, 0.9), "labels": [0, 1]}
    with pytest.raises(ValueError, match=message):
        regularization_sample_rates(**{**arguments, "temperature": 4.0, **changes})


def test_regularization_sample_rates_refuses_positional_logits():
    with pytest.raises(TypeError, match="positional"):
        regularization_sample_rates([0, 1], _logits(0.4, 0.9), _logits(0.5, 0.6), 4.0)
