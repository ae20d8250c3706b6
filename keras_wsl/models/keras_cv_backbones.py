"""Build networks from backbones of keras-cv, https://github.com/keras-team/keras-cv, with named endpoints.

The models are flat and have only layers of Keras, so their files do not need keras-cv.
"""

import pathlib
import re

import keras
from keras import layers

from keras_wsl.models import blocks

# By depth: the number of blocks of the four stages, and their type.
_RESNETS = {18: ((2, 2, 2, 2), "basic_block"), 34: ((3, 4, 6, 3), "basic_block"), 50: ((3, 4, 6, 3), "block")}
# Names in keras-cv's backbones of the layer before the first stage.
_STEMS = ("conv1_relu", "conv1_conv", "stem_activation", "stem_conv")
_ACTIVATIONS = (layers.Activation, layers.ReLU)
_LIBRARY = "keras_cv."
# The normalization of inputs, which is that of `data.imagenet`.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
# Backbones for videos, point clouds or patches, whose unrolled layers have a fixed batch size or image size.
_UNSUPPORTED = ("CenterPillarBackbone", "MiTBackbone", "ViTDetBackbone", "VideoSwinBackbone")


def resnet(*, depth, classes, input_shape=(224, 224, 3), dtype=None, name=None):
    r"""Build ResNet-18, -34 or -50 for ImageNet: He et al., CVPR 2016, https://arxiv.org/abs/1512.03385, table 1.

    $$y = \mathrm{ReLU}(F(x) + s(x))$$

    This is keras-cv's network with the arguments of torchvision's, so that it can load torchvision's weights with
    `keras_wsl.models.convert_torchvision`: strided convolutions and the pooling are padded on every side, the
    bottleneck's stride is in its 3x3 convolution, batch normalization has epsilon 1e-5, and the initializer of kernels
    is $N(0, 2 / (k^2 c_{out}))$.
    Source: https://github.com/pytorch/vision/blob/main/torchvision/models/resnet.py.

    Endpoints: `stem` is after the first ReLU and before the pooling; `block1` to `block4` are the last ReLU of their
    stage; `block1_preact` to `block4_preact` the sums before it; `pooled`; `logits`.

    Args:
        depth: 18, 34 or 50.
        classes: Integer.
        input_shape: `(height, width, channels)`. Height and width may be `None`. Inputs are normalized floats.
        dtype: Dtype policy of all layers except `logits`, which is float32. `None` for the global policy.
        name: The model's name. Default: "resnet" and the depth.

    Returns:
        A `keras.Model` that maps `(batch, height, width, channels)` to logits, `(batch, classes)`.

    Raises:
        ValueError: If there is no such depth.
    """
    if depth not in _RESNETS:
        raise ValueError(f"`depth` must be one of {tuple(_RESNETS)}. Received: {depth!r}.")
    units, block_type = _RESNETS[depth]
    backbone = _import_keras_cv().ResNetBackbone(
        stackwise_filters=[64, 128, 256, 512],
        stackwise_blocks=list(units),
        stackwise_strides=[1, 2, 2, 2],
        include_rescaling=False,
        input_shape=tuple(input_shape),
        block_type=block_type,
    )

    def clone(layer):
        config = layer.get_config()
        config["name"] = _rename_resnet_layer(layer.name, units)
        if dtype is not None:
            config["dtype"] = dtype
        if isinstance(layer, (layers.Conv2D, layers.MaxPooling2D)):
            config["data_format"] = "channels_last"
        if isinstance(layer, layers.BatchNormalization):
            config.update(epsilon=1e-5, momentum=0.9)
        if isinstance(layer, layers.Conv2D):
            config["kernel_initializer"] = keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal")
            unit = re.fullmatch(r"v2_stack_([123])_block1_([12])_conv", layer.name)
            if block_type == "block" and unit:
                config["strides"] = 2 if unit[2] == "2" else 1
        if _get_stride(layer, config) > 1:
            config["padding"] = "valid"
        return layer.__class__.from_config(config)

    def call(layer, *args, **kwargs):
        if isinstance(layer, layers.Add):
            # The first term of a sum is the residual branch, here and in the networks of Keras.
            return layer(args[0][::-1])
        pooling = isinstance(layer, layers.MaxPooling2D)
        size = (layer.pool_size if pooling else layer.kernel_size)[0] if hasattr(layer, "strides") else 1
        if size > 1 and layer.padding == "valid":
            # "same" would pad even sizes only on the right and the bottom. Inputs of the pooling are not negative.
            padding = layers.ZeroPadding2D(
                size // 2, data_format="channels_last", name=f"{layer.name}_padding", dtype=dtype
            )
            args = (padding(args[0]), *args[1:])
        return layer(*args, **kwargs)

    return _add_head(
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
    """Return the names of keras-cv's convolutional backbones, which `backbone_classifier` accepts: a tuple."""
    library = _import_keras_cv()
    classes = {
        name: getattr(library, name) for name in dir(library) if name.endswith("Backbone") and name != "Backbone"
    }
    # Other classes are named for presets, which keras-cv downloads.
    return tuple(
        name for name, cls in classes.items() if library.Backbone in cls.__bases__ and name not in _UNSUPPORTED
    )


def backbone_classifier(backbone, *, classes, input_shape=(224, 224, 3), dtype=None, name=None, **kwargs):
    """Build a backbone of keras-cv with new weights, a global mean and a linear layer. Downloads nothing.

    Endpoints: `block1`, `block2` and so on are the levels of the backbone's pyramid, as keras-cv names them, or else
    the inputs of its max poolings (VGG); `block1_preact` and so on are the inputs of the levels' activations, if they
    are sums or batch normalizations; `stem`, if the backbone has one before `block1`; `pooled`; `logits`.

    Args:
        backbone: One of `backbones()`, such as "EfficientNetV2Backbone".
        classes: Integer.
        input_shape: `(height, width, channels)`. Height and width may be `None` if the backbone allows it. Inputs are
            normalized floats: keras-cv's own rescaling is off.
        dtype: Dtype policy of all layers except `logits`, which is float32. `None` for the global policy.
        name: The model's name. Default: the backbone's name.
        **kwargs: Arguments of the backbone's constructor, such as `stackwise_filters=[64, 128]`. keras-cv has those of
            the published sizes in its presets, which `preset_classifier` downloads.

    Returns:
        A functional `keras.Model` that maps `(batch, height, width, channels)` to logits, `(batch, classes)`.

    Raises:
        ValueError: If there is no such backbone, it refuses the arguments or has layers that are not Keras's.
    """
    known = backbones()
    if backbone not in known:
        raise ValueError(f"Unknown backbone {backbone!r}. Expected one of {', '.join(known)}.")
    kwargs = {"include_rescaling": False, **kwargs}
    if backbone == "VGG16Backbone":
        kwargs.setdefault("include_top", False)
    try:
        model = getattr(_import_keras_cv(), backbone)(input_shape=tuple(input_shape), **kwargs)
    except TypeError as error:
        raise ValueError(f"{backbone} does not accept the arguments {sorted(kwargs)}: {error}.") from error
    return _make_classifier(model, classes, dtype, name)


def preset_classifier(preset, *, classes, input_shape=(224, 224, 3), load_weights=None, dtype=None, name=None):
    """Build a backbone of keras-cv from a preset, a global mean and a new linear layer.

    Endpoints are those of `backbone_classifier`. Inputs are floats that are normalized by ImageNet's mean and standard
    deviation. In a preset that rescales pixels itself (`include_rescaling` in its configuration), the rescaling is
    replaced by one of normalized pixels, so that the backbone has the same inputs.

    Args:
        preset: Path of a preset's directory (`config.json` and optionally weights), or the name of a preset of
            keras-cv, such as "resnet50_imagenet", which is downloaded from Kaggle if it is not cached.
        classes: Integer.
        input_shape: `(height, width, channels)`.
        load_weights: Whether to load the preset's weights. `None` to load them if it has any.
        dtype: Dtype policy of all layers except `logits`, which is float32. `None` for the global policy.
        name: The model's name. Default: the backbone's name.

    Returns:
        A functional `keras.Model` that maps `(batch, height, width, channels)` to logits, `(batch, classes)`.

    Raises:
        ValueError: If there is no such preset, or it has layers that are not Keras's.
    """
    library = _import_keras_cv()
    preset = str(preset)
    presets = {
        key: getattr(library, backbone) for backbone in backbones() for key in getattr(library, backbone).presets
    }
    if "://" not in preset and preset not in presets and not pathlib.Path(preset, "config.json").is_file():
        raise ValueError(
            f"`preset` must be a directory with a 'config.json' or a preset of keras-cv, one of {', '.join(presets)}. "
            f"Received: {preset!r}."
        )
    cls = presets.get(preset, library.Backbone)
    model = cls.from_preset(preset, load_weights=load_weights, input_shape=tuple(input_shape))
    return _make_classifier(model, classes, dtype, name)


def _import_keras_cv():
    """Return keras-cv's models. The import takes seconds and imports TensorFlow."""
    import keras_cv

    return keras_cv.models


def _get_stride(layer, config):
    """Return the stride of a convolution or a pooling as an integer, 1 for other layers."""
    strides = config["strides"] if isinstance(layer, (layers.Conv2D, layers.MaxPooling2D)) else 1
    return strides if isinstance(strides, int) else max(strides)


def _rename_resnet_layer(name, units):
    """Return this package's name of a layer of keras-cv's ResNet."""
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


def _add_head(model, classes, dtype, name):
    """Return the model with `pooled` and `logits`."""
    x = model.output
    logits = blocks.head(x, classes, bias_initializer=blocks.uniform(x.shape[-1]), dtype=dtype)
    return keras.Model(model.input, logits, name=name)


def _make_classifier(backbone, classes, dtype, name):
    """Return a flat model of the backbone with endpoints and a head. The weights are copies."""
    if not isinstance(getattr(backbone, "output", None), keras.KerasTensor) or len(backbone.output.shape) != 4:
        raise ValueError(f"{type(backbone).__name__} must return one feature map per image. It does not.")
    flat, renamed = _unroll(backbone)
    levels = [renamed.get(level, level) for level in backbone.pyramid_level_inputs.values()]
    endpoints = _name_endpoints(flat, levels, [renamed.get(stem, stem) for stem in _STEMS])
    # An endpoint must be a layer. The outputs of other operations pass through an Identity layer.
    operations = {operation.name: operation for operation in flat.operations}
    names = {name: end for name, end in endpoints.items() if isinstance(operations[name], layers.Layer)}
    identities = {f"{end}_operation": end for name, end in endpoints.items() if name not in names}
    names.update({name: f"{end}_operation" for name, end in endpoints.items() if name not in names})
    taken = {*names.values(), *identities.values(), "pooled", "logits", "image"}
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
            config.update(_rescale_normalized(config["scale"], config["offset"]))
        if type(getattr(operation, "activation", None)).__name__ == "HardSigmoidActivation":
            config["activation"] = "hard_sigmoid"  # The same function. keras-cv's layer cannot be loaded from a file.
        copy = operation.__class__.from_config(config)
        copies.append((operation, copy))
        return copy

    def call(operation, *args, **kwargs):
        outputs = operation(*args, **kwargs)
        if operation.name in identities:
            outputs = layers.Identity(name=identities[operation.name], dtype=dtype)(outputs)
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
    return _add_head(model, classes, dtype, name or backbone.name)


def _rescale_normalized(scale, offset):
    """Convert the arguments of a rescaling of pixels in [0, 255] to those for normalized pixels."""
    return {
        "scale": [scale * 255 * std for std in STD],
        "offset": [scale * 255 * mean + offset for mean in MEAN],
    }


def _unroll(model):
    """Return the same graph with the inner operations of keras-cv's own layers and nested models.

    Returns:
        The flat model, which shares its layers and weights, and a dict of an unrolled layer's name to the name of the
        operation that returns its output.
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
    unsupported = sorted({type(operation).__name__ for operation in model.operations if _is_nested(operation)})
    if unsupported:
        raise ValueError(
            f"The layers of {model.name} must be Keras's own, or consist of such. Received: {unsupported}."
        )
    return model, renamed


def _is_nested(operation):
    # A lambda cannot be loaded from a file. Its operations can.
    return isinstance(operation, (keras.Model, layers.Lambda)) or type(operation).__module__.startswith(_LIBRARY)


def _get_inputs(operation):
    """Return the operations whose outputs are the inputs of an operation of a flat model."""
    return [tensor._keras_history.operation for tensor in operation._inbound_nodes[-1].arguments.keras_tensors]


def _name_endpoints(model, levels, stems):
    """Return the endpoints of a flat model: `{operation's name: endpoint's name}`."""
    operations = {operation.name: operation for operation in model.operations}
    if not levels:
        pools = [operation for operation in operations.values() if isinstance(operation, layers.MaxPooling2D)]
        levels = [_get_inputs(pool)[0].name for pool in pools]
    names = {level: f"block{index}" for index, level in enumerate(levels, start=1)}
    for level, name in tuple(names.items()):
        if isinstance(operations[level], _ACTIVATIONS) or not isinstance(operations[level], layers.Layer):
            source = _get_inputs(operations[level])[0]
            if isinstance(source, (layers.Add, layers.BatchNormalization)) and source.name not in names:
                names[source.name] = f"{name}_preact"
    stem = next((name for name in stems if name in operations), None)
    if stem is not None and stem not in names:
        names[stem] = "stem"
    return names
