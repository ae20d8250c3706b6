"""Class attention transfer: Guo et al., CVPR 2023, https://arxiv.org/abs/2304.12777."""

import keras
from keras import ops

from keras_wsl.argument_checks import check_bool
from keras_wsl.features import find_layer
from keras_wsl.losses.base import FeatureLoss, check_same_classes
from keras_wsl.losses.feature.fitnet import hint_loss
from keras_wsl.ops import adaptive_average_pool, l2_normalize


def class_map_loss(student_map, teacher_map, *, pool_size=2, normalize=True):
    r"""Compute `hint_loss` of class activation maps that are pooled to `pool_size` x `pool_size`.

    Args:
        student_map: Floats, shape `(batch, height, width, classes)`.
        teacher_map: Floats, shape `(batch, height, width, classes)`; the size may differ.
        pool_size: Integer.
        normalize: Whether the map of each class is divided by its norm.

    Returns:
        Floats, shape `(batch,)`.
    """
    maps = [adaptive_average_pool(maps, (pool_size, pool_size)) for maps in (student_map, teacher_map)]
    if normalize:
        maps = [l2_normalize(ops.reshape(x, (-1, pool_size * pool_size, x.shape[-1])), axis=1) for x in maps]
    return hint_loss(*maps)


@keras.saving.register_keras_serializable("keras_wsl")
class CATKD(FeatureLoss):
    r"""Class attention transfer: `class_map_loss` of the class activation maps of both networks.

    The map of a class is the last feature map times the kernel of the classifier, $M_c = \sum_k f_k W_{kc}$. Its
    spatial mean is the logit without the bias. The paper has a 1x1 convolution without a bias as classifier. Networks
    that end in global average pooling and a `Dense` have the same maps. The student's kernel gets a gradient too.

    Args:
        layers: The layer of the maps that the network pools.
        classifier: Name of the classifier, a `Dense`, in both networks, or a pair of names.
        pool_size: Integer, height and width of the pooled maps: 2, or 4 for ShuffleNets.
        normalize: Whether the map of each class is divided by its norm.
        weight: Float, the factor of the mean in the total: 15 for ResNet-32x4 to 8x4, 12 for WRN-40-2 to WRN-16-2,
            0.7 for ResNet-56 to ResNet-20, all not normalized; 600 and 80 for ShuffleNets, normalized.
        **kwargs: See `FeatureLoss`.

    Raises:
        ValueError: If the maps are smaller than `pool_size`, or a classifier is no `Dense`.
    """

    default_layers = ("pooled.input",)
    single_layer = True

    def __init__(self, *, weight=15.0, classifier="logits", pool_size=2, normalize=False, name="catkd", **kwargs):
        super().__init__(weight=weight, name=name, **kwargs)
        self.classifier = (classifier, classifier) if isinstance(classifier, str) else tuple(classifier)
        self.pool_size, self.normalize = pool_size, check_bool(normalize, "normalize")

    def check_shapes(self, student_shape, teacher_shape):
        """Check sizes and classes."""
        super().check_shapes(student_shape, teacher_shape)
        check_same_classes(self.name, student_shape, teacher_shape)
        for shapes in self.pairs(student_shape, teacher_shape):
            for shape in shapes:
                if None in shape[1:3] or min(shape[1:3]) < self.pool_size:
                    raise ValueError(
                        f"`pool_size` of {self.name} must be at most the size of the maps. Received: "
                        f"pool_size={self.pool_size} and a map of {tuple(shape[1:3])}. Use other `layers`."
                    )

    def bind_models(self, student, teacher):
        """Find the classifiers."""
        classifiers = [find_layer(model, name) for model, name in zip((student, teacher), self.classifier)]
        for model, classifier in zip((student, teacher), classifiers):
            if not isinstance(classifier, keras.layers.Dense):
                raise ValueError(
                    f"The classifier of {model.name} must be a Dense. Received: {classifier.name!r}, a "
                    f"{type(classifier).__name__}. Name the classifiers in `classifier` of {self.name}."
                )
        self.__dict__["_classifiers"] = lambda: classifiers  # A closure, so that Keras does not track them here.

    def per_example(self, labels, student, teacher):
        """Return `class_map_loss` of the class activation maps."""
        (pair,) = self.pairs(student, teacher)
        student_map, teacher_map = (
            ops.matmul(maps, ops.cast(classifier.kernel, maps.dtype))
            for maps, classifier in zip(pair, self._classifiers())
        )
        teacher_map = ops.stop_gradient(teacher_map)
        return class_map_loss(student_map, teacher_map, pool_size=self.pool_size, normalize=self.normalize)
