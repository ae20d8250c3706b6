"""Networks made of the backbones of keras-cv, https://github.com/keras-team/keras-cv, with named endpoints.

The models are flat and of Keras's own layers, so files of them need no keras-cv.
"""

import pathlib
import re

import keras
from keras import layers

from keras_wsl.models import blocks

# By depth: the blocks of the four stages, and their kind.
_RESNETS = {18: ((2, 2, 2, 2), "basic_block"), 34: ((3, 4, 6, 3), "basic_block"), 50: ((3, 4, 6, 3), "block")}
# What keras-cv's backbones call the layer before their first stage.
_STEMS = ("conv1_relu", "conv1_conv", "stem_activation", "stem_conv")
_ACTIVATIONS = (layers.Activation, layers.ReLU)
_LIBRARY = "keras_cv."
# By which inputs are normalized, as `data.imagenet` does.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
# Backbones of videos, point clouds or patches, whose layers fix a batch or a size once they are unrolled.
_OTHERS = ("CenterPillarBackbone", "MiTBackbone", "ViTDetBackbone", "VideoSwinBackbone")


def resnet(*, depth, classes, input_shape=(224, 224, 3), dtype=None, name=None):
    r"""ResNet-18, -34 or -50 for ImageNet: He et al., CVPR 2016, https://arxiv.org/abs/1512.03385, table 1.

    $$y = \mathrm{ReLU}(F(x) + s(x))$$

    keras-cv's network with the settings of torchvision's, whose weights it takes
    (`keras_wsl.models.convert_torchvision`): strided convolutions and the pooling are padded on every side, the
    bottleneck's stride is in its 3x3 convolution, batch normalization has epsilon 1e-5, kernels start as $N(0, 2 / (k^2
    c_{out}))$.
    Source: https://github.com/pytorch/vision/blob/main/torchvision/models/resnet.py.

    Layers: `stem` is after the first ReLU and before the pooling; `block1` to `block4` are what the last ReLU of
    their stage gives, `block1_preact` to `block4_preact` the sums before it; `pooled`, `logits`.

    Args:
        depth: 18, 34 or 50.
        classes: Integer.
        input_shape: `(height, width, channels)`; height and width may be `None`. The inputs are normalized floats.
        dtype: Policy of all layers but `logits`, which is float32; `None` for the global one.
        name: The model's name; `None` for "resnet34" and the like.

    Returns:
        A `keras.Model` that maps `(batch, height, width, channels)` to logits, `(batch, classes)`.

    Raises:
        ValueError: If there is no such depth.
    """
    if depth not in _RESNETS:
        raise ValueError(f"`depth` must be one of {tuple(_RESNETS)}. Received: {depth!r}.")
    units, kind = _RESNETS[depth]
    backbone = _library().ResNetBackbone(
        stackwise_filters=[64, 128, 256, 512],
        stackwise_blocks=list(units),
        stackwise_strides=[1, 2, 2, 2],
        include_rescaling=False,
        input_shape=tuple(input_shape),
        block_type=kind,
    )

    def clone(layer):
        config = layer.get_config()
        config["name"] = _resnet_name(layer.name, units)
        if dtype is not None:
            config["dtype"] = dtype
        if isinstance(layer, (layers.Conv2D, layers.MaxPooling2D)):
            config["data_format"] = "channels_last"
        if isinstance(layer, layers.BatchNormalization):
            config.update(epsilon=1e-5, momentum=0.9)
        if isinstance(layer, layers.Conv2D):
            config["kernel_initializer"] = keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal")
            unit = re.fullmatch(r"v2_stack_([123])_block1_([12])_conv", layer.name)
            if kind == "block" and unit:
                config["strides"] = 2 if unit[2] == "2" else 1
        if _strides(layer, config) > 1:
            config["padding"] = "valid"
        return layer.__class__.from_config(config)

    def call(layer, *args, **kwargs):
        if isinstance(layer, layers.Add):
            # Of a sum, the first summand is the residual branch, here and in the networks of Keras.
            return layer(args[0][::-1])
        pooling = isinstance(layer, layers.MaxPooling2D)
        size = (layer.pool_size if pooling else layer.kernel_size)[0] if hasattr(layer, "strides") else 1
        if size > 1 and layer.padding == "valid":
            # "same" would pad even sizes on the right and the bottom alone. Nothing is below 0 before the pooling.
            padding = layers.ZeroPadding2D(
                size // 2, data_format="channels_last", name=f"{layer.name}_padding", dtype=dtype
            )
            args = (padding(args[0]), *args[1:])
        return layer(*args, **kwargs)

    return _with_head(
        keras.models.clone_model(
            backbone,
            input_tensors=keras.Input(input_shape, name="image"),
            clone_function=clone,
            call_function=call,
        ),
        classes,
        dtype,
        name or f"resnet{depth}",
    )


def backbones():
    """The names that `backbone_classifier` takes: keras-cv's convolutional backbones, a tuple of strings."""
    library = _library()
    classes = {
        name: getattr(library, name) for name in dir(library) if name.endswith("Backbone") and name != "Backbone"
    }
    # The others are the names of presets, which keras-cv downloads.
    return tuple(name for name, cls in classes.items() if library.Backbone in cls.__bases__ and name not in _OTHERS)


def backbone_classifier(backbone, *, classes, input_shape=(224, 224, 3), dtype=None, name=None, **settings):
    """A backbone of keras-cv with new weights, a global mean and a linear layer; nothing is downloaded.

    Layers: `block1`, `block2` and so on are the levels of the backbone's pyramid, of which keras-cv says the names,
    else what its max poolings are given (VGG); `block1_preact` and so on, what the activation of a level is given,
    where that is a sum or a batch normalization; `stem` where the backbone has one before `block1`; `pooled`, `logits`.

    Args:
        backbone: One of `backbones()`, such as "EfficientNetV2Backbone".
        classes: Integer.
        input_shape: `(height, width, channels)`; height and width may be `None` where the backbone allows it. The
            inputs are normalized floats: keras-cv's own rescaling is off.
        dtype: Policy of all layers but `logits`, which is float32; `None` for the global one.
        name: The model's name; `None` for the backbone's.
        **settings: What the backbone's constructor takes, such as `stackwise_filters=[64, 128]`. keras-cv keeps those
            of the published sizes in its presets, which `preset_classifier` downloads.

    Returns:
        A functional `keras.Model` that maps `(batch, height, width, channels)` to logits, `(batch, classes)`.

    Raises:
        ValueError: If there is no such backbone, it refuses the settings or is not made of Keras's layers.
    """
    known = backbones()
    if backbone not in known:
        raise ValueError(
            f"keras-cv has no backbone {backbone!r} to build from settings. Choose one of {', '.join(known)}."
        )
    settings = {"include_rescaling": False, **settings}
    if backbone == "VGG16Backbone":
        settings.setdefault("include_top", False)
    try:
        model = getattr(_library(), backbone)(input_shape=tuple(input_shape), **settings)
    except TypeError as error:
        raise ValueError(f"{backbone} refuses the settings {sorted(settings)}: {error}.") from error
    return _classifier(model, classes, dtype, name)


def preset_classifier(preset, *, classes, input_shape=(224, 224, 3), load_weights=None, dtype=None, name=None):
    """A backbone of keras-cv from a preset, a global mean and a new linear layer.

    Endpoints are those of `backbone_classifier`. Inputs are normalized floats, by ImageNet's mean and standard
    deviation, as of all networks here. A preset that rescales pixels itself (`include_rescaling` in its configuration)
    gets what it expects: its rescaling is replaced by one of normalized pixels.

    Args:
        preset: Path of a preset's folder (`config.json` and perhaps weights), or the name of a preset of keras-cv,
            such as "resnet50_imagenet", which is downloaded from Kaggle where it is not in its cache.
        classes: Integer.
        input_shape: `(height, width, channels)`.
        load_weights: Whether the preset's weights are loaded; `None` where it has them.
        dtype: Policy of all layers but `logits`, which is float32; `None` for the global one.
        name: The model's name; `None` for the backbone's.

    Returns:
        A functional `keras.Model` that maps `(batch, height, width, channels)` to logits, `(batch, classes)`.

    Raises:
        ValueError: If there is no such preset, or it is not made of Keras's layers.
    """
    library = _library()
    preset = str(preset)
    presets = {
        key: getattr(library, backbone) for backbone in backbones() for key in getattr(library, backbone).presets
    }
    if "://" not in preset and preset not in presets and not pathlib.Path(preset, "config.json").is_file():
        raise ValueError(
            f"{preset!r} is neither a folder with a 'config.json' nor a preset of keras-cv. Choose one of "
            f"{', '.join(presets)}."
        )
    cls = presets.get(preset, library.Backbone)
    model = cls.from_preset(preset, load_weights=load_weights, input_shape=tuple(input_shape))
    return _classifier(model, classes, dtype, name)


def _library():
    """keras-cv's models, imported once they are needed: the import takes seconds, and brings TensorFlow."""
    import keras_cv

    return keras_cv.models


def _strides(layer, config):
    """The stride of a convolution or a pooling as an integer; 1 for other layers."""
    strides = config["strides"] if isinstance(layer, (layers.Conv2D, layers.MaxPooling2D)) else 1
    return strides if isinstance(strides, int) else max(strides)


def _resnet_name(name, units):
    """The name here of a layer of keras-cv's ResNet."""
    if not name.startswith("v2_stack"):
        return {"conv1_relu": "stem"}.get(name, name.replace("conv1", "stem").replace("pool1", "stem"))
    stage, unit, part = re.fullmatch(r"v2_stack_(\d+)_block(\d+)_(\w+)", name).groups()
    stage, last = int(stage) + 1, int(unit) == units[int(stage)]
    if last and part in ("add", "out"):
        return f"block{stage}_preact" if part == "add" else f"block{stage}"
    part = {"add": "sum", "out": "relu"}.get(part, part)
    number, _, kind = part.rpartition("_")
    part = f"shortcut_{kind}" if number == "0" else f"{kind}{number}"
    return f"block{stage}_unit{int(unit) - 1}_{part}"


def _with_head(model, classes, dtype, name):
    """The model on to `pooled` and `logits`."""
    x = model.output
    logits = blocks.head(x, classes, bias_initializer=blocks.uniform(x.shape[-1]), dtype=dtype)
    return keras.Model(model.input, logits, name=name)


def _classifier(backbone, classes, dtype, name):
    """The backbone as a flat model with endpoints, and its head; the weights are copies."""
    if not isinstance(getattr(backbone, "output", None), keras.KerasTensor) or len(backbone.output.shape) != 4:
        raise ValueError(f"{type(backbone).__name__} does not give one map of an image, so it has no logits here.")
    flat, renamed = _unrolled(backbone)
    levels = [renamed.get(level, level) for level in backbone.pyramid_level_inputs.values()]
    endpoints = _endpoint_names(flat, levels, [renamed.get(stem, stem) for stem in _STEMS])
    # An endpoint must be a layer; what an operation gives that is none goes through one.
    operations = {operation.name: operation for operation in flat.operations}
    names = {name: end for name, end in endpoints.items() if isinstance(operations[name], layers.Layer)}
    passed_on = {f"{end}_operation": end for name, end in endpoints.items() if name not in names}
    names.update({name: f"{end}_operation" for name, end in endpoints.items() if name not in names})
    taken = {*names.values(), *passed_on.values(), "pooled", "logits", "image"}
    for operation in flat.operations:
        if operation.name not in names:
            new = operation.name
            while new in taken:
                new += "_layer"
            names[operation.name] = new
            taken.add(new)
    copies = []

    def clone(operation):
        config = operation.get_config()
        config["name"] = names[operation.name]
        if dtype is not None and isinstance(operation, layers.Layer):
            config["dtype"] = dtype
        if isinstance(operation, layers.Rescaling):
            config.update(_of_normalized(config["scale"], config["offset"]))
        if type(getattr(operation, "activation", None)).__name__ == "HardSigmoidActivation":
            config["activation"] = "hard_sigmoid"  # The same function; keras-cv's layer cannot be read from a file.
        copy = operation.__class__.from_config(config)
        copies.append((operation, copy))
        return copy

    def call(operation, *args, **kwargs):
        outputs = operation(*args, **kwargs)
        if operation.name in passed_on:
            outputs = layers.Identity(name=passed_on[operation.name], dtype=dtype)(outputs)
        return outputs

    model = keras.models.clone_model(
        flat,
        input_tensors=keras.Input(backbone.input.shape[1:], name="image"),
        clone_function=clone,
        call_function=call,
    )
    for original, copy in copies:
        if isinstance(original, layers.Layer):
            copy.set_weights(original.get_weights())
    return _with_head(model, classes, dtype, name or backbone.name)


def _of_normalized(scale, offset):
    """The settings of a rescaling of pixels from 0 to 255, once it is given normalized ones instead."""
    return {
        "scale": [scale * 255 * std for std in STD],
        "offset": [scale * 255 * mean + offset for mean in MEAN],
    }


def _unrolled(model):
    """The same graph, with what keras-cv's own layers and nested models do inside as layers of it.

    Returns:
        The flat model, of the same layers and so the same weights, and a dict of an unrolled layer's name to that of
        the operation that gives its output.
    """
    renamed = {}

    def call(layer, *args, **kwargs):
        if isinstance(layer, keras.Sequential):
            outputs = args[0]
            for inner in layer.layers:
                outputs = call(inner, outputs)
        elif _is_nested(layer):
            kwargs.pop("training", None)
            outputs = layer.call(*args, **kwargs)
        else:
            return layer(*args, **kwargs)
        renamed[layer.name] = outputs._keras_history.operation.name
        return outputs

    while any(_is_nested(operation) for operation in model.operations):
        count = len(renamed)
        model = keras.models.clone_model(model, clone_function=lambda layer: layer, call_function=call)
        if len(renamed) == count:
            break
    for name in renamed:
        while renamed[name] in renamed:
            renamed[name] = renamed[renamed[name]]
    strange = sorted({type(operation).__name__ for operation in model.operations if _is_nested(operation)})
    if strange:
        raise ValueError(f"{model.name} has layers that are not Keras's own and cannot be unrolled: {strange}.")
    return model, renamed


def _is_nested(operation):
    # A lambda cannot be read back from a file; what it computes can.
    return isinstance(operation, (keras.Model, layers.Lambda)) or type(operation).__module__.startswith(_LIBRARY)


def _before(operation):
    """The operations whose outputs an operation of a flat model is given."""
    return [tensor._keras_history.operation for tensor in operation._inbound_nodes[-1].arguments.keras_tensors]


def _endpoint_names(model, levels, stems):
    """Endpoints of a flat model: `{operation's name: endpoint's name}`."""
    operations = {operation.name: operation for operation in model.operations}
    if not levels:
        pools = [operation for operation in operations.values() if isinstance(operation, layers.MaxPooling2D)]
        levels = [_before(pool)[0].name for pool in pools]
    names = {level: f"block{index}" for index, level in enumerate(levels, start=1)}
    for level, name in tuple(names.items()):
        if isinstance(operations[level], _ACTIVATIONS) or not isinstance(operations[level], layers.Layer):
            before = _before(operations[level])[0]
            if isinstance(before, (layers.Add, layers.BatchNormalization)) and before.name not in names:
                names[before.name] = f"{name}_preact"
    stem = next((name for name in stems if name in operations), None)
    if stem is not None and stem not in names:
        names[stem] = "stem"
    return names
