"""SupervisionComplexity: its values match the analysis of the student, and it does not affect training."""

import csv

import keras
import numpy as np
import pytest

from keras_wsl import Distiller, analysis, callbacks, losses
from tests.common import arrays, examples, hard_loss, network

X, Y = examples(24)
SIGNS = np.eye(5)[Y[:8]] - 0.2


def make_distiller():
    keras.utils.set_random_seed(3)
    distiller = Distiller(network("teacher", width=12), network("student"), losses.KD(temperature=4.0))
    distiller.compile(keras.optimizers.SGD(0.1), hard_loss())
    return distiller


def fit(distiller, *observers, **settings):
    return distiller.fit(
        X, Y, **{"batch_size": 8, "epochs": 2, "shuffle": False, "verbose": 0, **settings}, callbacks=[*observers]
    ).history


def rows(folder):
    with open(folder / "supervision_complexity.csv", newline="") as file:
        return list(csv.DictReader(file))


def expected(student, targets):
    return analysis.supervision_complexity(analysis.empirical_ntk(student, X[:8], "trace"), targets)


def test_supervision_complexity_matches_analysis_per_epoch(tmp_path):
    distiller = make_distiller()
    before = expected(distiller.student, SIGNS)

    def teacher_targets(model):
        return analysis.targets(keras.ops.convert_to_numpy(model.teacher(X[:8], training=False)))

    observer = callbacks.SupervisionComplexity(tmp_path, X[:8], {"labels": SIGNS, "teacher": teacher_targets})
    history = fit(distiller, observer)
    result = rows(tmp_path)
    assert [row["epoch"] for row in result] == ["0", "1", "2"]
    after = expected(distiller.student, SIGNS)
    for row, complexity in ((result[0], before), (result[2], after)):
        assert float(row["complexity_labels"]) == pytest.approx(complexity.adjusted, rel=1e-4)
        assert float(row["trace"]) == pytest.approx(complexity.trace, rel=1e-4)
        assert float(row["smallest_relative"]) == pytest.approx(complexity.smallest_relative, rel=1e-2)
    assert history["complexity_labels"] == pytest.approx([float(row["complexity_labels"]) for row in result[1:]])
    teacher = expected(distiller.student, teacher_targets(distiller)).adjusted
    assert history["complexity_teacher"][-1] == pytest.approx(teacher, rel=1e-4)
    assert any(tmp_path.glob("events.*"))


def test_supervision_complexity_does_not_affect_training_and_resumes(tmp_path):
    plain, observed = make_distiller(), make_distiller()
    fit(plain, epochs=3)
    observer = callbacks.SupervisionComplexity(tmp_path, X[:8], {"labels": SIGNS}, outputs="sum")
    history = fit(observed, observer, epochs=3)
    for a, b in zip(arrays(plain.student), arrays(observed.student)):
        np.testing.assert_array_equal(a, b)
    assert len(history["complexity_labels"]) == 3
    again = callbacks.SupervisionComplexity(tmp_path, X[:8], {"labels": SIGNS}, outputs="sum")
    fit(observed, again, epochs=3, initial_epoch=2)
    assert [row["epoch"] for row in rows(tmp_path)] == ["0", "1", "2", "3"]


def test_supervision_complexity_every_second_epoch_of_a_keras_model(tmp_path):
    model = network("student")
    model.compile("sgd", hard_loss())
    fit(model, callbacks.SupervisionComplexity(tmp_path, X[:8], {"labels": SIGNS}, every_epochs=2), epochs=4)
    assert [row["epoch"] for row in rows(tmp_path)] == ["0", "2", "4"]


def test_supervision_complexity_refuses_invalid_input(tmp_path):
    for arguments, message in (
        (dict(targets={}), "must be a dict of names to targets"),
        (dict(targets={"a": SIGNS}, every_epochs=0), "`every_epochs` must be a positive integer"),
        (dict(targets={"a": SIGNS}, outputs="full"), "must be 'trace' or 'sum'.*Received: outputs='full'"),
    ):
        with pytest.raises(ValueError, match=message):
            callbacks.SupervisionComplexity(tmp_path, X[:8], **arguments)
    with pytest.raises(ValueError, match="`targets` must have shape"):
        fit(make_distiller(), callbacks.SupervisionComplexity(tmp_path, X[:7], {"labels": SIGNS}))
