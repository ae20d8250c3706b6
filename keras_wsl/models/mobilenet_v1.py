"""MobileNet: Howard et al., 2017, https://arxiv.org/abs/1704.04861, with width 1.

As in https://github.com/bellymonster/Weighted-Soft-Label-Distillation, in which it is the student of ResNet-50.
"""

import keras

from keras_wsl.models import blocks

# Channels and strides of the units, table 1 of the paper.
_UNITS = (
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)),
    *((512, 1), (512, 1), (512, 1), (512, 1), (512, 1), (1024, 2), (1024, 1)),
)
# The last unit of each resolution, counted from 1.
ENDS = (3, 5, 11, 13)


def mobilenet_v1(*, classes, input_shape=(224, 224, 3), dtype=None, name="mobilenet_v1"):
    r"""Build a 3x3 convolution with stride 2 and 13 units, each of a depthwise and a 1x1 convolution.

    $$y = \mathrm{ReLU}(\mathrm{BN}(W * \mathrm{ReLU}(\mathrm{BN}(D * x))))$$

    Endpoints: `stem` is the first ReLU; `block1` to `block4` are the outputs of the units 3, 5, 11 and 13, with 128,
    256, 512 and 1,024 channels; `block1_preact` to `block4_preact` the batch normalization before their last ReLU;
    `pooled`; `logits`.

    The initial weights are those of the reference's other networks, $N(0, 2 / (k^2 c_{out}))$ for all convolutions,
    including depthwise ones. The reference does not state those of this network.

    Args:
        classes: Integer.
        input_shape: `(height, width, channels)`. Height and width may be `None`. Inputs are normalized floats.
        dtype: Dtype policy of all layers except `logits`, which is float32. `None` for the global policy.
        name: The model's name.

    Returns:
        A `keras.Model` that maps `(batch, height, width, channels)` to logits, `(batch, classes)`.
    """
    inputs = keras.Input(input_shape, name="image")
    x = blocks.convolution(inputs, 32, 3, strides=2, name="stem_conv", dtype=dtype)
    x = blocks.normalization(x, name="stem_bn", dtype=dtype)
    x = blocks.relu(x, name="stem", dtype=dtype)
    for index, (filters, strides) in enumerate(_UNITS, start=1):
        end = f"block{ENDS.index(index) + 1}" if index in ENDS else None
        initializer = keras.initializers.RandomNormal(stddev=(2 / (9 * x.shape[-1])) ** 0.5)
        x = blocks.depthwise(x, strides=strides, initializer=initializer, name=f"unit{index}_depthwise", dtype=dtype)
        x = blocks.normalization(x, name=f"unit{index}_bn1", dtype=dtype)
        x = blocks.relu(x, name=f"unit{index}_relu1", dtype=dtype)
        x = blocks.convolution(x, filters, 1, name=f"unit{index}_conv", dtype=dtype)
        x = blocks.normalization(x, name=f"{end}_preact" if end else f"unit{index}_bn2", dtype=dtype)
        x = blocks.relu(x, name=end or f"unit{index}_relu2", dtype=dtype)
    logits = blocks.head(x, classes, bias_initializer=blocks.uniform(x.shape[-1]), dtype=dtype)
    return keras.Model(inputs, logits, name=name)
