"""A comprehensive overhaul of feature distillation: Heo et al., ICCV 2019, https://arxiv.org/abs/1904.01866."""

import math

import keras
import numpy as np
from keras import ops

from keras_wsl.adapters import convolution, normalization
from keras_wsl.features import preceding_batch_norm
from keras_wsl.losses.base import FeatureLoss

SCALE = 1e-3  # Of the reference code for CIFAR; it has 1e-4 for ImageNet.


def margins(gamma, beta):
    r"""Compute the mean of the negative part of $N(\beta, \gamma^2)$, which a ReLU removes.

    It is $m = \beta - s \varphi(\beta / s) / \Phi(-\beta / s)$ with $s = |\gamma|$; if $\Phi(-\beta / s) \le 0.001$, it
    is $-3 s$.

    Args:
        gamma: NumPy floats, the scales of a batch normalization, shape `(channels,)`.
        beta: NumPy floats, its offsets, shape `(channels,)`.

    Returns:
        NumPy floats $m$, negative, shape `(channels,)`.
    """
    result = []
    for scale, mean in zip(np.abs(np.asarray(gamma, "float64")), np.asarray(beta, "float64")):
        below = 0.5 * math.erfc(mean / scale / math.sqrt(2)) if scale else float(mean < 0)
        if below <= 0.001:
            result.append(-3 * scale)
        else:
            density = math.exp(-0.5 * (mean / scale) ** 2) / math.sqrt(2 * math.pi) if scale else 0.0
            result.append(mean - scale * density / below)
    return np.array(result)


def partial_l2_loss(student_map, teacher_map, margin):
    r"""Compute $\ell_i = \sum (s - \max(t, m))^2$ over the neurons with $s > \max(t, m)$ or $t > 0$.

    The others, with $s \le \max(t, m)$ and $t \le 0$, do not count: the teacher's ReLU returns 0 there.

    Args:
        student_map: Floats $s$ before the ReLU, shape `(batch, height, width, channels)`.
        teacher_map: Floats $t$ of the same shape.
        margin: Floats $m$, shape `(channels,)`.

    Returns:
        Floats, shape `(batch,)`.
    """
    target = ops.maximum(teacher_map, margin)
    counts = (student_map > target) | (teacher_map > 0)
    return ops.sum(ops.where(counts, (student_map - target) ** 2, 0.0), axis=(1, 2, 3))


@keras.saving.register_keras_serializable("keras_wsl")
class Overhaul(FeatureLoss):
    r"""Overhaul: $\ell = 10^{-3} \sum_k 2^{k - K} \ell_k$, `partial_l2_loss` of each layer, $K$ the last of them.

    The student's maps pass a 1x1 convolution and batch normalization. `bind_models` computes the margins from the
    teacher's batch normalization before the ReLU of each layer. The reference code deliberately runs the teacher with
    the statistics of the batch: `Distiller(..., teacher_batch_statistics=True)`.

    Args:
        layers: Names or pairs of names of maps before their ReLU, of the same size in both networks.
        normalizations: Names of the teacher's batch normalizations, one per layer. By default they are found in the
            teacher's graph: the layer itself, or the one before it on the residual branch.
        **kwargs: See `FeatureLoss`.

    Raises:
        ValueError: If it is built on maps of different sizes, or the teacher has no such normalization.
    """

    default_layers = ("block1_preact", "block2_preact", "block3_preact")

    def __init__(self, *, weight=1.0, normalizations=None, **kwargs):
        super().__init__(weight=weight, **kwargs)
        self.normalizations = None if normalizations is None else tuple(normalizations)
        if normalizations is not None and len(self.normalizations) != len(self.teacher_layers):
            raise ValueError(
                f"`normalizations` must be one name per layer of `layers`, {len(self.teacher_layers)}. Received: "
                f"normalizations={normalizations!r}."
            )

    def build(self, labels_shape, student_shape, teacher_shape):
        """Create the convolutions and the variables of the margins."""
        super().build(labels_shape, student_shape, teacher_shape)
        self.convolutions, self.norms, self.margins = [], [], []
        for i, (student, teacher) in enumerate(self.pairs(student_shape, teacher_shape)):
            if tuple(student[1:3]) != tuple(teacher[1:3]):
                raise ValueError(
                    f"{self.name} needs maps of the same size. Received: a student's map of {tuple(student[1:3])} and "
                    f"a teacher's of {tuple(teacher[1:3])}. Use other `layers`."
                )
            start = keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal")
            self.convolutions.append(
                convolution(teacher[-1], 1, student[-1], use_bias=False, initializer=start, name=f"convolution{i}")
            )
            self.norms.append(normalization(name=f"normalization{i}"))
            self.convolutions[-1].build(student)
            self.norms[-1].build(teacher)
            self.margins.append(
                self.add_weight(shape=(teacher[-1],), initializer="zeros", trainable=False, name=f"margin{i}")
            )

    def bind_models(self, student, teacher):
        """Compute the margins from the teacher."""
        names = self.normalizations or (None,) * len(self.teacher_layers)
        for variable, teacher_layer, name in zip(self.margins, self.teacher_layers, names):
            layer = preceding_batch_norm(teacher, teacher_layer, name)
            gamma = ops.convert_to_numpy(layer.gamma) if layer.scale else np.ones(variable.shape)
            beta = ops.convert_to_numpy(layer.beta) if layer.center else np.zeros(variable.shape)
            if gamma.shape != tuple(variable.shape):
                raise ValueError(
                    f"The normalization of the teacher's {teacher_layer!r} must have {variable.shape[0]} channels. "
                    f"Received: {layer.name!r} of {len(gamma)} channels. Name other `normalizations` of {self.name}."
                )
            variable.assign(margins(gamma, beta))

    def per_example(self, labels, student, teacher):
        """Return the weighted sum over the layers."""
        total = 0.0
        adapters = zip(self.convolutions, self.norms, self.margins)
        for (convolve, normalize, margin), (student_map, teacher_map) in zip(adapters, self.pairs(student, teacher)):
            total = total / 2 + partial_l2_loss(normalize(convolve(student_map)), teacher_map, margin)
        return SCALE * total
