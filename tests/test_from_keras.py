"""Coming from `keras.distillation`: the same total, the same weights, and its losses among ours."""

import keras
import numpy as np
import pytest

from keras_wsl import Distiller, losses
from tests.common import arrays, examples, hard_loss, network

pytestmark = pytest.mark.eager


KLD = keras.losses.KLDivergence


def _fit(distiller):
    x, y = examples(48)
    distiller.compile(optimizer=keras.optimizers.SGD(0.1, momentum=0.9), loss=hard_loss())
    history = distiller.fit(x, y, batch_size=16, epochs=2, shuffle=False, verbose=0).history
    return arrays(distiller.student), history


def _keras(*distillation, weights=None, share=0.3):
    keras.utils.set_random_seed(5)
    teacher, student = network("teacher", 16), network("student")
    return keras.distillation.Distiller(
        teacher, student, list(distillation), distillation_loss_weights=weights, student_loss_weight=share
    )


def test_logits_distillation_trains_the_same_weights():
    loss = keras.distillation.LogitsDistillation(temperature=3.0, loss=KLD())
    theirs, expected = _fit(_keras(loss))
    ours, history = _fit(Distiller.from_keras(_keras(loss)))
    for one, other in zip(theirs, ours):
        np.testing.assert_allclose(one, other, atol=1e-5)
    np.testing.assert_allclose(history["loss"], expected["loss"], rtol=1e-5)
    np.testing.assert_allclose(history["student_loss"], expected["student_loss"], rtol=1e-5)


def test_two_losses_of_a_kind_with_weights():
    pair = [keras.distillation.LogitsDistillation(temperature=t, loss=KLD()) for t in (2.0, 5.0)]
    theirs, _ = _fit(_keras(*pair, weights=[2.0, 0.5]))
    distiller = Distiller.from_keras(_keras(*pair, weights=[2.0, 0.5]))
    assert [loss.name for loss in distiller.distillation_losses] == ["kd_0", "kd_1"]
    assert [loss.weight for loss in distiller.distillation_losses] == pytest.approx([1.4, 0.35])
    for one, other in zip(theirs, _fit(distiller)[0]):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_feature_distillation_is_called_as_it_is():
    hint = keras.distillation.FeatureDistillation(loss="mse", teacher_layer_name="hidden", student_layer_name="hidden")
    teacher, student = network("teacher"), network("student")
    distiller = Distiller(teacher, student, hint)
    distiller.compile(keras.optimizers.SGD(0.0), hard_loss())
    x, y = examples(16)
    features = [keras.ops.convert_to_numpy(model.get_layer("hidden")(x)) for model in (student, teacher)]
    history = distiller.fit(x, y, batch_size=16, verbose=0).history
    np.testing.assert_allclose(history["feature_distillation"][0], np.mean((features[0] - features[1]) ** 2), rtol=1e-5)
    twin = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(distiller.distillation_losses[0]))
    assert twin.student_layers == ("hidden",)


def test_keras_default_is_read_as_it_is_meant():
    with pytest.warns(UserWarning, match="treats logits as probabilities"):
        loss = losses.get(keras.distillation.LogitsDistillation(temperature=2.0), weight=3.0)
    assert isinstance(loss, losses.KD) and (loss.temperature, loss.weight) == (2.0, 3.0)


def test_one_number_a_batch_has_no_weights():
    hint = keras.distillation.FeatureDistillation(loss="mse", teacher_layer_name="hidden", student_layer_name="hidden")
    with pytest.raises(ValueError, match="which returns one number per batch"):
        losses.get(hint, weighting="wsl")
