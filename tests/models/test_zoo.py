"""Networks by name: parameter counts, shapes, outputs in NumPy, initialization and weight files."""

import functools

import h5py
import keras
import numpy as np
import pytest
from keras import layers

from keras_wsl import models
from keras_wsl.features import preceding_batch_norm
from keras_wsl.models.weights import load_weights
from tests.common import arrays, golden

NETWORKS = golden("architectures")["networks"]
STAGES = ("block1", "block2", "block3")
FOUR_STAGES = (*STAGES, "block4")
# Neither residual networks of two convolutions a unit nor wide ones.
OTHERS = ("resnet50", "vgg8", "vgg13", "shufflenet_v1", "shufflenet_v2", "mobilenet_v2", "lenet5x8")
CONVOLUTIONS = (layers.Conv2D, layers.DepthwiseConv2D, layers.EinsumDense)


def small(name="resnet8", classes=10, **settings):
    return models.build(name, classes=classes, input_shape=(8, 8, 1), **settings)


def images(count=4, shape=(8, 8, 1), seed=0):
    return np.random.default_rng(seed).normal(size=(count, *shape)).astype("float32")


def endpoints(model, names, x):
    """Return the outputs of layers in inference mode, by name."""
    outputs = keras.Model(model.input, {name: model.get_layer(name).output for name in names})(x, training=False)
    return {name: np.asarray(keras.ops.convert_to_numpy(value), "float64") for name, value in outputs.items()}


def shake(model, seed=0):
    """Set random batch-norm scales, offsets and statistics, so that no normalization is near the identity."""
    generator = np.random.default_rng(seed)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            size = layer.gamma.shape[0]
            offsets = generator.normal(size=(2, size)) * 0.3
            scales = generator.uniform(0.5, 1.5, (2, size))
            layer.set_weights([scales[0], offsets[0], offsets[1], scales[1]])
    return model


@functools.cache
def shaken(name):
    """Return a small network with random statistics, built once for all tests that only read it."""
    return shake(small(name))


def test_names_match_golden_list():
    names = set(models.names()) - {"tiny"}  # Which tests/common.py registers.
    assert {name for name in names if not name.startswith("imagenet_")} == set(NETWORKS)


@pytest.mark.parametrize("name", NETWORKS)
def test_parameter_counts_and_shapes_match_reference(name):
    expected = NETWORKS[name]
    model = models.build(name)
    convolutions = [layer for layer in model.layers if isinstance(layer, CONVOLUTIONS)]
    norms = [layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)]
    assert sum(int(np.prod(v.shape)) for v in model.trainable_variables) == expected["params"]
    assert len(convolutions) == expected["convs"]
    assert len(norms) == expected["bn_layers"]
    assert all(norm.epsilon == 1e-5 and norm.momentum == 0.9 for norm in norms)
    assert sum(int(np.prod(v.shape)) for v in model.non_trainable_variables) == expected["bn_running_stats"]
    dense = [layer for layer in model.layers if isinstance(layer, layers.Dense)]
    assert (
        sum(positions(layer) * int(np.prod(layer.kernel.shape)) for layer in convolutions + dense)
        == (expected["macs_32x32"])
    )

    def shapes(*names):
        return [model.get_layer(name).output.shape[1:] for name in names]

    channels_last = [tuple((*shape[1:], shape[0])) for shape in expected["feats_chw"]]
    if name == "lenet5x8":
        assert shapes("block1", "block2", "pooled") == channels_last
    else:
        stages = FOUR_STAGES[: len(channels_last) - 2]
        assert shapes("stem", *stages, "pooled") == channels_last
        assert shapes(*(f"{stage}_preact" for stage in stages)) == channels_last[1:-1]
    assert model.output is model.get_layer("logits").output and model.output.shape == (None, 100)
    assert model.name == name
    # Who has a student need not have this package.
    assert all(type(layer).__module__.startswith("keras.src.layers.") for layer in model.layers)


def positions(layer):
    """Return how often a kernel is applied to one example: at every pixel, or once for a dense layer."""
    if isinstance(layer, layers.EinsumDense):
        return layer.output.shape[1]
    return int(np.prod(layer.output.shape[1:-1]))


def convolve(x, kernel, strides=1):
    """Compute a convolution by its definition, in float64, with the padding (k - 1) / 2 on every side."""
    size = kernel.shape[0]
    x = np.pad(x, ((0, 0), (size // 2,) * 2, (size // 2,) * 2, (0, 0)))
    height, width = ((side - size) // strides + 1 for side in x.shape[1:3])
    return sum(
        x[:, i : i + strides * height : strides, j : j + strides * width : strides] @ kernel[i, j]
        for i in range(size)
        for j in range(size)
    )


class Reference:
    """Compute the forward pass in NumPy from the papers' equations, with a model's weights by layer name."""

    def __init__(self, model):
        self.model = model

    def weights(self, name):
        return [np.asarray(value, "float64") for value in self.model.get_layer(name).get_weights()]

    def conv(self, x, name, strides=1):
        return convolve(x, *self.weights(name), strides)

    def norm(self, x, name):
        gamma, beta, mean, variance = self.weights(name)
        return gamma * (x - mean) / np.sqrt(variance + 1e-5) + beta

    def logits(self, x):
        kernel, bias = self.weights("logits")
        return x.mean((1, 2)) @ kernel + bias

    def resnet(self, x, units):
        x = np.maximum(self.norm(self.conv(x, "stem_conv"), "stem_bn"), 0)
        for stage in (1, 2, 3):
            for unit in range(units):
                name, strides = f"block{stage}_unit{unit}", 2 if stage > 1 and unit == 0 else 1
                y = np.maximum(self.norm(self.conv(x, f"{name}_conv1", strides), f"{name}_bn1"), 0)
                y = self.norm(self.conv(y, f"{name}_conv2"), f"{name}_bn2")
                if y.shape != x.shape:
                    x = self.norm(self.conv(x, f"{name}_shortcut_conv", strides), f"{name}_shortcut_bn")
                x = np.maximum(x + y, 0)
        return self.logits(x)

    def wide_resnet(self, x, units):
        x = self.conv(x, "stem")
        for stage in (1, 2, 3):
            for unit in range(units):
                name, strides = f"block{stage}_unit{unit}", 2 if stage > 1 and unit == 0 else 1
                first = f"block{stage - 1}_preact" if stage > 1 and unit == 0 else f"{name}_bn1"
                activated = np.maximum(self.norm(x, first), 0)
                y = np.maximum(self.norm(self.conv(activated, f"{name}_conv1", strides), f"{name}_bn2"), 0)
                y = self.conv(y, f"{name}_conv2")
                # Where the channels change, the shortcut reads the activated input.
                x = y + (x if y.shape == x.shape else self.conv(activated, f"{name}_shortcut_conv", strides))
        return self.logits(np.maximum(self.norm(x, "block3_preact"), 0))

    def conv_norm(self, x, name, norm, strides=1):
        return self.norm(self.conv(x, name, strides), norm)

    def grouped(self, x, name):
        """Compute a 1x1 convolution in groups, with a kernel `(groups, channels, filters)`, or in one group."""
        (kernel,) = self.weights(name)
        if kernel.ndim == 4:
            return x @ kernel[0, 0]
        return np.concatenate([part @ matrix for part, matrix in zip(np.split(x, len(kernel), -1), kernel)], -1)

    def depthwise(self, x, name, strides=1):
        (kernel,) = self.weights(name)
        return convolve(x, kernel[..., 0, None] * np.eye(x.shape[-1]), strides)

    def bottleneck_resnet(self, x, _):
        x = np.maximum(self.conv_norm(x, "stem_conv", "stem_bn"), 0)
        for stage, units in enumerate((3, 4, 6, 3), start=1):
            for unit in range(units):
                name, strides = f"block{stage}_unit{unit}", 2 if stage > 1 and unit == 0 else 1
                y = np.maximum(self.conv_norm(x, f"{name}_conv1", f"{name}_bn1"), 0)
                y = np.maximum(self.conv_norm(y, f"{name}_conv2", f"{name}_bn2", strides), 0)
                y = self.conv_norm(y, f"{name}_conv3", f"{name}_bn3")
                if unit == 0:
                    x = self.conv_norm(x, f"{name}_shortcut_conv", f"{name}_shortcut_bn", strides)
                x = np.maximum(x + y, 0)
        return self.logits(x)

    def vgg(self, x, convolutions):
        for block, end in enumerate(("stem", *FOUR_STAGES)):
            for unit in range(convolutions):
                kernel, bias = self.weights(f"{end}_unit{unit}_conv")
                last = unit == convolutions - 1
                norm = f"{end}_preact" if last and block else f"{end}_unit{unit}_bn"
                x = np.maximum(self.norm(convolve(x, kernel) + bias, norm), 0)
            if block < 3:
                x = maxima(x)
        return self.logits(x)

    def shufflenet_v1(self, x, _):
        x = np.maximum(self.conv_norm(x, "stem_conv", "stem_bn"), 0)
        for stage, units in enumerate((4, 8, 4), start=1):
            for unit in range(units):
                name, strides = f"block{stage}_unit{unit}", 1 if unit else 2
                y = np.maximum(self.norm(self.grouped(x, f"{name}_conv1"), f"{name}_bn1"), 0)
                y = shuffled(y, 1 if (stage, unit) == (1, 0) else 3)
                y = np.maximum(self.norm(self.depthwise(y, f"{name}_depthwise", strides), f"{name}_bn2"), 0)
                y = self.norm(self.grouped(y, f"{name}_conv2"), f"{name}_bn3")
                if unit:
                    y = y + x
                else:
                    mean = np.ones((3, 3, 1, 1)) / 9 * np.eye(x.shape[-1])
                    y = np.concatenate([y, convolve(x, mean, 2)], -1)
                x = np.maximum(y, 0)
        return self.logits(x)

    def shufflenet_v2(self, x, _):
        x = np.maximum(self.conv_norm(x, "stem_conv", "stem_bn"), 0)
        for stage, units in enumerate((4, 8, 4), start=1):
            for unit in range(units):
                name, strides = f"block{stage}_unit{unit}", 1 if unit else 2
                if unit:
                    left, right = np.split(x, 2, -1)
                else:
                    left, right = x, x
                    left = self.norm(self.depthwise(left, f"{name}_left_depthwise", 2), f"{name}_left_depthwise_bn")
                    left = np.maximum(self.conv_norm(left, f"{name}_left_conv", f"{name}_left_bn"), 0)
                right = np.maximum(self.conv_norm(right, f"{name}_conv1", f"{name}_bn1"), 0)
                right = self.norm(self.depthwise(right, f"{name}_depthwise", strides), f"{name}_depthwise_bn")
                right = np.maximum(self.conv_norm(right, f"{name}_conv2", f"{name}_bn2"), 0)
                x = shuffled(np.concatenate([left, right], -1), 2)
        return self.logits(np.maximum(self.conv_norm(x, "final_conv", "final_bn"), 0))

    def mobilenet_v2(self, x, _):
        x = np.maximum(self.conv_norm(x, "stem_conv", "stem_bn", 2), 0)
        last = {(1, 1): "block1", (2, 2): "block2", (4, 2): "block3", (6, 0): "block4"}
        for stage, (units, first) in enumerate([(1, 1), (2, 1), (3, 2), (4, 2), (3, 1), (3, 2), (1, 1)]):
            for unit in range(units):
                name, strides = f"stage{stage}_unit{unit}", 1 if unit else first
                y = np.maximum(self.conv_norm(x, f"{name}_expansion_conv", f"{name}_expansion_bn"), 0)
                y = np.maximum(self.norm(self.depthwise(y, f"{name}_depthwise", strides), f"{name}_depthwise_bn"), 0)
                end = f"{last[stage, unit]}_preact" if (stage, unit) in last else f"{name}_output"
                y = self.conv_norm(y, f"{name}_conv", f"{name}_bn" if unit else end)
                x = x + y if unit else y
        return self.logits(np.maximum(self.conv_norm(x, "final_conv", "final_bn"), 0))


def shuffled(x, groups):
    """Move channel `g n + i` to `i groups + g`, for groups of `n` channels."""
    n = x.shape[-1] // groups
    return x[..., [g * n + i for i in range(n) for g in range(groups)]]


def maxima(x):
    """Return the maximum of every 2x2 values."""
    height, width = (side // 2 * 2 for side in x.shape[1:3])
    return np.maximum.reduce([x[:, i:height:2, j:width:2] for i in (0, 1) for j in (0, 1)])


@pytest.mark.parametrize(
    "name, family, units",
    [
        ("resnet8", "resnet", 1),
        ("resnet14", "resnet", 2),
        ("resnet8x4", "resnet", 1),
        ("wrn_16_1", "wide_resnet", 2),
        ("wrn_16_2", "wide_resnet", 2),
        ("resnet50", "bottleneck_resnet", None),
        ("vgg8", "vgg", 1),
        ("vgg13", "vgg", 2),
        ("shufflenet_v1", "shufflenet_v1", None),
        ("shufflenet_v2", "shufflenet_v2", None),
        ("mobilenet_v2", "mobilenet_v2", None),
    ],
)
def test_forward_matches_reference(name, family, units):
    model, x = shaken(name), images()
    expected = getattr(Reference(model), family)(x.astype("float64"), units)
    actual = keras.ops.convert_to_numpy(model(x, training=False))
    np.testing.assert_allclose(actual, expected, rtol=2e-4, atol=2e-5 * np.abs(expected).max())


def test_lenet_forward_matches_reference():
    model, x = models.build("lenet5x8", 10, input_shape=(18, 16, 1)), images(2, (18, 16, 1))
    weights, y = Reference(model).weights, x.astype("float64")
    for block in ("block1", "block2"):
        kernel, bias = weights(f"{block}_conv")
        y = maxima(np.maximum(convolve(y, kernel)[:, 2:-2, 2:-2] + bias, 0))  # Without padding.
    y = y.reshape(2, -1)
    for hidden in ("hidden1", "hidden2"):
        kernel, bias = weights(f"{hidden}_dense")
        y = np.maximum(y @ kernel + bias, 0)
    values = endpoints(model, ["block1", "hidden2", "pooled", "logits"], x)
    np.testing.assert_allclose(values["pooled"], y, atol=1e-5)
    np.testing.assert_array_equal(values["hidden2"], values["pooled"])
    kernel, bias = weights("logits")
    np.testing.assert_allclose(values["logits"], y @ kernel + bias, atol=1e-5)
    assert values["block1"].min() >= 0


@pytest.mark.parametrize("stage, unit", [(1, 0), (2, 0), (2, 1)])
def test_shufflenet_v1_units_match_torch(stage, unit):
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    model = shaken("shufflenet_v1")
    name = f"block{stage}_unit{unit}"
    start = model.get_layer(f"{name}_conv1" if stage == 1 else f"{name}_conv1_groups").input
    x = images(2, start.shape[1:])
    part = keras.Model(start, model.get_layer(f"{name}_relu3").output)
    actual = keras.ops.convert_to_numpy(part(x, training=False))

    def conv(x, layer, **settings):
        kernel = model.get_layer(layer).get_weights()[0]
        if kernel.ndim == 3:  # (groups, inputs, outputs)
            settings["groups"] = len(kernel)
            kernel = np.concatenate(list(kernel), -1)[None, None]
        if layer.endswith("depthwise"):
            settings["groups"], kernel = x.shape[1], kernel.swapaxes(2, 3)
        return functional.conv2d(x, torch.tensor(kernel.transpose(3, 2, 0, 1).copy()), **settings)

    def norm(x, layer):
        gamma, beta, mean, variance = map(torch.tensor, model.get_layer(layer).get_weights())
        return functional.batch_norm(x, mean, variance, gamma, beta, eps=1e-5)

    with torch.no_grad():
        x = torch.tensor(x.transpose(0, 3, 1, 2).copy())
        y = functional.relu(norm(conv(x, f"{name}_conv1"), f"{name}_bn1"))
        if stage > 1:
            y = functional.channel_shuffle(y, 3)
        y = conv(y, f"{name}_depthwise", stride=1 if unit else 2, padding=1)
        y = norm(conv(functional.relu(norm(y, f"{name}_bn2")), f"{name}_conv2"), f"{name}_bn3")
        y = y + x if unit else torch.cat([y, functional.avg_pool2d(x, 3, stride=2, padding=1)], 1)
        expected = functional.relu(y).numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1"])
def test_strides_of_two_are_padded_on_both_sides(name):
    model = small(name)
    layer = model.get_layer("block2_unit0_conv1")
    kernel = np.asarray(layer.get_weights()[0], "float64")
    part = keras.Model(model.get_layer("block2_unit0_conv1_padding").input, layer.output)
    for row, column in [(0, 0), (0, 7), (7, 0), (3, 4), (7, 7)]:
        delta = np.zeros((1, 8, 8, kernel.shape[2]), "float32")
        delta[0, row, column, 1] = 1
        # out[i, j] = sum of kernel[a, b] x[2 i + a - 1, 2 j + b - 1]
        expected = np.zeros((4, 4, kernel.shape[3]))
        for i in range(4):
            for j in range(4):
                a, b = row - 2 * i + 1, column - 2 * j + 1
                if 0 <= a < 3 and 0 <= b < 3:
                    expected[i, j] = kernel[a, b, 1]
        actual = keras.ops.convert_to_numpy(part(delta))[0]
        np.testing.assert_allclose(actual, expected, atol=1e-6)


@pytest.mark.parametrize("name", ["resnet8", "resnet14", "resnet8x4", "resnet50", "vgg13", "shufflenet_v1"])
def test_stages_equal_rectified_sums(name):
    stages = STAGES if name in ("resnet8", "resnet14", "resnet8x4", "shufflenet_v1") else FOUR_STAGES
    values = endpoints(shaken(name), [*stages, *(f"{stage}_preact" for stage in stages), "stem"], images())
    for stage in stages:
        assert values[f"{stage}_preact"].min() < 0
        np.testing.assert_array_equal(values[stage], np.maximum(values[f"{stage}_preact"], 0))
    assert values["stem"].min() == 0


def test_shufflenet_v2_stages_equal_shuffled_rectified_values():
    values = endpoints(shaken("shufflenet_v2"), [*STAGES, *(f"{stage}_preact" for stage in STAGES), "stem"], images())
    for stage in STAGES:
        identity, residual = np.split(values[f"{stage}_preact"], 2, -1)
        assert identity.min() == 0 and residual.min() < 0
        np.testing.assert_array_equal(values[stage], shuffled(np.maximum(values[f"{stage}_preact"], 0), 2))
    assert values["stem"].min() == 0


def test_mobilenet_v2_bottlenecks_are_linear():
    values = endpoints(
        shaken("mobilenet_v2"), [*FOUR_STAGES, *(f"{stage}_preact" for stage in FOUR_STAGES), "stem"], images()
    )
    for stage in FOUR_STAGES:
        np.testing.assert_array_equal(values[stage], values[f"{stage}_preact"])
        assert values[stage].min() < 0
    assert values["stem"].min() == 0


@pytest.mark.parametrize("name", ["resnet50", "vgg13", "mobilenet_v2"])
def test_preceding_normalizations_of_stages(name):
    model = shaken(name)
    for stage in FOUR_STAGES:
        endpoint = model.get_layer(f"{stage}_preact")
        # A sum's first summand is the residual branch.
        tensor = endpoint.output if isinstance(endpoint, layers.BatchNormalization) else endpoint.input[0]
        norm = preceding_batch_norm(model, endpoint.name)
        assert isinstance(norm, layers.BatchNormalization) and norm.output is tensor


def test_wide_resnet_preactivations_are_the_next_normalization():
    model = shake(small("wrn_16_2"))
    values = endpoints(model, ["stem", *STAGES, *(f"{stage}_preact" for stage in STAGES), "pooled"], images())
    for stage in STAGES:
        layer = model.get_layer(f"{stage}_preact")
        assert isinstance(layer, layers.BatchNormalization)
        assert layer.input is model.get_layer(stage).output
        expected = Reference(model).norm(values[stage], f"{stage}_preact")
        np.testing.assert_allclose(values[f"{stage}_preact"], expected, atol=1e-4)
        assert values[stage].min() < 0
    assert values["stem"].min() < 0
    rectified = np.maximum(values["block3_preact"], 0)
    np.testing.assert_allclose(values["pooled"], rectified.mean((1, 2)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name, bias", [("resnet32x4", True), ("wrn_40_2", False)])
def test_initialization_matches_reference(name, bias):
    model = models.build(name)
    for layer in model.layers:
        if isinstance(layer, layers.Conv2D):
            kernel = np.asarray(layer.get_weights()[0], "float64")
            stddev = np.sqrt(2 / (kernel.shape[0] * kernel.shape[1] * kernel.shape[3]))
            # Five standard errors of the mean, and of the standard deviation.
            assert abs(kernel.mean()) < 5 * stddev / np.sqrt(kernel.size)
            assert abs(kernel.std() / stddev - 1) < 5 / np.sqrt(2 * kernel.size)
            if kernel.size > 50_000:
                assert np.abs(kernel).max() > 3 * stddev, "truncated"
        if isinstance(layer, layers.BatchNormalization):
            gamma, beta, mean, variance = layer.get_weights()
            assert (gamma == 1).all() and (beta == 0).all() and (mean == 0).all() and (variance == 1).all()
    kernel, offset = model.get_layer("logits").get_weights()
    bound = kernel.shape[0] ** -0.5
    assert 0.98 * bound < np.abs(kernel).max() <= bound
    assert abs(kernel.std() / (bound / np.sqrt(3)) - 1) < 0.03
    if bias:
        assert 0.9 * bound < np.abs(offset).max() <= bound
        assert abs(offset.std() / (bound / np.sqrt(3)) - 1) < 0.3
    else:
        assert (offset == 0).all()


def flat_uniform(values, bound):
    """Return whether values may be drawn from U(-bound, bound), by their maximum and standard deviation."""
    # Of n draws the greatest is below 1 - 14 / n of the bound once in a million times, and the standard error of
    # their deviation is 0.45 / sqrt(n) of it.
    assert (1 - 14 / values.size) * bound < np.abs(values).max() <= bound * (1 + 1e-6)
    assert abs(values.std() / (bound / np.sqrt(3)) - 1) < 2.3 / np.sqrt(values.size)
    assert abs(values.mean()) < 5 * bound / np.sqrt(3 * values.size)


def flat_normal(values, stddev):
    """Return whether values may be drawn from N(0, stddev^2), to five standard errors of mean and deviation."""
    assert abs(values.mean()) < 5 * stddev / np.sqrt(values.size)
    assert abs(values.std() / stddev - 1) < 5 / np.sqrt(2 * values.size)
    if values.size > 50_000:
        assert np.abs(values).max() > 3 * stddev, "truncated"


@pytest.mark.parametrize("name", OTHERS[:-1])
def test_initialization_of_other_networks_matches_reference(name):
    model = models.build(name)
    for layer in model.layers:
        if isinstance(layer, CONVOLUTIONS):
            kernel = np.asarray(layer.get_weights()[0], "float64")
            depthwise = isinstance(layer, layers.DepthwiseConv2D)
            # What one output sees, and the channels that the outputs have, whether or not in groups.
            fan_in = 9 if depthwise else int(np.prod(kernel.shape[:-1])) // (3 if kernel.ndim == 3 else 1)
            if name.startswith("shufflenet"):
                flat_uniform(kernel, fan_in**-0.5)
            else:
                channels = kernel.shape[2 if depthwise else 3]
                flat_normal(kernel, np.sqrt(2 / (kernel.shape[0] * kernel.shape[1] * channels)))
            assert len(layer.get_weights()) == (2 if name.startswith("vgg") else 1)
            assert all((bias == 0).all() for bias in layer.get_weights()[1:])
        if isinstance(layer, layers.BatchNormalization):
            gamma, beta, mean, variance = layer.get_weights()
            assert (gamma == 1).all() and (beta == 0).all() and (mean == 0).all() and (variance == 1).all()
    kernel, offset = model.get_layer("logits").get_weights()
    if name.startswith(("vgg", "mobilenet")):
        flat_normal(kernel, 0.01)
        assert (offset == 0).all()
    else:
        flat_uniform(kernel, kernel.shape[0] ** -0.5)
        flat_uniform(offset, kernel.shape[0] ** -0.5)


def test_initialization_depends_on_seed():
    keras.utils.set_random_seed(3)
    first = arrays(small())
    second = arrays(small())
    keras.utils.set_random_seed(3)
    again = arrays(small())
    assert all((a == b).all() for a, b in zip(first, again))
    assert not all((a == b).all() for a, b in zip(first, second))


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "shufflenet_v1"])
def test_mixed_precision_logits_are_float32(name):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        by_policy = small(name)
    finally:
        keras.config.set_dtype_policy(before)
    for model in (by_policy, small(name, dtype="mixed_bfloat16")):
        assert keras.backend.standardize_dtype(model(images()).dtype) == "float32"
        assert model.get_layer("block1").output.dtype == "bfloat16"
        assert {variable.dtype for variable in model.variables} == {"float32"}


def test_classes_and_weights_may_be_positional(tmp_path):
    path = tmp_path / "a.weights.h5"
    models.save_weights(models.build("resnet8", 7), path, "float32")
    assert models.build("resnet8", 7, path).output.shape == (None, 7)


@pytest.mark.parametrize("name", ["resnet8", "vgg8"])
def test_networks_accept_any_image_size(name):
    model = models.build(name, 5, input_shape=(None, None, 3))
    assert model(images(2, (11, 9, 3))).shape == (2, 5)


def test_shufflenets_accept_odd_and_oblong_images():
    model = models.build("shufflenet_v1", 5, input_shape=(11, 6, 3))
    assert model.get_layer("block2").output.shape[1:3] == (3, 2)
    assert model(images(2, (11, 6, 3))).shape == (2, 5)


@pytest.mark.parametrize("name", ["shufflenet_v1", "shufflenet_v2", "lenet5x8"])
@pytest.mark.parametrize("shape", [(None, 32, 3), (32, None, 3)])
def test_networks_with_fixed_size_reject_unknown_size(name, shape):
    with pytest.raises(ValueError, match=rf"of {name} must have a height and a width, such as \(32, 32, 3\).*None"):
        models.build(name, input_shape=shape)


def test_lenet_rejects_small_images():
    with pytest.raises(ValueError, match=r"lenet5x8 requires images of at least 16 x 16.*\(15, 32, 3\)"):
        models.build("lenet5x8", input_shape=(15, 32, 3))


@pytest.mark.parametrize("side, last", [(32, 4), (64, 4), (16, 2)])
def test_vgg_last_pool_only_for_images_of_64(side, last):
    model = models.build("vgg8", input_shape=(side, side, 3))
    assert model.get_layer("block4").output.shape[1:3] == (last, last)


@pytest.mark.parametrize("name", ["shufflenet_v1", "shufflenet_v2", "mobilenet_v2", "vgg8", "lenet5x8"])
def test_train_step_changes_all_weights_and_files_restore_them(tmp_path, name):
    if keras.backend.backend() == "jax" and name in ("shufflenet_v2", "mobilenet_v2"):
        pytest.skip("JAX compiles for ten seconds; shufflenet_v1 has the same layers")
    side = 16 if name == "lenet5x8" else 8
    model = models.build(name, 4, input_shape=(side, side, 1))
    before = arrays(model)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    # On JAX an eager step takes longer than a compiled one.
    model.compile(keras.optimizers.SGD(0.1), loss, run_eagerly=keras.backend.backend() != "jax")
    x = images(4, (side, side, 1))
    model.train_on_batch(x, np.arange(4))
    # A bias before a normalization is without effect.
    for variable, old, new in zip(model.variables, before, arrays(model)):
        assert (old != new).any() or variable.path.endswith("conv/bias"), variable.path
    model.save(tmp_path / "a.keras")
    loaded = keras.models.load_model(tmp_path / "a.keras")
    actual, expected = (keras.ops.convert_to_numpy(network(x, training=False)) for network in (loaded, model))
    np.testing.assert_allclose(actual, expected, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"name": "resnet9"}, r"Unknown network 'resnet9'.*wrn_40_2, .*resnet32x4"),
        ({"classes": 0}, r"`classes` must be a positive integer. Received: classes=0"),
        ({"classes": 2.5}, r"`classes` must be a positive integer.*2.5"),
        ({"input_shape": (32, 32)}, r"`input_shape` must be \(height, width, channels\).*\(32, 32\)"),
        ({"input_shape": (32, 32, None)}, r"`input_shape` must be a positive integer.*None"),
    ],
)
def test_build_rejects_invalid_arguments(settings, words):
    with pytest.raises(ValueError, match=words):
        models.build(**{"name": "resnet8", **settings})


# Weight files.


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_save_weights_round_trips(tmp_path, name, dtype):
    model, path = shake(small(name)), tmp_path / "a.weights.h5"
    models.save_weights(model, path, dtype)
    loaded = small(name, weights=str(path))
    for variable, expected, actual in zip(model.variables, arrays(model), arrays(loaded)):
        assert actual.dtype == np.float32
        np.testing.assert_array_equal(actual, expected.astype(dtype).astype("float32"), err_msg=variable.path)
    # Keras alone reads it too.
    other = small(name)
    other.load_weights(path)
    assert all((a == b).all() for a, b in zip(arrays(loaded), arrays(other)))
    assert [file.name for file in tmp_path.iterdir()] == ["a.weights.h5"]


def test_save_weights_defaults_to_float16(tmp_path):
    models.save_weights(small(), tmp_path / "a.weights.h5")
    dtypes = set()
    with h5py.File(tmp_path / "a.weights.h5") as file:
        file.visititems(lambda name, item: dtypes.add(item.dtype.name) if isinstance(item, h5py.Dataset) else None)
    assert dtypes == {"float16"}


def test_load_weights_reads_keras_files(tmp_path):
    model = shake(small())
    model.save_weights(tmp_path / "a.weights.h5")
    model.save(tmp_path / "a.keras")
    for path in (tmp_path / "a.weights.h5", tmp_path / "a.keras"):
        loaded = small(weights=path)
        assert all((a == b).all() for a, b in zip(arrays(model), arrays(loaded))), path


def test_save_weights_skips_optimizer_state(tmp_path):
    model = small()
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "mse")
    model.optimizer.build(model.trainable_variables)
    model.save_weights(tmp_path / "keras.weights.h5")
    models.save_weights(model, tmp_path / "ours.weights.h5", "float32")
    with h5py.File(tmp_path / "keras.weights.h5") as theirs, h5py.File(tmp_path / "ours.weights.h5") as ours:
        assert "optimizer" in theirs and "optimizer" not in ours
    for name in ("keras", "ours"):
        loaded = small(weights=tmp_path / f"{name}.weights.h5")
        assert all((a == b).all() for a, b in zip(arrays(model), arrays(loaded)))


def test_save_weights_writes_bfloat16_variables(tmp_path):
    model = small(dtype="bfloat16")
    models.save_weights(model, tmp_path / "a.weights.h5", "float32")
    loaded = small(weights=tmp_path / "a.weights.h5")
    assert all((a.astype("float32") == b).all() for a, b in zip(arrays(model), arrays(loaded)))


class Counter(layers.Layer):
    """A layer with an integer that float16 cannot represent."""

    def __init__(self, start):
        super().__init__()
        self.start = start

    def build(self, shape):
        self.count = self.add_weight(shape=(1,), initializer="zeros", dtype="int32", trainable=False)
        self.count.assign([self.start])

    def call(self, x):
        return x


def test_save_weights_keeps_integers(tmp_path):
    model, other = (keras.Sequential([keras.Input((3,)), Counter(start)]) for start in (100_001, 0))
    models.save_weights(model, tmp_path / "a.weights.h5")
    other.load_weights(tmp_path / "a.weights.h5")
    assert arrays(other)[0].tolist() == [100_001]


def test_save_weights_keeps_previous_file_after_error(tmp_path, monkeypatch):
    path = tmp_path / "a.weights.h5"
    model = small()
    models.save_weights(model, path)
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        models.save_weights(shake(model), path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.weights.h5"]


def test_save_weights_rejects_invalid_arguments(tmp_path):
    model, path = small(), tmp_path / "a.weights.h5"
    with pytest.raises(ValueError, match=r"must end in '.weights.h5'.*a.h5"):
        models.save_weights(model, tmp_path / "a.h5")
    with pytest.raises(ValueError, match=r"`dtype` must be one of .*'float16'.*Received: 'int8'"):
        models.save_weights(model, path, "int8")
    with pytest.raises(FileNotFoundError, match=r"directory .*missing.* is missing. Create it"):
        models.save_weights(model, tmp_path / "missing" / "a.weights.h5")
    with pytest.raises(ValueError, match=r"not built.*Call it"):
        models.save_weights(keras.Sequential([layers.Dense(2)]), path)
    norm = model.get_layer("block1_unit0_bn1")
    gamma, beta, mean, variance = norm.get_weights()
    norm.set_weights([gamma, beta, mean, np.full_like(variance, 7e4)])
    words = r"'block1_unit0_bn1/moving_variance' must be at most 65504 for float16. Received: 70000.*dtype='float32'"
    with pytest.raises(ValueError, match=words):
        models.save_weights(model, path)
    models.save_weights(model, path, "float32")
    norm.set_weights([gamma, beta, mean, np.full_like(variance, np.nan)])
    with pytest.raises(ValueError, match="'block1_unit0_bn1/moving_variance' must be finite"):
        models.save_weights(model, path, "float32")
    assert small(weights=path).get_layer("block1_unit0_bn1").get_weights()[3][0] == 7e4


@pytest.fixture(params=["weights.h5", "keras"])
def write(request, tmp_path):
    """Return a function that writes a model in one of the two formats and returns the path."""

    def write(model):
        path = tmp_path / f"a.{request.param}"
        model.save_weights(path) if request.param == "weights.h5" else model.save(path)
        return path

    return write


def test_load_weights_rejects_other_networks(write):
    with pytest.raises(ValueError, match=r"a\.\w+.*does not match resnet8: expected \d+ arrays, .*'resnet14'"):
        small("resnet8", weights=write(small("resnet14")))
    # The same layers with other widths: the first variable that differs is named with both shapes.
    words = r"wrn_16_2: expected 70 arrays, received 69.*block1_unit0.*The file is of 'wrn_16_1'. Build that network"
    with pytest.raises(ValueError, match=words):
        small("wrn_16_2", weights=write(small("wrn_16_1")))
    with pytest.raises(
        ValueError, match=r"'stem_conv/\w+' of shape \(3, 3, 1, 16\) is expected .* shape \(3, 3, 3, 16\)"
    ):
        small("resnet8", weights=write(models.build("resnet8", 10, input_shape=(8, 8, 3))))


def test_load_weights_rejects_other_class_counts(write):
    with pytest.raises(ValueError, match=r"expected 10 classes. Received: 7 classes. Pass `classes`"):
        small("resnet8", weights=write(small("resnet8", classes=7)))


def test_load_weights_rejects_another_order(write):
    layer = keras.layers.Dense
    first = keras.Sequential([keras.Input((4,)), layer(4, name="a"), layer(4, name="b")], name="net")
    second = keras.Sequential([keras.Input((4,)), layer(4, name="b"), layer(4, name="a")], name="net")
    words = (
        r"does not match net: (its arrays are in another order|'b/0' of shape \(4, 4\) is expected in place of 'a/0')"
    )
    with pytest.raises(ValueError, match=words):
        load_weights(second, write(first))


def test_load_weights_rejects_more_layers(write):
    layer = keras.layers.Dense
    first = keras.Sequential([keras.Input((4,)), layer(4, name="a"), layer(4, name="b")], name="net")
    second = keras.Sequential([keras.Input((4,)), layer(4, name="a")], name="net")
    with pytest.raises(ValueError, match=r"expected 2 arrays, received 4, and 'b/\w+' is not part of"):
        load_weights(second, write(first))


@keras.saving.register_keras_serializable("test_zoo")
class Wrapper(keras.Model):
    """A model that wraps a student."""

    def __init__(self, student, **settings):
        super().__init__(**settings)
        self.student = student

    def call(self, x):
        return self.student(x)

    def get_config(self):
        return {"student": keras.saving.serialize_keras_object(self.student)}

    @classmethod
    def from_config(cls, config):
        return cls(keras.saving.deserialize_keras_object(config["student"]))


def test_load_weights_of_distiller_file_names_remedy(write):
    wrapper = Wrapper(small())
    wrapper(images())
    with pytest.raises(ValueError, match=r"write `?(distiller.student|its `student)` with .*save_weights"):
        small(weights=write(wrapper))


def test_load_weights_rejects_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"weight file '.*nowhere.weights.h5' for resnet8 does not exist"):
        small(weights=tmp_path / "nowhere.weights.h5")


def test_load_weights_rejects_other_file_types(tmp_path):
    (tmp_path / "a.pth").write_bytes(b"torch")
    with pytest.raises(ValueError, match=r"must be a '.weights.h5' or a '.keras' file.*a.pth"):
        small(weights=tmp_path / "a.pth")


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.999])
def test_load_weights_rejects_truncated_files(write, keep):
    path = write(small())
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(ValueError, match=r"a\.\w+.*is not a complete .*truncated.*again"):
        small(weights=path)


def test_load_weights_rejects_other_content(write):
    path = write(small())
    path.write_bytes(b"<html>not found</html>" * 100)
    with pytest.raises(ValueError, match=r"is not a complete .*again"):
        small(weights=path)


def test_load_weights_rejects_flipped_bytes(tmp_path):
    path = tmp_path / "a.keras"
    small().save(path)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4] = bytes(255 - byte for byte in content[middle : middle + 4])
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"is not a complete '.keras' file"):
        small(weights=path)
