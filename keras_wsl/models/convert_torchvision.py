"""Convert weights of PyTorch networks: torchvision's, https://github.com/pytorch/vision, and those of the papers' code.

`torch` and `safetensors` are needed only for their files. No pickled objects except arrays are read.
"""

import pathlib
import pickle
import re
import zipfile

import numpy as np
from keras import layers

from keras_wsl.models.mobilenet_v1 import ENDS

_SUFFIXES = (".pth", ".pt", ".safetensors", ".npz")


def load_torchvision(model, path):
    """Set a network's weights to those of a file of PyTorch arrays.

    Args:
        model: A network that `convert` accepts.
        path: Path of a `.pth` or `.pt` file of `torch.save`, a `.safetensors` file or an `.npz` file.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If the package that reads the file is not installed.
        ValueError: If the file is of another type, damaged, contains more than arrays, or is of another network.
    """
    convert(read(path), model)


def read(path):
    """Read the arrays of a file by their names in PyTorch.

    Args:
        path: Path of a `.pth` or `.pt` file of `torch.save`, a `.safetensors` file or an `.npz` file.

    Returns:
        A dict of strings to NumPy arrays.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If the package that reads the file is not installed.
        ValueError: If the file is of another type, is damaged or contains more than arrays.
    """
    path = pathlib.Path(path)
    if path.suffix not in _SUFFIXES:
        raise ValueError(f"A file of PyTorch arrays must end in one of {_SUFFIXES}. Received: {str(path)!r}.")
    if not path.is_file():
        raise FileNotFoundError(f"The file {str(path)!r} does not exist.")
    state = {".safetensors": _read_safetensors, ".npz": _read_npz}.get(path.suffix, _read_torch)(path)
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(hasattr(value, "shape") for value in state.values()):
        raise ValueError(f"{str(path)!r} must contain a dict of names to arrays, such as `model.state_dict()`.")
    return {name: value if isinstance(value, np.ndarray) else _to_numpy(value) for name, value in state.items()}


def convert(state, model):
    """Set a network's weights to PyTorch's.

    A kernel (out, in, height, width) becomes (height, width, in, out), a depthwise kernel (channels, 1, height, width)
    becomes (height, width, channels, 1), and a dense kernel is transposed. `num_batches_tracked` is ignored, and a
    prefix `module.` of all names is removed.

    Args:
        state: A dict of names to arrays. Names are torchvision's, such as `layer1.0.conv1.weight`, or those of the
            MobileNet of https://github.com/bellymonster/Weighted-Soft-Label-Distillation, such as `model.1.0.weight`.
        model: A network of `keras_wsl.models.keras_cv_backbones.resnet`, `resnet` (of https://github.com/HobbitLong/RepDistiller)
            or `mobilenet_v1`.

    Raises:
        ValueError: If the arrays are of another network or another number of classes. Then no weight is changed.
    """
    if state and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    state = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    expected = {}
    for layer in model.layers:
        if layer.weights:
            prefix = _get_torch_name(model, layer.name)
            for suffix, variable, axes in _list_variables(layer):
                expected[f"{prefix}.{suffix}"] = (variable, axes)
    for name, (variable, axes) in expected.items():
        shape = _get_torch_shape(variable, axes)
        if name not in state:
            raise ValueError(
                f"The arrays do not match {model.name}: {name!r} of shape {shape} is missing. Expected {len(expected)} "
                f"arrays. Received: {len(state)}. Convert them to their own network."
            )
        received = tuple(state[name].shape)
        if received != shape and name.startswith("fc.") and received[1:] == shape[1:]:
            raise ValueError(
                f"The arrays must be of {shape[0]} classes, as {model.name} is. Received: {received[0]} classes. Build "
                f"the network with `classes={received[0]}`."
            )
        if received != shape:
            raise ValueError(
                f"The arrays do not match {model.name}: {name!r} must have shape {shape}. Received: {received}."
            )
    if extra := [name for name in state if name not in expected]:
        raise ValueError(
            f"The arrays do not match {model.name}: {extra[0]!r} is not part of it. Expected {len(expected)} arrays. "
            f"Received: {len(state)}. Convert them to their own network."
        )
    for name, (variable, axes) in expected.items():
        variable.assign(np.transpose(np.asarray(state[name]), axes))


def _list_variables(layer):
    """Return a layer's weights: PyTorch's name, the variable, and the permutation of axes of PyTorch's array."""
    if isinstance(layer, layers.BatchNormalization):
        names = ("weight", "bias", "running_mean", "running_var")
        variables = (layer.gamma, layer.beta, layer.moving_mean, layer.moving_variance)
        return [(name, variable, (0,)) for name, variable in zip(names, variables)]
    # In a depthwise kernel, the channels stay before the 1.
    axes = (2, 3, 0, 1) if isinstance(layer, layers.DepthwiseConv2D) else (2, 3, 1, 0)
    if isinstance(layer, layers.Dense):
        axes = (1, 0)
    bias = [("bias", layer.bias, (0,))] if layer.bias is not None else []
    return [("weight", layer.kernel, axes), *bias]


def _get_torch_shape(variable, axes):
    """Return the shape of PyTorch's array of a variable."""
    return tuple(int(variable.shape[axes.index(axis)]) for axis in range(len(axes)))


def _get_torch_name(model, name):
    """Return PyTorch's name of a layer."""
    if name == "logits":
        return "fc"
    mobilenet = any(layer.name == "unit1_depthwise" for layer in model.layers)
    if name in ("stem_conv", "stem_bn"):
        kind = name.removeprefix("stem_")
        return {"conv": "model.0.0", "bn": "model.0.1"}[kind] if mobilenet else f"{kind}1"
    if unit := re.fullmatch(r"unit(\d+)_(depthwise|bn1|conv|bn2)", name):
        return f"model.{unit[1]}.{ {'depthwise': 0, 'bn1': 1, 'conv': 3, 'bn2': 4}[unit[2]] }"
    if mobilenet and (end := re.fullmatch(r"block(\d)_preact", name)):
        return f"model.{ENDS[int(end[1]) - 1]}.4"
    if unit := re.fullmatch(r"block(\d+)_unit(\d+)_(conv\d|bn\d|shortcut_conv|shortcut_bn)", name):
        part = {"shortcut_conv": "downsample.0", "shortcut_bn": "downsample.1"}.get(unit[3], unit[3])
        return f"layer{unit[1]}.{unit[2]}.{part}"
    raise ValueError(
        f"`model` must be a ResNet or a MobileNet-v1 of `keras_wsl.models.build`. Received: {model.name}, whose layer "
        f"{name!r} has no name in PyTorch's networks."
    )


def _to_numpy(tensor):
    """Convert a torch tensor to NumPy. Half floats become float32, because NumPy has no bfloat16."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def _read_torch(path):
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            f"PyTorch is needed to read {str(path)!r}. `pip install torch`, or save the arrays as `.safetensors` or "
            "`.npz`."
        ) from error
    try:
        return torch.load(path, weights_only=True, map_location="cpu")
    except (RuntimeError, EOFError, OSError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{str(path)!r} is not a complete file of `torch.save(model.state_dict())`: it is damaged, of another type "
            "or contains more than arrays."
        ) from error


def _read_safetensors(path):
    try:
        import safetensors
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(f"safetensors is needed to read {str(path)!r}: `pip install safetensors`.") from error
    try:
        return safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, KeyError) as error:  # KeyError: a dtype that NumPy lacks.
        raise ValueError(f"{str(path)!r} is not a complete '.safetensors' file of NumPy's dtypes: {error}.") from error


def _read_npz(path):
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{str(path)!r} is not a complete '.npz' file of arrays: {error}.") from error
