"""Flow of solution procedure: Yim et al., CVPR 2017."""

import itertools

import keras
from keras import ops

from keras_wsl.losses.base import FeatureLoss
from keras_wsl.ops import common_spatial_size, match_spatial_size


def flow(shallow, deep):
    r"""$G_{c c'} = \frac{1}{h w} \sum_{hw} f_c f'_{c'}$ of two maps of a network, the larger one pooled.

    Args:
        shallow: Floats, shape `(batch, height, width, channels)`.
        deep: Floats, likewise.

    Returns:
        Floats, shape `(batch, channels of shallow, channels of deep)`.
    """
    shallow, deep = match_spatial_size(shallow, deep)
    return ops.einsum("nhwc,nhwd->ncd", shallow, deep) / (shallow.shape[1] * shallow.shape[2])


@keras.saving.register_keras_serializable("keras_wsl")
class FSP(FeatureLoss):
    r"""Flow of solution procedure: $\ell = \sum_k \frac{1}{c c'} \lVert G^s_k - G^t_k \rVert^2$, of each two layers.

    Both networks need as many channels as the other in each layer. Published as an initialization: 30 epochs of this
    loss alone, then the labels alone.

    Args:
        layers: At least two names or pairs of names of maps.
        weight: Float, the factor of the mean in the total.
        **kwargs: As of `FeatureLoss`.

    Raises:
        ValueError: If there are fewer than two layers; when it is built, if the channels differ.
    """

    default_layers = ("stem", "block1", "block2", "block3")

    def __init__(self, *, weight=1.0, **kwargs):
        super().__init__(weight=weight, **kwargs)
        if len(self.student_layers) < 2:
            raise ValueError(f"FSP compares what lies between layers: name two or more. Got {self.student_layers}.")

    def build(self, labels_shape, student_shape, teacher_shape):
        """Checks channels and sizes."""
        super().build(labels_shape, student_shape, teacher_shape)
        pairs = self.pairs(student_shape, teacher_shape)
        channels = [[shape[-1] for shape in shapes] for shapes in zip(*pairs)]
        if channels[0] != channels[1]:
            raise ValueError(
                f"{self.name} needs equal channels in every layer. Received: a student of {channels[0]} and a teacher "
                f"of {channels[1]}. Choose networks of one width, or a method with adapters, such as VID."
            )
        for shapes in zip(*pairs):
            for shallow, deep in itertools.pairwise(shapes):
                common_spatial_size(shallow, deep)

    def per_example(self, labels, student, teacher):
        """The sum over consecutive layers."""
        flows = [
            [flow(shallow, deep) for shallow, deep in itertools.pairwise(maps)]
            for maps in zip(*self.pairs(student, teacher))
        ]
        return sum(ops.mean((own - other) ** 2, axis=(1, 2)) for own, other in zip(*flows))
