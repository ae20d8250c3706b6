"""The CIFAR networks in PyTorch, written for the benchmark: what `keras_wsl.models` has in Keras, layer by layer.

Modules are named as the layers there, with a dot for the underscore after a unit: `block1_unit0.conv1`.
"""

import torch
from torch import nn
from torch.nn import functional


def build(name, classes=100):
    """A network by its name in `keras_wsl.models`: of the families `wrn_DEPTH_WIDTH` and `resnetDEPTH`."""
    if name.startswith("wrn_"):
        _, depth, width = name.split("_")
        return WideResNet(int(depth), int(width), classes)
    return ResNet(int(name.removeprefix("resnet")), classes)


def _convolution(inputs, outputs, kernel_size, strides=1):
    return nn.Conv2d(inputs, outputs, kernel_size, strides, kernel_size // 2, bias=False)


class _Network(nn.Module):
    """A stem, three stages of units, a mean over places, and logits."""

    def pooled_logits(self, x):
        """Logits of the last maps."""
        return self.logits(torch.flatten(functional.adaptive_avg_pool2d(x, 1), 1))

    def units(self):
        """The units in their order."""
        return [module for name, module in self.named_children() if "_unit" in name]

    def add_units(self, kind, inputs, filters, units):
        """Makes the stages."""
        for stage, outputs in enumerate(filters, start=1):
            for index in range(units):
                strides = 2 if stage > 1 and index == 0 else 1
                self.add_module(f"block{stage}_unit{index}", kind(inputs, outputs, strides))
                inputs = outputs


class _Unit(nn.Module):
    """Two convolutions and their shortcut; the ReLU is after the sum."""

    def __init__(self, inputs, outputs, strides):
        super().__init__()
        self.conv1, self.bn1 = _convolution(inputs, outputs, 3, strides), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = _convolution(outputs, outputs, 3), nn.BatchNorm2d(outputs)
        self.shortcut_conv = None
        if strides > 1 or inputs != outputs:
            self.shortcut_conv = _convolution(inputs, outputs, 1, strides)
            self.shortcut_bn = nn.BatchNorm2d(outputs)

    def forward(self, x):
        shortcut = x if self.shortcut_conv is None else self.shortcut_bn(self.shortcut_conv(x))
        x = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        return functional.relu(self.bn2(self.conv2(x)) + shortcut, inplace=True)


class ResNet(_Network):
    """`keras_wsl.models.resnet`, with 16, 16, 32 and 64 channels."""

    def __init__(self, depth, classes):
        super().__init__()
        self.stem_conv, self.stem_bn = _convolution(3, 16, 3), nn.BatchNorm2d(16)
        self.add_units(_Unit, 16, (16, 32, 64), (depth - 2) // 6)
        self.logits = nn.Linear(64, classes)

    def forward(self, x):
        """Logits of images."""
        x = functional.relu(self.stem_bn(self.stem_conv(x)), inplace=True)
        for unit in self.units():
            x = unit(x)
        return self.pooled_logits(x)


class _PreActivationUnit(nn.Module):
    """Two convolutions, each after its normalization and ReLU, and their shortcut."""

    def __init__(self, inputs, outputs, strides):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), _convolution(inputs, outputs, 3, strides)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), _convolution(outputs, outputs, 3)
        self.shortcut_conv = _convolution(inputs, outputs, 1, strides) if inputs != outputs else None

    def forward(self, x):
        active = functional.relu(self.bn1(x), inplace=True)
        shortcut = x if self.shortcut_conv is None else self.shortcut_conv(active)
        x = functional.relu(self.bn2(self.conv1(active)), inplace=True)
        return self.conv2(x) + shortcut


class WideResNet(_Network):
    """`keras_wsl.models.wide_resnet`."""

    def __init__(self, depth, width, classes):
        super().__init__()
        self.stem = _convolution(3, 16, 3)
        filters = [channels * width for channels in (16, 32, 64)]
        self.add_units(_PreActivationUnit, 16, filters, (depth - 4) // 6)
        self.block3_preact = nn.BatchNorm2d(filters[-1])
        self.logits = nn.Linear(filters[-1], classes)

    def forward(self, x):
        """Logits of images."""
        x = self.stem(x)
        for unit in self.units():
            x = unit(x)
        return self.pooled_logits(functional.relu(self.block3_preact(x), inplace=True))
