"""Networks of keras-cv and keras-nlp are distilled as they are: nested models, dict inputs, endpoints by name."""

import keras
import numpy as np
import pytest

from keras_wsl import Distiller, FeatureExtractor, losses
from tests.common import arrays, hard_loss, keras_cv_classifier


def _train(teacher, student, x, y):
    before = arrays(teacher)
    distiller = Distiller(teacher, student, losses.WSL())
    distiller.compile(keras.optimizers.SGD(0.01), hard_loss())
    history = distiller.fit(x, y, batch_size=4, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert all(np.array_equal(one, other) for one, other in zip(before, arrays(teacher)))


@pytest.mark.tensorflow  # keras-cv's image layers need TensorFlow.
def test_keras_cv():
    images = np.random.default_rng(0).normal(size=(8, 32, 32, 3)).astype("float32")
    _train(keras_cv_classifier([2, 2]), keras_cv_classifier([1, 1]), images, np.arange(8) % 3)


@pytest.mark.tensorflow  # keras-nlp's tokenizers bring tensorflow-text.
def test_keras_nlp():
    import keras_nlp

    def classifier(layers):
        backbone = keras_nlp.models.BertBackbone(
            vocabulary_size=50, num_layers=layers, num_heads=2, hidden_dim=8, intermediate_dim=16, max_sequence_length=6
        )
        return keras_nlp.models.BertClassifier(backbone, num_classes=3, preprocessor=None)

    generator = np.random.default_rng(0)
    x = {
        "token_ids": generator.integers(0, 50, (8, 6)),
        "padding_mask": np.ones((8, 6), "int32"),
        "segment_ids": np.zeros((8, 6), "int32"),
    }
    teacher = classifier(2)
    _train(teacher, classifier(1), x, np.arange(8) % 3)
    recorded = FeatureExtractor(teacher, ["transformer_layer_1"])(x)
    assert tuple(recorded["transformer_layer_1"].shape) == (8, 6, 8)
