"""The physical limit of a run: its multiplications at the rate of the machine."""

import math

import keras

EXAMPLES = 50_000
EPOCHS = 240


def macs(model):
    """Multiply-adds of convolutions and dense layers for one example in a forward pass.

    Args:
        model: Functional `keras.Model` of `Conv2D`, `DepthwiseConv2D` and `Dense` layers.
    """
    total = 0
    for layer in model.layers:
        if isinstance(layer, (keras.layers.Conv2D, keras.layers.DepthwiseConv2D)):
            _, height, width, _ = layer.output.shape
            total += math.prod(layer.kernel.shape) * height * width
        elif isinstance(layer, keras.layers.Dense):
            total += math.prod(layer.kernel.shape)
    return total


def run_hours(seconds_per_example):
    """Hours of 240 epochs of 50,000 examples."""
    return EPOCHS * EXAMPLES * seconds_per_example / 3600


def least_seconds(teacher_macs, student_macs, operations_per_second):
    """Seconds of an example at the machine's rate.

    The teacher's forward pass is one, the student's forward and backward passes are three, and a multiply-add is two
    operations. Three is a little too many: the first layer has no gradient of its inputs.

    Args:
        teacher_macs: Multiply-adds of the teacher.
        student_macs: Multiply-adds of the student.
        operations_per_second: Float.
    """
    return 2 * (teacher_macs + 3 * student_macs) / operations_per_second
