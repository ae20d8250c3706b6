"""MobileNet-v1: parameter counts, shapes, initialization, and a file. test_torchvision.py tests its outputs."""

import keras
import numpy as np
from keras import layers

from keras_wsl.features import preceding_batch_norm
from keras_wsl.models.mobilenet_v1 import mobilenet_v1


def test_parameter_counts_and_shapes_match_reference():
    model = mobilenet_v1(classes=1000)
    convolutions = [layer for layer in model.layers if isinstance(layer, (layers.Conv2D, layers.DepthwiseConv2D))]
    norms = [layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)]
    assert sum(int(np.prod(v.shape)) for v in model.trainable_variables) == 4_231_976
    macs = sum(int(np.prod(layer.output.shape[1:3])) * int(np.prod(layer.kernel.shape)) for layer in convolutions)
    assert macs + int(np.prod(model.get_layer("logits").kernel.shape)) == 568_740_352
    assert (len(norms), sum(layer.gamma.shape[0] for layer in norms)) == (27, 10_944)
    for index, channels in enumerate((128, 256, 512, 1024), start=1):
        shape = (None, 112 // 2**index, 112 // 2**index, channels)
        block, preact = model.get_layer(f"block{index}"), model.get_layer(f"block{index}_preact")
        assert block.output.shape == preact.output.shape == shape
        assert preceding_batch_norm(model, block.name) is preact
    assert model.get_layer("stem").output.shape == (None, 112, 112, 32)
    assert model.get_layer("pooled").output.shape == (None, 1024)


def test_initialization_matches_reference():
    model = mobilenet_v1(classes=10, input_shape=(None, None, 3))
    for name, count in (("unit13_conv", 1024), ("unit13_depthwise", 9 * 1024)):
        kernel = model.get_layer(name).get_weights()[0]
        assert abs(kernel.std() / (2 / count) ** 0.5 - 1) < 0.05
    kernels = [model.get_layer(f"unit{unit}_depthwise").get_weights()[0] for unit in (8, 9)]
    assert not np.array_equal(*kernels)


def test_mobilenet_v1_trains_and_saves(tmp_path):
    x = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype("float32")
    model = mobilenet_v1(classes=5, input_shape=(32, 32, 3))
    model.save(tmp_path / "a.keras")
    read = keras.saving.load_model(tmp_path / "a.keras")
    expected, actual = (keras.ops.convert_to_numpy(network(x)) for network in (model, read))
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    assert np.isfinite(model.train_on_batch(x, np.array([0, 1])))
