"""A comprehensive overhaul of feature distillation: Heo et al., ICCV 2019, https://arxiv.org/abs/1904.01866."""

import math

import keras
import numpy as np
from keras import ops

from keras_wsl.adapters import convolution, normalization
from keras_wsl.features import preceding_batch_norm
from keras_wsl.losses.base import FeatureLoss

SCALE = 1e-3  # The reference code's for CIFAR; 1e-4 for ImageNet.


def margins(gamma, beta):
    r"""The mean of what a ReLU cuts off of $N(\beta, \gamma^2)$: $m = \beta - s \varphi(\beta / s) / \Phi(-\beta / s)$.

    $s = |\gamma|$. Where $\Phi(-\beta / s) \le 0.001$, as little is cut off, $m = -3 s$.

    Args:
        gamma: NumPy floats, the scales of a batch normalization, shape `(channels,)`.
        beta: NumPy floats, its offsets, likewise.

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
    r"""$\ell_i = \sum (s - \max(t, m))^2$, but where both the teacher's ReLU is off and the student is lower still.

    $$s \le \max(t, m) \text{ and } t \le 0 \implies 0$$

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

    The student's maps go through a 1x1 convolution and batch normalization. The margins are of the teacher's batch
    normalization before each layer's ReLU, read when the Distiller meets its teacher. The reference code runs the
    teacher with the batch's statistics, on purpose: `Distiller(..., teacher_batch_statistics=True)`.

    Args:
        layers: Names or pairs of names of maps before their ReLU, equally large in both networks.
        normalizations: Names of the teacher's batch normalizations, one a layer. By default they are looked up in the
            teacher's graph: the layer itself, or the one before it on the residual branch.
        weight: Float, the factor of the mean in the total.
        **kwargs: As of `FeatureLoss`.

    Raises:
        ValueError: When it is built, if the sizes differ; when it meets the teacher, if a normalization is not found.
    """

    default_layers = ("block1_preact", "block2_preact", "block3_preact")

    def __init__(self, *, weight=1.0, normalizations=None, **kwargs):
        super().__init__(weight=weight, **kwargs)
        self.normalizations = None if normalizations is None else tuple(normalizations)
        if normalizations is not None and len(self.normalizations) != len(self.teacher_layers):
            raise ValueError(
                f"`normalizations` names {len(self.normalizations)} layers, and `layers` {len(self.teacher_layers)}."
            )

    def build(self, labels_shape, student_shape, teacher_shape):
        """Makes the convolutions, and places for the margins."""
        super().build(labels_shape, student_shape, teacher_shape)
        self.convolutions, self.norms, self.margins = [], [], []
        for i, (own, other) in enumerate(self.pairs(student_shape, teacher_shape)):
            if tuple(own[1:3]) != tuple(other[1:3]):
                raise ValueError(
                    f"{self.name} compares maps of equal size. Received: a student's of {tuple(own[1:3])} and a "
                    f"teacher's of {tuple(other[1:3])}. Choose other `layers`."
                )
            start = keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal")
            self.convolutions.append(
                convolution(other[-1], 1, own[-1], use_bias=False, initializer=start, name=f"convolution{i}")
            )
            self.norms.append(normalization(name=f"normalization{i}"))
            self.convolutions[-1].build(own)
            self.norms[-1].build(other)
            self.margins.append(
                self.add_weight(shape=(other[-1],), initializer="zeros", trainable=False, name=f"margin{i}")
            )

    def bind_models(self, student, teacher):
        """Reads the margins from the teacher."""
        names = self.normalizations or (None,) * len(self.teacher_layers)
        for variable, endpoint, name in zip(self.margins, self.teacher_layers, names):
            layer = preceding_batch_norm(teacher, endpoint, name)
            gamma = ops.convert_to_numpy(layer.gamma) if layer.scale else np.ones(variable.shape)
            beta = ops.convert_to_numpy(layer.beta) if layer.center else np.zeros(variable.shape)
            if gamma.shape != tuple(variable.shape):
                raise ValueError(
                    f"{self.name}: the teacher's {endpoint!r} has {variable.shape[0]} channels, and its normalization "
                    f"{layer.name!r} has {len(gamma)}. Name the right ones in `normalizations`."
                )
            variable.assign(margins(gamma, beta))

    def per_example(self, labels, student, teacher):
        """The sum over the layers, the last one's weight 1, the one before's a half of it."""
        total = 0.0
        adapters = zip(self.convolutions, self.norms, self.margins)
        for (convolve, normalize, margin), (own, other) in zip(adapters, self.pairs(student, teacher)):
            total = total / 2 + partial_l2_loss(normalize(convolve(own)), other, margin)
        return SCALE * total
