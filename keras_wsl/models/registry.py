"""A registry of networks by name."""

import functools

from keras_wsl.argument_checks import check_positive_int, did_you_mean
from keras_wsl.models import keras_cv_backbones
from keras_wsl.models.lenet import lenet
from keras_wsl.models.mobilenet_v1 import mobilenet_v1
from keras_wsl.models.mobilenet_v2 import mobilenet_v2
from keras_wsl.models.resnet import bottleneck_resnet, resnet
from keras_wsl.models.shufflenet_v1 import shufflenet_v1
from keras_wsl.models.shufflenet_v2 import shufflenet_v2
from keras_wsl.models.vgg import vgg
from keras_wsl.models.weights import load_weights
from keras_wsl.models.wide_resnet import wide_resnet

_small = functools.partial(resnet, stem_filters=16, filters=(16, 32, 64))
_fourfold = functools.partial(resnet, stem_filters=32, filters=(64, 128, 256))

_NETWORKS = {
    "wrn_40_2": functools.partial(wide_resnet, depth=40, width=2),
    "wrn_40_1": functools.partial(wide_resnet, depth=40, width=1),
    "wrn_16_2": functools.partial(wide_resnet, depth=16, width=2),
    "wrn_16_1": functools.partial(wide_resnet, depth=16, width=1),
    "resnet8": functools.partial(_small, depth=8),
    "resnet14": functools.partial(_small, depth=14),
    "resnet20": functools.partial(_small, depth=20),
    "resnet32": functools.partial(_small, depth=32),
    "resnet44": functools.partial(_small, depth=44),
    "resnet56": functools.partial(_small, depth=56),
    "resnet110": functools.partial(_small, depth=110),
    "resnet8x4": functools.partial(_fourfold, depth=8),
    "resnet32x4": functools.partial(_fourfold, depth=32),
    "resnet50": functools.partial(bottleneck_resnet, units=(3, 4, 6, 3)),
    "vgg8": functools.partial(vgg, convolutions=1),
    "vgg13": functools.partial(vgg, convolutions=2),
    "shufflenet_v1": shufflenet_v1,
    "shufflenet_v2": shufflenet_v2,
    "mobilenet_v2": mobilenet_v2,
    "lenet5x8": functools.partial(lenet, width=8),
    "imagenet_resnet18": functools.partial(keras_cv_backbones.resnet, depth=18),
    "imagenet_resnet34": functools.partial(keras_cv_backbones.resnet, depth=34),
    "imagenet_resnet50": functools.partial(keras_cv_backbones.resnet, depth=50),
    "imagenet_mobilenet_v1": mobilenet_v1,
}
_KERAS_CV = "keras_cv:"


def names():
    """Return the names that `build` accepts, a tuple of strings."""
    return tuple(_NETWORKS)


def register(name):
    """Register a function that builds a network under a name, for `build` and the scripts. Use as a decorator.

    ```python
    @keras_wsl.models.register("tiny")
    def tiny(*, classes, input_shape, dtype=None, name):
        ...
        return keras.Model(inputs, logits, name=name)
    ```

    Losses on inner layers use the endpoints `block1`, `block2`, `block3` (and `block4`), `pooled` and `logits`.

    Args:
        name: String.

    Raises:
        ValueError: If another network has that name.
    """

    if not isinstance(name, str):
        raise ValueError(f"`name` must be a string. Received: {name!r}. Write @register('tiny') above the function.")

    def add(function):
        if _NETWORKS.get(name, function) is not function:
            raise ValueError(f"The network {name!r} is already registered. Use another name.")
        _NETWORKS[name] = function
        return function

    return add


def build(name, classes=None, weights=None, *, input_shape=None, dtype=None):
    """Build a network of the distillation papers, with new weights or those of a file.

    Layers, initial weights and endpoints are those of https://github.com/HobbitLong/RepDistiller. The endpoints are
    names of layers: `stem`, `block1`, `block2`, `block3`, `block1_preact`, `block2_preact`, `block3_preact`, `pooled`
    and `logits`. resnet50, vgg8, vgg13 and mobilenet_v2 also have `block4` and `block4_preact`. lenet5x8, from
    https://arxiv.org/abs/2301.12245, has `block1`, `block2`, `hidden1`, `hidden2`, `pooled` and `logits`.

    Networks whose names start with `imagenet_` have four blocks and torchvision's layers. The ResNets are built with
    classes of keras-cv. For any other backbone of keras-cv, pass the name of its preset, such as
    "keras_cv:efficientnetv2_b0_imagenet", which keras-cv downloads, or its directory. Its endpoints are `block1` and so
    on, `pooled`, `logits`.

    Args:
        name: One of `names()`, in which "wrn_40_2" has depth 40 and width 2; or "keras_cv:" and a preset.
        classes: Integer, the number of logits. Default: 100, or 1000 for networks for ImageNet.
        weights: Path of a `.weights.h5` file (of `save_weights` or Keras) or a `.keras` file of the same network.
            `None` for new weights, which depend on `keras.utils.set_random_seed`.
        input_shape: `(height, width, channels)`. Height and width may be `None`, except for the ShuffleNets and
            lenet5x8. Default: (32, 32, 3), or (224, 224, 3) for networks for ImageNet. Inputs are normalized floats.
        dtype: Policy of all layers but `logits`, which is float32; `None` for the global one.

    Returns:
        A functional `keras.Model` that maps `(batch, height, width, channels)` to logits, `(batch, classes)`.

    Raises:
        FileNotFoundError: If there is no file `weights`.
        ValueError: If the name is unknown, an argument is out of its range, or the file is damaged or does not match.
    """
    if isinstance(name, str) and name.startswith(_KERAS_CV):
        make = functools.partial(keras_cv_backbones.preset_classifier, name.removeprefix(_KERAS_CV))
    elif name in _NETWORKS:
        make = functools.partial(_NETWORKS[name], name=name)
    else:
        raise ValueError(
            f"Unknown network {name!r}. Expected one of {', '.join(_NETWORKS)}; or "
            f"'keras_cv:' and a preset of keras-cv.{did_you_mean(name, _NETWORKS)}"
        )
    size, count = (32, 100) if not name.startswith(("imagenet_", _KERAS_CV)) else (224, 1000)
    model = make(
        classes=check_positive_int(count if classes is None else classes, "classes"),
        input_shape=_validate_input_shape((size, size, 3) if input_shape is None else input_shape),
        dtype=dtype,
    )
    if weights is not None:
        load_weights(model, weights)
    return model


def _validate_input_shape(shape):
    """Validate `(height, width, channels)`, of which the first two may be `None`, and return it as a tuple."""
    if not isinstance(shape, (tuple, list)) or len(shape) != 3:
        raise ValueError(
            "`input_shape` must be (height, width, channels), such as (32, 32, 3), without the batch size. "
            f"Received: {shape!r}."
        )
    height, width = (side if side is None else check_positive_int(side, "input_shape") for side in shape[:2])
    return height, width, check_positive_int(shape[2], "input_shape")
