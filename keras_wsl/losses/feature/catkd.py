"""Class attention transfer: Guo et al., CVPR 2023, https://arxiv.org/abs/2304.12777."""

import keras
from keras import ops

from keras_wsl.features import find_layer
from keras_wsl.losses.base import FeatureLoss, check_same_classes
from keras_wsl.losses.feature.fitnet import hint_loss
from keras_wsl.ops import adaptive_average_pool, check_bool, l2_normalize


def class_map_loss(student_map, teacher_map, *, size=2, normalize=True):
    r"""`hint_loss` of class activation maps, pooled to `size` x `size`, each of length 1 if `normalize`.

    Args:
        student_map: Floats, shape `(batch, height, width, classes)`.
        teacher_map: Floats, likewise, of any size.
        size: Integer.
        normalize: Whether each class's map is divided by its length.

    Returns:
        Floats, shape `(batch,)`.
    """
    maps = [adaptive_average_pool(maps, (size, size)) for maps in (student_map, teacher_map)]
    if normalize:
        maps = [ops.reshape(one, (-1, size * size, one.shape[-1])) for one in maps]
        maps = [l2_normalize(one, axis=1) for one in maps]
    return hint_loss(*maps)


@keras.saving.register_keras_serializable("keras_wsl")
class CATKD(FeatureLoss):
    r"""Class attention transfer: where in the image each network sees each class.

    A class's map is the last map times the classifier's kernel, $M_c = \sum_k f_k W_{kc}$, whose spatial mean is the
    logit but for the bias. The paper makes the classifier a 1x1 convolution without a bias for it; these are the same
    maps of an ordinary network that ends in global average pooling and a `Dense`. The student's kernel learns from it
    too.

    Args:
        layers: What is pooled, a name or a pair, in a list of one.
        head: Name of the classifier, a `Dense`, in both networks, or a pair.
        size: Integer, the height and width to which maps are pooled: 2, or 4 for ShuffleNets.
        normalize: Whether each class's map is divided by its length.
        weight: Float, the factor of the mean in the total: 15 for ResNet-32x4 to 8x4, 12 for WRN-40-2 to WRN-16-2,
            0.7 for ResNet-56 to ResNet-20, not normalized; 600 and 80 for ShuffleNets, normalized.
        **kwargs: As of `FeatureLoss`.

    Raises:
        ValueError: When it is built or meets the networks, if they do not end so.
    """

    default_layers = ("pooled.input",)
    single_layer = True

    def __init__(self, *, weight=15.0, head="logits", size=2, normalize=False, name="catkd", **kwargs):
        super().__init__(weight=weight, name=name, **kwargs)
        self.head = (head, head) if isinstance(head, str) else tuple(head)
        self.size, self.normalize = size, check_bool(normalize, "normalize")

    def build(self, labels_shape, student_shape, teacher_shape):
        """Checks sizes and classes."""
        super().build(labels_shape, student_shape, teacher_shape)
        check_same_classes(self.name, student_shape, teacher_shape)
        for shapes in self.pairs(student_shape, teacher_shape):
            for shape in shapes:
                if None in shape[1:3] or min(shape[1:3]) < self.size:
                    raise ValueError(
                        f"{self.name} pools maps to {self.size} x {self.size}. Received: a map of {tuple(shape[1:3])}. "
                        "Choose a smaller `size`, or other `layers`."
                    )

    def bind_models(self, student, teacher):
        """Finds the classifiers."""
        heads = [find_layer(model, name) for model, name in zip((student, teacher), self.head)]
        for model, head in zip((student, teacher), heads):
            if not isinstance(head, keras.layers.Dense):
                raise ValueError(
                    f"{self.name} needs a Dense as {model.name}'s classifier. Received: {head.name!r}, a "
                    f"{type(head).__name__}. Name the classifiers in `head`."
                )
        self.__dict__["_heads"] = lambda: heads  # A closure: they are the networks', and not tracked here.

    def per_example(self, labels, student, teacher):
        """`class_map_loss` of the two networks' maps."""
        ((own, other),) = self.pairs(student, teacher)
        own, other = (
            ops.matmul(maps, ops.cast(head.kernel, maps.dtype)) for maps, head in zip((own, other), self._heads())
        )
        return class_map_loss(own, ops.stop_gradient(other), size=self.size, normalize=self.normalize)
