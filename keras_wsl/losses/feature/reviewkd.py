"""Knowledge review: Chen et al., CVPR 2021, https://arxiv.org/abs/2104.09044."""

import keras

from keras_wsl.adapters import AttentionFusion
from keras_wsl.losses.base import FeatureLoss
from keras_wsl.losses.feature.fitnet import hint_loss
from keras_wsl.ops import adaptive_average_pool


def hierarchical_context_loss(student_map, teacher_map):
    r"""Compute HCL: `hint_loss` of the maps, and of the maps pooled to 4 x 4, 2 x 2 and 1 x 1, with halved weights.

    $$\ell_i = \frac{\sum_{j} 2^{-j} \, \mathrm{MSE}_j}{\sum_{j} 2^{-j}}$$

    Only sizes below the height of the map count.

    Args:
        student_map: Floats, shape `(batch, height, width, channels)`.
        teacher_map: Floats of the same shape.

    Returns:
        Floats, shape `(batch,)`.
    """
    total, weights, weight = hint_loss(student_map, teacher_map), 1.0, 1.0
    for side in (4, 2, 1):
        if side >= student_map.shape[1]:
            continue
        weight /= 2
        pooled = (adaptive_average_pool(maps, (side, side)) for maps in (student_map, teacher_map))
        total, weights = total + weight * hint_loss(*pooled), weights + weight
    return total / weights


@keras.saving.register_keras_serializable("keras_wsl")
class ReviewKD(FeatureLoss):
    """Knowledge review: compares each map of the teacher with the student's map there and its deeper ones.

    From the deepest map on, an `AttentionFusion` joins the student's map with the result of the deeper ones. The loss
    is the sum over the layers of `hierarchical_context_loss`. Published with a warm-up of 20 epochs,
    `callbacks.DistillationWarmup(20)`, and the weights 0.6 for ResNet-56 to ResNet-20 and 5 for WRN-40-2 to WRN-16-2.

    Args:
        layers: Names or pairs of names, the shallowest first; a vector counts as a map of 1 x 1.
        filters: Integer, the largest number of channels between fusions.
        **kwargs: See `FeatureLoss`.
    """

    default_layers = ("block1_preact", "block2_preact", "block3_preact", "pooled")

    def __init__(self, *, weight=5.0, filters=512, name="reviewkd", **kwargs):
        super().__init__(weight=weight, name=name, **kwargs)
        self.filters = filters

    def build(self, labels_shape, student_shape, teacher_shape):
        """Create the fusions, the deepest first."""
        student_shape, teacher_shape = (
            {name: _as_map(shape) for name, shape in shapes.items()} for shapes in (student_shape, teacher_shape)
        )
        super().build(labels_shape, student_shape, teacher_shape)
        pairs = self.pairs(student_shape, teacher_shape)[::-1]
        if any(None in shape[1:] for pair in pairs for shape in pair):
            raise ValueError(
                f"{self.name} needs maps of fixed height and width. Received: {pairs}. Build both networks with a "
                "fixed `input_shape`."
            )
        filters = min(self.filters, pairs[0][0][-1])
        self.fusions = [
            AttentionFusion(filters, shape, has_deeper_input=i > 0, name=f"fusion{i}")
            for i, (_, shape) in enumerate(pairs)
        ]
        for fusion, (shape, _) in zip(self.fusions, pairs):
            fusion.build(shape)

    def per_example(self, labels, student, teacher):
        """Return the sum over the layers."""
        total, deeper = 0.0, None
        for fusion, pair in zip(self.fusions, self.pairs(student, teacher)[::-1]):
            student_map, teacher_map = (maps if len(maps.shape) == 4 else maps[:, None, None] for maps in pair)
            fused, deeper = fusion(student_map, deeper)
            total = total + hierarchical_context_loss(fused, teacher_map)
        return total


def _as_map(shape):
    """Return a shape, that of a vector as that of a map of 1 x 1."""
    return (shape[0], 1, 1, shape[1]) if len(shape) == 2 else tuple(shape)
