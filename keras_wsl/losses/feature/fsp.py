"""Flow of solution procedure: Yim et al., CVPR 2017."""

import itertools

import keras
from keras import ops

from keras_wsl.losses.base import FeatureLoss
from keras_wsl.ops import common_spatial_size, match_spatial_size


def flow(shallow, deep):
    r"""Compute $G_{c c'} = \frac{1}{h w} \sum_{hw} f_c f'_{c'}$ of two maps; the larger is pooled.

    Args:
        shallow: Floats, shape `(batch, height, width, channels)`.
        deep: Floats, shape `(batch, height, width, channels)`.

    Returns:
        Floats, shape `(batch, channels of shallow, channels of deep)`.
    """
    shallow, deep = match_spatial_size(shallow, deep)
    return ops.einsum("nhwc,nhwd->ncd", shallow, deep) / (shallow.shape[1] * shallow.shape[2])


@keras.saving.register_keras_serializable("keras_wsl")
class FSP(FeatureLoss):
    r"""Flow of solution procedure: $\ell = \sum_k \frac{1}{c c'} \lVert G^s_k - G^t_k \rVert^2$ over pairs.

    $G$ is the `flow` between two consecutive layers. Both networks must have the same channels in each layer. Published
    as an initialization: 30 epochs of this loss alone, then of the labels alone.

    Args:
        layers: At least two names or pairs of names.
        **kwargs: See `FeatureLoss`.

    Raises:
        ValueError: If there are fewer than two layers, or if it is built on different channels.
    """

    default_layers = ("stem", "block1", "block2", "block3")

    def __init__(self, *, weight=1.0, **kwargs):
        super().__init__(weight=weight, **kwargs)
        if len(self.layers) < 2:
            raise ValueError(f"`layers` of FSP must be two or more layers. Received: layers={self.layers}.")

    def check_shapes(self, student_shape, teacher_shape):
        """Check channels and sizes."""
        super().check_shapes(student_shape, teacher_shape)
        pairs = self.pairs(student_shape, teacher_shape)
        channels = [[shape[-1] for shape in shapes] for shapes in zip(*pairs)]
        if channels[0] != channels[1]:
            raise ValueError(
                f"{self.name} needs the same channels in each layer. Received: a student of {channels[0]} and a "
                f"teacher of {channels[1]}. Use networks of one width, or a loss with adapters, such as VID."
            )
        for shapes in zip(*pairs):
            for shallow, deep in itertools.pairwise(shapes):
                common_spatial_size(shallow, deep)

    def per_example(self, labels, student, teacher):
        """Return the sum over consecutive layers."""
        student_flows, teacher_flows = (
            [flow(shallow, deep) for shallow, deep in itertools.pairwise(maps)]
            for maps in zip(*self.pairs(student, teacher))
        )
        return sum(ops.mean((a - b) ** 2, axis=(1, 2)) for a, b in zip(student_flows, teacher_flows))
