"""Shares of regularization samples against examples worked out by hand, and against the mask of the training step."""

import keras
import numpy as np
import pytest

from keras_wsl import regularization_samples
from keras_wsl.analysis.regularization_sample_rates import regularization_sample_rates


def _logits(*of_first_class):
    """Of two classes, so that the first one has these probabilities."""
    p = np.array(of_first_class)
    return np.log(np.stack([p, 1 - p], axis=-1))


def test_the_two_kinds_and_the_teachers_right_and_wrong():
    # Label 0, temperature 1: a = q - 1, a + b = q - p. Held back where q > p; nothing is pulled twice as hard, q - p
    # being more than 2 (q - 1) whatever p is.
    teacher, student = _logits(0.9, 0.6, 0.2, 0.3), _logits(0.8, 0.7, 0.6, 0.1)
    assert regularization_sample_rates(teacher, student, [0, 0, 0, 0], 1.0) == {
        "regularization_sample_rate": 0.5,
        "regularization_rate_student_above_teacher": 0.5,
        "regularization_rate_teacher_correct": 0.5,
        "regularization_rate_teacher_wrong": 0.5,
    }
    # Temperature 4, teacher surer than a sure student: 4 (q^4 - p^4) = -0.31, twice the label's pull is -0.02.
    surer = regularization_sample_rates(_logits(0.999), _logits(0.99), [[0]], 4.0)
    assert surer == {
        "regularization_sample_rate": 1.0,
        "regularization_rate_student_above_teacher": 0.0,
        "regularization_rate_teacher_correct": 1.0,
        "regularization_rate_teacher_wrong": None,
    }


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_as_the_training_step_counts(temperature):
    generator = np.random.default_rng(0)
    teacher, student = generator.normal(size=(2, 400, 6)).astype("float32") * 3
    labels = np.where(generator.random(400) < 0.6, student.argmax(-1), generator.integers(0, 6, 400))
    mask = keras.ops.convert_to_numpy(regularization_samples.mask(labels, student, teacher, temperature))
    found = regularization_sample_rates(teacher, student, labels, temperature)
    right = teacher.argmax(-1) == labels
    assert 0.1 < found["regularization_sample_rate"] == mask.mean() < 1
    assert found["regularization_rate_teacher_correct"] == mask[right].mean()
    assert found["regularization_rate_teacher_wrong"] == mask[~right].mean()
    p, q = (np.exp(z / temperature) for z in (teacher, student))
    p, q = ((z / z.sum(-1, keepdims=True))[np.arange(400), labels] for z in (p, q))
    assert found["regularization_rate_student_above_teacher"] == (mask & (q > p)).mean()
    assert temperature == 1 or found["regularization_rate_student_above_teacher"] < found["regularization_sample_rate"]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"labels": [0, 2]}, "must be in \\[0, 2\\)"),
        ({"temperature": 0.0}, "temperature"),
        ({"student_logits": _logits(0.5)}, "the same examples and classes"),
        ({"teacher_logits": np.full((2, 2), 0.5)}, "must be logits"),
    ],
)
def test_bad_input(changes, message):
    given = {"teacher_logits": _logits(0.5, 0.6), "student_logits": _logits(0.4, 0.9), "labels": [0, 1]}
    with pytest.raises(ValueError, match=message):
        regularization_sample_rates(**{**given, "temperature": 4.0, **changes})
