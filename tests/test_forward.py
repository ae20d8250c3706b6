"""The compiled forward pass of a network, against Keras's own."""

import gc
import weakref

import keras
import numpy as np
import pytest

from keras_wsl import models
from keras_wsl.backend import predict_batch
from tests.common import network


@pytest.mark.parametrize("count", [1, 5])
def test_it_is_what_keras_predicts(count):
    model = models.build("resnet8", 10, input_shape=(16, 16, 3))
    images = np.random.default_rng(0).normal(size=(count, 16, 16, 3)).astype("float32")
    found = predict_batch(model, keras.ops.convert_to_tensor(images))
    assert isinstance(found, np.ndarray)
    np.testing.assert_allclose(found, model.predict(images, verbose=0), atol=1e-5)


def test_structures_of_inputs_and_outputs_stay():
    inputs = {name: keras.Input((3,), name=name) for name in ("one", "other")}
    model = keras.Model(inputs, {"sum": keras.layers.Add()(list(inputs.values()))})
    given = {name: np.full((2, 3), i, "float32") for i, name in enumerate(inputs)}
    found = predict_batch(model, given)
    assert list(found) == ["sum"]
    np.testing.assert_array_equal(found["sum"], np.ones((2, 3)))


def test_it_sees_new_weights_and_does_not_keep_the_model():
    model, inputs = network("model"), np.ones((2, 6), "float32")
    before = predict_batch(model, inputs)
    model.set_weights([weight + 0.5 for weight in model.get_weights()])
    after = predict_batch(model, inputs)
    assert np.abs(after - before).min() > 1e-3
    np.testing.assert_allclose(after, model.predict_on_batch(inputs), rtol=1e-5)
    there = weakref.ref(model)
    del model
    gc.collect()
    assert there() is None
