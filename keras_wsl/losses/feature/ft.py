"""Factor transfer: Kim et al., NeurIPS 2018, https://arxiv.org/abs/1802.04977."""

import keras
from keras import ops

from keras_wsl.adapters import Paraphraser, Translator
from keras_wsl.losses.base import FeatureLoss
from keras_wsl.losses.feature.at import attention
from keras_wsl.losses.feature.fitnet import hint_loss
from keras_wsl.ops import match_spatial_size


def factor_loss(student_factor, teacher_factor):
    r"""$\ell_i = \frac{1}{h w} \lVert \phi(s_i) - \phi(t_i) \rVert_1$, with AT's `attention` as $\phi$.

    So the reference code collapses the channels of the factors, where the paper normalizes the whole factor. The larger
    one is pooled to the smaller one's size.

    Args:
        student_factor: Floats, shape `(batch, height, width, channels)`.
        teacher_factor: Floats, likewise.

    Returns:
        Floats, shape `(batch,)`.
    """
    student_factor, teacher_factor = match_spatial_size(student_factor, teacher_factor)
    return ops.mean(ops.abs(attention(student_factor) - attention(teacher_factor)), axis=-1)


@keras.saving.register_keras_serializable("keras_wsl")
class Paraphrase(FeatureLoss):
    """How well a `Paraphraser` keeps the teacher's map: the loss of factor transfer's first stage.

    The student takes no part in it.

    Args:
        layers: The map's layer, or a pair, in a list of one.
        weight: Float, the factor of the mean in the total.
        **kwargs: As of `FeatureLoss`.
    """

    default_layers = ("block3",)
    single_layer = True

    def build(self, labels_shape, student_shape, teacher_shape):
        """Makes the paraphraser."""
        super().build(labels_shape, student_shape, teacher_shape)
        self.paraphraser = Paraphraser()
        self.paraphraser.build(teacher_shape[self.teacher_layers[0]])

    def per_example(self, labels, student, teacher):
        """The mean square of what is lost."""
        ((_, teacher_map),) = self.pairs(student, teacher)
        return hint_loss(self.paraphraser.decode(self.paraphraser(teacher_map)), teacher_map)


@keras.saving.register_keras_serializable("keras_wsl")
class FT(FeatureLoss):
    """Factor transfer: `factor_loss` of the student's `Translator` and the teacher's `Paraphraser`, which is fixed.

    Published with 30 epochs before it in which the paraphraser learns: train a `Paraphrase`, then set the weights of
    `ft.paraphraser` to those of its own. With a paraphraser that nobody has trained, the factor is a random projection.

    Args:
        layers: The map's layer, or a pair, in a list of one.
        weight: Float, the factor of the mean in the total.
        **kwargs: As of `FeatureLoss`.
    """

    default_layers = ("block3",)
    resize_to_smaller = True
    single_layer = True

    def __init__(self, *, weight=200.0, **kwargs):
        super().__init__(weight=weight, **kwargs)

    def build(self, labels_shape, student_shape, teacher_shape):
        """Makes translator and paraphraser."""
        super().build(labels_shape, student_shape, teacher_shape)
        ((own, other),) = self.pairs(student_shape, teacher_shape)
        self.translator = Translator(other[-1] // 2)
        self.translator.build(own)
        self.paraphraser = Paraphraser()
        self.paraphraser.build(other)
        self.paraphraser.trainable = False

    def per_example(self, labels, student, teacher):
        """`factor_loss` of the two factors."""
        ((student_map, teacher_map),) = self.pairs(student, teacher)
        return factor_loss(self.translator(student_map), self.paraphraser(teacher_map))
