"""FitNets: Romero et al., ICLR 2015, https://arxiv.org/abs/1412.6550."""

import keras
from keras import ops

from keras_wsl.adapters import Regressor
from keras_wsl.losses.base import FeatureLoss


def hint_loss(student_map, teacher_map):
    r"""Compute $\ell_i = \frac{1}{h w c} \lVert s_i - t_i \rVert^2$.

    Args:
        student_map: Floats, shape `(batch, ...)`.
        teacher_map: Floats of the same shape.

    Returns:
        Floats, shape `(batch,)`.
    """
    return ops.mean((student_map - teacher_map) ** 2, axis=tuple(range(1, len(student_map.shape))))


@keras.saving.register_keras_serializable("keras_wsl")
class FitNet(FeatureLoss):
    """`hint_loss` of a middle map of the student, which a `Regressor` maps to the shape of the teacher's.

    The regressor ends in a ReLU. Student and regressor train together, as in the comparison of the CRD paper; the
    FitNets paper trains the lower half of the student first.

    Args:
        **kwargs: See `FeatureLoss`.
    """

    default_layers = ("block2",)

    def __init__(self, *, weight=100.0, name="fitnet", **kwargs):
        super().__init__(weight=weight, name=name, **kwargs)

    def build(self, labels_shape, student_shape, teacher_shape):
        """Create one regressor per layer."""
        super().build(labels_shape, student_shape, teacher_shape)
        pairs = self.pairs(student_shape, teacher_shape)
        self.regressors = [Regressor(shape, name=f"regressor{i}") for i, (_, shape) in enumerate(pairs)]
        for regressor, (shape, _) in zip(self.regressors, pairs):
            regressor.build(shape)

    def per_example(self, labels, student, teacher):
        """Return the sum over the layers."""
        pairs = zip(self.regressors, self.pairs(student, teacher))
        return sum(hint_loss(regressor(student_map), teacher_map) for regressor, (student_map, teacher_map) in pairs)
