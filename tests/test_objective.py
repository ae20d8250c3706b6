"""The objective of a step: which teacher counts regularization samples, and that WSL's weights are computed once."""

import keras
import numpy as np
import pytest

from keras_wsl import Distiller, losses, regularization_samples, weighting
from tests.common import examples, hard_loss, network
from tests.test_distiller import logits, plain

pytestmark = pytest.mark.eager


def _distiller(distillation_losses, **settings):
    teachers = {"large": network("large", width=13), "small": network("small", width=11)}
    distiller = Distiller(teachers, plain("student"), distillation_losses, **settings)
    distiller.compile(keras.optimizers.SGD(0.0), hard_loss())
    return distiller


def _count(labels, student_logits, teacher_logits, temperature):
    mask = regularization_samples.mask(labels, *(np.float32(z) for z in (student_logits, teacher_logits)), temperature)
    return int(keras.ops.convert_to_numpy(mask).sum())


def test_objective_counts_with_the_given_teacher_and_temperature():
    x, y = examples(300)
    several = [losses.KD(teacher="large", temperature=4.0), losses.KD(teacher="small", name="second")]
    by_default = _distiller(several)
    student, large = (logits(model, x) for model in (by_default.student, by_default.teacher["large"]))
    found = by_default.train_on_batch(x, y, return_dict=True)["regularization_samples"]
    assert found == _count(y, student, large, 4.0)

    keras.utils.set_random_seed(0)
    chosen = _distiller([losses.KD(teacher="large")], regularization_teacher="small", regularization_temperature=1.0)
    student, small, large = (
        logits(model, x) for model in (chosen.student, chosen.teacher["small"], chosen.teacher["large"])
    )
    expected = _count(y, student, large, 4.0)
    # No loss uses the small teacher: it runs for the counts alone.
    found = chosen.train_on_batch(x, y, return_dict=True)["regularization_samples"]
    assert found == _count(y, student, small, 1.0) != expected


def test_objective_computes_wsl_weights_once(monkeypatch):
    calls = []
    wsl = weighting.wsl
    monkeypatch.setattr(weighting, "wsl", lambda *args: calls.append(args) or wsl(*args))
    x, y = examples(8)
    distiller = _distiller([losses.WSL(teacher="large"), losses.KD(teacher="large", weighting="wsl", name="second")])
    distiller.train_on_batch(x, y)
    assert len(calls) == 1


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"regularization_teacher": "huge"}, r"`regularization_teacher` names the teachers \['huge'\]"),
        ({"regularization_teacher": 3}, "`regularization_teacher` must be a teacher's name"),
        ({"regularization_temperature": 0.0}, "`regularization_temperature` must be a positive number"),
    ],
)
def test_distiller_refuses_an_invalid_criterion(settings, message):
    with pytest.raises(ValueError, match=message):
        _distiller("wsl", **settings)


def test_distiller_keeps_the_criterion_in_its_config(tmp_path):
    settings = {"regularization_teacher": {"large": 2.0, "small": 1.0}, "regularization_temperature": 2.0}
    _distiller("wsl", **settings).save(tmp_path / "distiller.keras")
    loaded = keras.saving.load_model(tmp_path / "distiller.keras")
    assert {name: getattr(loaded, name) for name in settings} == settings and loaded.temperature == 2.0


def test_distiller_keeps_teacher_and_objective_if_another_teacher_is_refused():
    distiller = _distiller([losses.KD(teacher="large")])
    teachers, objective = distiller.teachers, distiller.objective
    with pytest.raises(ValueError, match="same classes"):
        distiller.teacher = {"large": network("large", classes=7)}
    assert distiller.teachers is teachers and distiller.objective is objective


def test_distiller_refuses_to_count_with_a_teacher_of_other_classes():
    teachers = {"large": network("large"), "wide": network("wide", classes=7)}
    with pytest.raises(ValueError, match="`regularization_teacher` must have the classes of the student"):
        Distiller(teachers, plain("student"), losses.KD(teacher="large"), regularization_teacher="wide")


class _Subclass(Distiller):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)


def test_get_config_of_a_subclass_has_the_arguments_of_the_distiller():
    distiller = _Subclass(None, plain("student"), student_loss_weight=0.5)
    assert distiller.get_config()["student_loss_weight"] == 0.5
