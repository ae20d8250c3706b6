"""Factor transfer: Kim et al., NeurIPS 2018, https://arxiv.org/abs/1802.04977."""

import keras
from keras import ops

from keras_wsl.adapters import Paraphraser, Translator
from keras_wsl.losses.base import FeatureLoss
from keras_wsl.losses.feature.at import attention
from keras_wsl.losses.feature.fitnet import hint_loss
from keras_wsl.ops import match_spatial_size


def factor_loss(student_factor, teacher_factor):
    r"""Compute $\ell_i = \frac{1}{h w} \lVert \phi(s_i) - \phi(t_i) \rVert_1$, with AT's `attention` as $\phi$.

    As in the reference code, the channels of the factors are collapsed; the paper normalizes the whole factor. The
    larger one is pooled to the size of the smaller one.

    Args:
        student_factor: Floats, shape `(batch, height, width, channels)`.
        teacher_factor: Floats, shape `(batch, height, width, channels)`.

    Returns:
        Floats, shape `(batch,)`.
    """
    student_factor, teacher_factor = match_spatial_size(student_factor, teacher_factor)
    return ops.mean(ops.abs(attention(student_factor) - attention(teacher_factor)), axis=-1)


@keras.saving.register_keras_serializable("keras_wsl")
class Paraphrase(FeatureLoss):
    """First stage of factor transfer: the loss of a `Paraphraser` that reconstructs the map of the teacher.

    It does not use the student.

    Args:
        **kwargs: See `FeatureLoss`.
    """

    default_layers = ("block3",)
    single_layer = True

    def build(self, labels_shape, student_shape, teacher_shape):
        """Create the paraphraser."""
        super().build(labels_shape, student_shape, teacher_shape)
        self.paraphraser = Paraphraser()
        self.paraphraser.build(teacher_shape[self.teacher_layers[0]])

    def per_example(self, labels, student, teacher):
        """Return the mean square of the reconstruction error."""
        ((_, teacher_map),) = self.pairs(student, teacher)
        return hint_loss(self.paraphraser.decode(self.paraphraser(teacher_map)), teacher_map)


@keras.saving.register_keras_serializable("keras_wsl")
class FT(FeatureLoss):
    """Factor transfer: `factor_loss` of the student's `Translator` and the teacher's fixed `Paraphraser`.

    Published after 30 epochs that train the paraphraser: train a `Paraphrase`, then set the weights of `ft.paraphraser`
    to those of `paraphrase.paraphraser`. With an untrained paraphraser, the factor is a random projection.

    Args:
        **kwargs: See `FeatureLoss`.
    """

    default_layers = ("block3",)
    resize_to_smaller = True
    single_layer = True

    def __init__(self, *, weight=200.0, **kwargs):
        super().__init__(weight=weight, **kwargs)

    def build(self, labels_shape, student_shape, teacher_shape):
        """Create translator and paraphraser."""
        super().build(labels_shape, student_shape, teacher_shape)
        ((student_shape, teacher_shape),) = self.pairs(student_shape, teacher_shape)
        self.translator = Translator(teacher_shape[-1] // 2)
        self.translator.build(student_shape)
        self.paraphraser = Paraphraser()
        self.paraphraser.build(teacher_shape)
        self.paraphraser.trainable = False

    def per_example(self, labels, student, teacher):
        """Return `factor_loss` of the factors."""
        ((student_map, teacher_map),) = self.pairs(student, teacher)
        return factor_loss(self.translator(student_map), self.paraphraser(teacher_map))
