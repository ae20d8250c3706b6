"""Conversion of PyTorch weights: outputs equal PyTorch's, and invalid files are rejected."""

import keras
import numpy as np
import pytest

from keras_wsl import models
from keras_wsl.models import keras_cv_backbones, mobilenet_v1
from keras_wsl.models.convert_torchvision import convert, load_torchvision
from keras_wsl.models.convert_torchvision import read as read_file


def conv(out, channels, size):
    return {"weight": (out, channels, size, size)}


def norm(size):
    return dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (size,)) | {"num_batches_tracked": ()}


def resnet_shapes(depth, classes):
    """Return torchvision's names and shapes, from its code."""
    units, wide = {18: ((2, 2, 2, 2), 1), 34: ((3, 4, 6, 3), 1), 50: ((3, 4, 6, 3), 4)}[depth]
    parts, channels = {"conv1": conv(64, 3, 7), "bn1": norm(64)}, 64
    for stage, count in enumerate(units):
        filters = 64 * 2**stage
        for unit in range(count):
            name, out = f"layer{stage + 1}.{unit}", filters * wide
            shapes = [(filters, channels, 3), (filters, filters, 3)]
            if wide == 4:
                shapes = [(filters, channels, 1), (filters, filters, 3), (out, filters, 1)]
            for index, shape in enumerate(shapes, start=1):
                parts |= {f"{name}.conv{index}": conv(*shape), f"{name}.bn{index}": norm(shape[0])}
            if channels != out or (unit == 0 and stage > 0):
                parts |= {f"{name}.downsample.0": conv(out, channels, 1), f"{name}.downsample.1": norm(out)}
            channels = out
    parts["fc"] = {"weight": (classes, channels), "bias": (classes,)}
    return {f"{name}.{key}": shape for name, part in parts.items() for key, shape in part.items()}


PLAN = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]


def mobilenet_shapes(classes):
    parts, channels = {"model.0.0": conv(32, 3, 3), "model.0.1": norm(32)}, 32
    for index, (out, _) in enumerate(PLAN, start=1):
        name = f"model.{index}"
        parts |= {f"{name}.0": conv(channels, 1, 3), f"{name}.1": norm(channels)}
        parts |= {f"{name}.3": conv(out, channels, 1), f"{name}.4": norm(out)}
        channels = out
    parts["fc"] = {"weight": (classes, channels), "bias": (classes,)}
    return {f"{name}.{key}": shape for name, part in parts.items() for key, shape in part.items()}


def random_state(shapes, seed=0):
    """Return random weights and statistics, none near the identity, with outputs of moderate size."""
    generator, state = np.random.default_rng(seed), {}
    for name, shape in shapes.items():
        value = generator.normal(size=shape) * 0.2
        if name.endswith("running_var") or (len(shape) == 1 and name.endswith("weight")):
            value = generator.uniform(0.5, 1.5, shape)
        elif len(shape) == 4:
            value = generator.normal(size=shape) * (2 / np.prod(shape[1:])) ** 0.5
        state[name] = np.asarray(value, "int64" if name.endswith("tracked") else "float32")
    return state


class Torch:
    """Compute the forward passes in PyTorch, from torchvision's and the reference's code."""

    def __init__(self, state):
        self.torch = pytest.importorskip("torch")
        self.state = {name: self.torch.from_numpy(value) for name, value in state.items()}

    def conv_bn(self, x, conv, norm, stride=1, groups=1):
        functional, weight = self.torch.nn.functional, self.state[f"{conv}.weight"]
        x = functional.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2, groups=groups)
        parts = (self.state[f"{norm}.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
        return functional.batch_norm(x, *parts, training=False, eps=1e-5)

    def logits(self, x):
        return self.torch.nn.functional.linear(x.mean((2, 3)), self.state["fc.weight"], self.state["fc.bias"]).numpy()

    def resnet(self, x):
        torch = self.torch
        x = torch.relu(self.conv_bn(x, "conv1", "bn1", 2))
        x = torch.nn.functional.max_pool2d(x, 3, 2, 1)
        for name in dict.fromkeys(".".join(key.split(".")[:2]) for key in self.state if key.startswith("layer")):
            stride = 2 if name in ("layer2.0", "layer3.0", "layer4.0") else 1
            count = sum(key.startswith(f"{name}.conv") for key in self.state)
            y = x
            for index in range(1, count + 1):
                here = stride if index == count - 1 else 1  # The first 3x3: of two the first, of three the second.
                y = self.conv_bn(y, f"{name}.conv{index}", f"{name}.bn{index}", here)
                y = torch.relu(y) if index < count else y
            if f"{name}.downsample.0.weight" in self.state:
                x = self.conv_bn(x, f"{name}.downsample.0", f"{name}.downsample.1", stride)
            x = torch.relu(x + y)
        return self.logits(x)

    def mobilenet(self, x):
        x = self.torch.relu(self.conv_bn(x, "model.0.0", "model.0.1", 2))
        for index, (_, stride) in enumerate(PLAN, start=1):
            name = f"model.{index}"
            x = self.torch.relu(self.conv_bn(x, f"{name}.0", f"{name}.1", stride, groups=x.shape[1]))
            x = self.torch.relu(self.conv_bn(x, f"{name}.3", f"{name}.4"))
        return self.logits(x)


def images(count=2, size=64):
    return np.random.default_rng(1).normal(size=(count, size, size, 3)).astype("float32")


def check(actual, expected):
    assert expected.std() > 1e-3
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("depth", [18, 34, pytest.param(50, marks=pytest.mark.slow)])
def test_convert_resnet_matches_torch(depth):
    state = random_state(resnet_shapes(depth, 7))
    model = keras_cv_backbones.resnet(depth=depth, classes=7, input_shape=(64, 64, 3))
    convert(state, model)
    actual = keras.ops.convert_to_numpy(model(images()))
    reference = Torch(state)
    x = reference.torch.from_numpy(images().transpose(0, 3, 1, 2).copy())
    check(actual, reference.resnet(x))
    try:
        import torchvision
    except (ImportError, RuntimeError):
        return
    network = getattr(torchvision.models, f"resnet{depth}")(weights=None, num_classes=7).eval()
    network.load_state_dict(reference.state)
    with reference.torch.no_grad():
        check(actual, network(x).numpy())


def test_convert_mobilenet_matches_torch():
    state = random_state(mobilenet_shapes(7))
    model = mobilenet_v1.mobilenet_v1(classes=7, input_shape=(64, 64, 3))
    convert(state, model)
    reference = Torch(state)
    expected = reference.mobilenet(reference.torch.from_numpy(images().transpose(0, 3, 1, 2).copy()))
    check(keras.ops.convert_to_numpy(model(images())), expected)


@pytest.fixture(scope="module")
def network():
    return mobilenet_v1.mobilenet_v1(classes=7, input_shape=(32, 32, 3))


@pytest.fixture
def state():
    return random_state(mobilenet_shapes(7))


def test_read_supports_all_file_types(network, state, tmp_path):
    state.pop("model.0.1.num_batches_tracked")
    np.savez(tmp_path / "a.npz", **state)
    paths = ["a.npz"]
    try:
        from safetensors.numpy import save_file

        save_file(state, tmp_path / "a.safetensors")
        paths.append("a.safetensors")
        import torch

        tensors = {f"module.{name}": torch.from_numpy(value) for name, value in state.items()}
        torch.save(tensors, tmp_path / "a.pth")
        torch.save({"state_dict": tensors, "epoch": 3}, tmp_path / "a.pt")
        paths += ["a.pth", "a.pt"]
    except ImportError:
        pass
    for path in paths:
        network.set_weights([np.zeros(v.shape) for v in network.weights])
        load_torchvision(network, tmp_path / path)
        kernel = network.get_layer("unit3_depthwise").get_weights()[0]
        np.testing.assert_array_equal(kernel[:, :, 5, 0], state["model.3.0.weight"][5, 0])
        np.testing.assert_array_equal(network.get_layer("logits").get_weights()[0], state["fc.weight"].T)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda s: s.pop("model.5.3.weight"), "'model.5.3.weight' of shape \\(256, 256, 1, 1\\) is missing"),
        (lambda s: s.update({"model.5.3.bias": np.zeros(256)}), "'model.5.3.bias' is not part of it"),
        (lambda s: s.update({"model.1.1.bias": np.zeros(3)}), "shape \\(32,\\). Received: \\(3,\\)"),
        (
            lambda s: s.update({"fc.weight": np.zeros((10, 1024))}),
            "must be of 7 classes, as mobilenet_v1 is. Received: 10 classes",
        ),
    ],
)
def test_convert_rejects_other_arrays(network, state, change, words):
    change(state)
    before = network.get_weights()
    with pytest.raises(ValueError, match=words):
        convert(state, network)
    for old, new in zip(before, network.get_weights()):
        np.testing.assert_array_equal(old, new)


def test_convert_rejects_networks_without_torch_names(state):
    with pytest.raises(ValueError, match="has no name in PyTorch"):
        convert(state, models.build("wrn_16_1", 10))


def test_read_rejects_invalid_files(tmp_path):
    with pytest.raises(ValueError, match="must end in one of"):
        read_file(tmp_path / "a.pkl")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_file(tmp_path / "a.npz")
    for name in ("a.npz", "a.safetensors", "a.pth"):
        (tmp_path / name).write_bytes(b"PK\x03\x04 but no more")
        with pytest.raises((ValueError, ImportError), match="is not a complete|pip install"):
            read_file(tmp_path / name)
    np.savez(tmp_path / "b.npz", a=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="is not a complete"):
        read_file(tmp_path / "b.npz")


class Harmful:
    def __reduce__(self):
        return (print, ("unpickled",))


def test_read_does_not_unpickle(tmp_path, capsys):
    torch = pytest.importorskip("torch")
    torch.save({"fc.weight": Harmful()}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="contains more than arrays"):
        read_file(tmp_path / "a.pth")
    assert "unpickled" not in capsys.readouterr().out
    torch.save({"fc.weight": 3}, tmp_path / "b.pth")
    with pytest.raises(ValueError, match="dict of names to arrays"):
        read_file(tmp_path / "b.pth")
