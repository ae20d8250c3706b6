"""What Keras cannot do under a strategy is refused before the first step, and strategies go by name."""

import keras
import pytest

from keras_wsl import Distiller, distribute, losses
from tests.common import examples, hard_loss, network

pytestmark = pytest.mark.tensorflow


def _compiled(optimizer=None, **settings):
    with distribute.scope("mirrored"):
        distiller = Distiller(network("teacher", width=11), network("student"), losses.WSL())
        distiller.compile(optimizer or keras.optimizers.SGD(0.1), hard_loss(), **settings)
    return distiller


@pytest.mark.parametrize(
    "optimizer, settings, message",
    [
        ({}, {"steps_per_execution": 2}, "steps_per_execution=2 does not work under MirroredStrategy in Keras"),
        ({"gradient_accumulation_steps": 2}, {}, "gradient_accumulation_steps does not work under MirroredStrategy"),
        ({"use_ema": True, "ema_overwrite_frequency": 3}, {}, "ema_overwrite_frequency does not work under Mirrored"),
    ],
)
def test_what_fails_in_keras_is_refused(optimizer, settings, message):
    with distribute.scope("mirrored"):
        optimizer = keras.optimizers.SGD(0.1, **optimizer)
    distiller = _compiled(optimizer, **settings)
    before = distiller.student.get_weights()
    with pytest.raises(ValueError, match=message):
        distiller.fit(*examples(), verbose=0)
    assert all((a == b).all() for a, b in zip(before, distiller.student.get_weights()))


def test_xla_is_refused(monkeypatch):
    distiller = _compiled()
    monkeypatch.setattr(Distiller, "jit_compile", True)  # Keras drops it where operations are deterministic.
    with pytest.raises(ValueError, match="jit_compile=True does not work under MirroredStrategy"):
        distiller.fit(*examples(), verbose=0)


def test_an_average_of_weights_that_overwrites_nothing_is_none_of_it():
    with distribute.scope("mirrored"):
        optimizer = keras.optimizers.SGD(0.1, use_ema=True)
    _compiled(optimizer).fit(*examples(), verbose=0)


def test_a_strategy_is_made_once():
    assert distribute.strategy("mirrored") is distribute.strategy("mirrored")
    assert distribute.strategy() is None


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="There is no strategy 'magic'. Expected one of .*'multi_worker', 'tpu'"):
        distribute.scope("magic")
