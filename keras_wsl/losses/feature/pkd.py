"""Patient knowledge distillation: Sun et al., EMNLP 2019, https://arxiv.org/abs/1908.09355."""

import keras

from keras_wsl.argument_checks import check_bool
from keras_wsl.losses.base import FeatureLoss
from keras_wsl.losses.feature.fitnet import hint_loss
from keras_wsl.ops import l2_normalize


def patient_loss(student_states, teacher_states, *, normalize=False):
    r"""Compute `hint_loss` of hidden states.

    Args:
        student_states: Floats, shape `(batch, channels)`.
        teacher_states: Floats of the same shape.
        normalize: Whether each state is first divided by its norm.

    Returns:
        Floats, shape `(batch,)`.
    """
    if normalize:
        student_states, teacher_states = l2_normalize(student_states), l2_normalize(teacher_states)
    return hint_loss(student_states, teacher_states)


@keras.saving.register_keras_serializable("keras_wsl")
class PKD(FeatureLoss):
    """Patient distillation of transformers: the mean over the layers of `patient_loss` of one token's hidden state.

    For a BERT of 12 layers and a student of 3, PKD-skip has `layers=[("transformer_layer_0", "transformer_layer_3"),
    ("transformer_layer_1", "transformer_layer_7")]`. Published with `KD(temperature=5.0, weight=0.7,
    divide_by_num_classes=True)`, `student_loss_weight=0.3` and weights of this loss from 10 to 1,000; the best on
    MultiNLI is 1,000, not normalized.

    Args:
        layers: Names or pairs of names of layers that return states, `(batch, time, channels)`, of one width.
        position: Integer, the token: 0 is BERT's `[CLS]`.
        normalize: Whether each state is first divided by its norm.
        **kwargs: See `FeatureLoss`.

    Raises:
        ValueError: If it is built on states of different widths, or without that token.
    """

    ndim = 3
    default_layers = (("transformer_layer_0", "transformer_layer_3"), ("transformer_layer_1", "transformer_layer_7"))

    def __init__(self, *, weight=1000.0, position=0, normalize=False, **kwargs):
        super().__init__(weight=weight, **kwargs)
        self.position, self.normalize = position, check_bool(normalize, "normalize")

    def check_shapes(self, student_shape, teacher_shape):
        """Check the width and length of the states."""
        super().check_shapes(student_shape, teacher_shape)
        for shapes in self.pairs(student_shape, teacher_shape):
            student_width, teacher_width = (shape[-1] for shape in shapes)
            if student_width != teacher_width:
                raise ValueError(
                    f"{self.name} needs states of the same width. Received: a student's of {student_width} and a "
                    f"teacher's of {teacher_width}. Use networks of one hidden size."
                )
            for shape in shapes:
                if shape[1] is not None and not -shape[1] <= self.position < shape[1]:
                    raise ValueError(
                        f"`position` of {self.name} must be a token of the states. Received: position={self.position} "
                        f"and states of {shape[1]} tokens."
                    )

    def per_example(self, labels, student, teacher):
        """Return the mean over the layers."""
        values = [
            patient_loss(*(states[:, self.position] for states in pair), normalize=self.normalize)
            for pair in self.pairs(student, teacher)
        ]
        return sum(values) / len(values)
