"""ResNets for ImageNet: parameter counts and training; and other backbones of keras-cv with endpoints."""

import json

import keras
import numpy as np
import pytest
from keras import layers

from keras_wsl import models
from keras_wsl.data import image_files
from keras_wsl.features import FeatureExtractor, preceding_batch_norm
from keras_wsl.models import keras_cv_backbones
from keras_wsl.models.weights import load_weights

# Parameters, multiplications at 224, normalizations and their channels: counted from the papers' PyTorch code.
RESNETS = {
    18: (11_689_512, 1_814_073_344, 20, 4_800, 64),
    34: (21_797_672, 3_663_761_408, 36, 8_512, 64),
    50: (25_557_032, 4_089_184_256, 53, 26_560, 256),
}
PYRAMID = ("block1", "block2", "block3", "block4")


def images(count=2, size=64):
    return np.random.default_rng(0).normal(size=(count, size, size, 3)).astype("float32")


def count(variables):
    return sum(int(np.prod(variable.shape)) for variable in variables)


def is_of_keras(model):
    found = []

    def visit(item):
        if isinstance(item, dict):
            found.append(str(item.get("module")))
            for value in item.values():
                visit(value)
        elif isinstance(item, (list, tuple)):
            for value in item:
                visit(value)

    visit(json.loads(model.to_json()))
    return not any("keras_cv" in module for module in found) and not any(
        isinstance(layer, (keras.Model, layers.Lambda)) for layer in model.layers
    )


@pytest.mark.parametrize("depth", RESNETS)
def test_resnet_parameter_counts_match_paper(depth):
    parameters, multiplications, norms, channels, first = RESNETS[depth]
    model = keras_cv_backbones.resnet(depth=depth, classes=1000)
    convolutions = [layer for layer in model.layers if isinstance(layer, layers.Conv2D)]
    normalizations = [layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)]
    assert count(model.trainable_variables) == parameters
    assert (len(normalizations), sum(layer.gamma.shape[0] for layer in normalizations)) == (norms, channels)
    assert all(layer.epsilon == 1e-5 and layer.momentum == 0.9 for layer in normalizations)
    macs = sum(int(np.prod(layer.output.shape[1:3])) * int(np.prod(layer.kernel.shape)) for layer in convolutions)
    assert macs + int(np.prod(model.get_layer("logits").kernel.shape)) == multiplications
    for index, stage in enumerate(PYRAMID):
        shape = (None, 56 // 2**index, 56 // 2**index, first * 2**index)
        assert model.get_layer(stage).output.shape == model.get_layer(f"{stage}_preact").output.shape == shape
        last = preceding_batch_norm(model, stage).name
        assert last == preceding_batch_norm(model, f"{stage}_preact").name and last.startswith(f"{stage}_unit")
        assert "shortcut" not in last
    assert model.get_layer("stem").output.shape == (None, 112, 112, 64)
    assert model.name == f"resnet{depth}" and is_of_keras(model)


def test_resnet_initialization_matches_torchvision():
    model = keras_cv_backbones.resnet(depth=18, classes=1000, input_shape=(None, None, 3))
    kernels = [model.get_layer(f"block4_unit{unit}_conv2").get_weights()[0] for unit in (0, 1)]
    assert abs(kernels[0].std() / (2 / (9 * 512)) ** 0.5 - 1) < 0.01 and abs(kernels[0].mean()) < 1e-4
    assert np.abs(kernels[0]).max() > 4 * kernels[0].std()  # Not truncated.
    assert not np.array_equal(*kernels)
    for value in model.get_layer("logits").get_weights():
        assert 0.9 * 512**-0.5 < np.abs(value).max() <= 512**-0.5
    assert model(images(1, 40)).shape == (1, 1000)
    with pytest.raises(ValueError, match="must be one of \\(18, 34, 50\\). Received: 101"):
        keras_cv_backbones.resnet(depth=101, classes=10)


@pytest.mark.slow
def test_resnet_trains_and_saves(tmp_path):
    model = keras_cv_backbones.resnet(depth=18, classes=5, input_shape=(64, 64, 3), name="small")
    expected = keras.ops.convert_to_numpy(model(images()))
    model.save(tmp_path / "a.keras")
    read = keras.saving.load_model(tmp_path / "a.keras")
    np.testing.assert_allclose(keras.ops.convert_to_numpy(read(images())), expected, rtol=1e-5, atol=1e-6)
    models.save_weights(model, tmp_path / "a.weights.h5", dtype="float32")
    other = keras_cv_backbones.resnet(depth=18, classes=5, input_shape=(64, 64, 3), name="small")
    load_weights(other, tmp_path / "a.weights.h5")
    np.testing.assert_allclose(keras.ops.convert_to_numpy(other(images())), expected, rtol=1e-5, atol=1e-6)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    before = [np.array(keras.ops.convert_to_numpy(v)) for v in model.trainable_variables]
    assert np.isfinite(model.train_on_batch(images(), np.array([0, 1])))
    after = [keras.ops.convert_to_numpy(v) for v in model.trainable_variables]
    assert all((old != new).any() for old, new in zip(before, after))


@pytest.mark.tensorflow
@pytest.mark.slow
def test_resnet_exports_saved_model(tmp_path):
    import tensorflow as tf

    model = keras_cv_backbones.resnet(depth=18, classes=5, input_shape=(32, 32, 3))
    model.export(tmp_path / "saved", verbose=False)
    saved = tf.saved_model.load(str(tmp_path / "saved"))
    np.testing.assert_allclose(saved.serve(images(2, 32)), model(images(2, 32)), rtol=1e-4, atol=1e-5)


def test_resnet_logits_are_float32():
    model = keras_cv_backbones.resnet(depth=18, classes=5, input_shape=(32, 32, 3), dtype="mixed_bfloat16")
    assert {layer.compute_dtype for layer in model.layers if layer.name not in ("image", "logits")} == {"bfloat16"}
    assert model.get_layer("logits").compute_dtype == "float32"


EFFICIENT = {
    "width_coefficient": 0.5,
    "depth_coefficient": 1.0,
    "stackwise_kernel_sizes": [3, 5],
    "stackwise_num_repeats": [1, 2],
    "stackwise_input_filters": [32, 16],
    "stackwise_output_filters": [16, 24],
    "stackwise_expansion_ratios": [1, 6],
    "stackwise_strides": [1, 2],
    "stackwise_squeeze_and_excite_ratios": [0.25, 0.25],
}
MOBILE = {
    "stackwise_expansion": [1, 4],
    "stackwise_filters": [16, 24],
    "stackwise_kernel_size": [3, 5],
    "stackwise_stride": [2, 1],
    "stackwise_se_ratio": [0.25, None],
    "stackwise_activation": ["relu", "hard_swish"],
}
STACKS = {"stackwise_filters": [8, 16], "stackwise_blocks": [2, 2], "stackwise_strides": [1, 2]}
BACKBONES = {
    "ResNetV2Backbone": (STACKS, {"stem", "block1", "block2"}),
    "EfficientNetV2Backbone": (
        {**EFFICIENT, "stackwise_conv_types": ["fused", "unfused"]},
        {"stem", "block1", "block1_preact", "block2", "block2_preact"},
    ),
    "MobileNetV3Backbone": (MOBILE, {"block1", "block2"}),
    "CSPDarkNetBackbone": (
        {"stackwise_channels": [16, 32], "stackwise_depth": [1, 1]},
        {"stem", "block1", "block1_preact", "block2", "block2_preact"},
    ),
    "VGG16Backbone": ({}, {"block1", "block2", "block3", "block4", "block5"}),
}


@pytest.mark.tensorflow
@pytest.mark.parametrize("name", BACKBONES)
def test_backbone_classifier_is_flat_and_matches_keras_cv(name, tmp_path):
    import keras_cv as library

    settings, expected = BACKBONES[name]
    model = keras_cv_backbones.backbone_classifier(name, classes=5, input_shape=(64, 64, 3), **settings)
    if name == "VGG16Backbone":
        settings = {**settings, "include_top": False}
    backbone = getattr(library.models, name)(input_shape=(64, 64, 3), include_rescaling=False, **settings)
    assert count(model.weights) - count(model.get_layer("logits").weights) == count(backbone.weights)
    assert is_of_keras(model)
    ends = {n for n in (layer.name for layer in model.layers) if n == "stem" or n.startswith("block")}
    assert expected <= ends
    outputs = FeatureExtractor(model, [*expected, "pooled"])(images())
    assert all(np.isfinite(value).all() for value in outputs.values()) and outputs["logits"].dtype == "float32"
    model.save(tmp_path / "a.keras")
    read = keras.saving.load_model(tmp_path / "a.keras")
    np.testing.assert_allclose(read(images()), outputs["logits"], rtol=1e-4, atol=1e-5)


@pytest.mark.tensorflow
def test_preset_classifier_copies_weights(tmp_path):
    import keras_cv as library

    settings = {**EFFICIENT, "stackwise_conv_types": ["fused", "unfused"]}
    backbone = library.models.EfficientNetV2Backbone(input_shape=(64, 64, 3), include_rescaling=True, **settings)
    # Away from the first values of the moving statistics, which any copy has.
    backbone.set_weights([np.random.default_rng(1).uniform(0.1, 0.3, v.shape) for v in backbone.weights])
    backbone.save_weights(tmp_path / "model.weights.h5")
    config = {**keras.saving.serialize_keras_object(backbone), "weights": "model.weights.h5"}
    config.pop("build_config", None)
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = keras_cv_backbones.preset_classifier(tmp_path, classes=5, input_shape=(64, 64, 3))
    pooled = FeatureExtractor(model, ["pooled"])(images())["pooled"]
    assert (keras_cv_backbones.MEAN, keras_cv_backbones.STD) == (image_files.MEAN, image_files.STD)
    # The preset expects pixels, and the network here is given normalized ones.
    pixels = (images() * np.array(keras_cv_backbones.STD) + np.array(keras_cv_backbones.MEAN)) * 255
    np.testing.assert_allclose(pooled, np.mean(backbone(pixels, training=False), (1, 2)), rtol=1e-4)
    assert is_of_keras(model)


@pytest.mark.tensorflow
def test_backbone_errors_name_alternatives():
    with pytest.raises(ValueError, match="Unknown backbone 'ResNet18Backbone'.*Expected one of .*ResNetBackbone"):
        keras_cv_backbones.backbone_classifier("ResNet18Backbone", classes=5)
    with pytest.raises(ValueError, match="does not accept the arguments.*stackwise_filters"):
        keras_cv_backbones.backbone_classifier("ResNetBackbone", classes=5)
    with pytest.raises(ValueError, match="`preset` must be a directory .*resnet50_imagenet"):
        keras_cv_backbones.preset_classifier("resnet_fifty", classes=5)
