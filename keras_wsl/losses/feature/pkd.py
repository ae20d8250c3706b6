"""Patient knowledge distillation: Sun et al., EMNLP 2019, https://arxiv.org/abs/1908.09355."""

import keras

from keras_wsl.losses.base import FeatureLoss
from keras_wsl.losses.feature.fitnet import hint_loss
from keras_wsl.ops import check_bool, l2_normalize


def patient_loss(student_states, teacher_states, *, normalize=False):
    r"""`hint_loss` of hidden states, each of length 1 if `normalize`.

    Args:
        student_states: Floats, shape `(batch, channels)`.
        teacher_states: Floats of the same shape.
        normalize: Whether each state is divided by its length first.

    Returns:
        Floats, shape `(batch,)`.
    """
    if normalize:
        student_states, teacher_states = l2_normalize(student_states), l2_normalize(teacher_states)
    return hint_loss(student_states, teacher_states)


@keras.saving.register_keras_serializable("keras_wsl")
class PKD(FeatureLoss):
    """Patient distillation of transformers: the mean over the layers of `patient_loss` of one token's hidden state.

    Of a 12-layer BERT and a student of 3, PKD-skip has `layers=[("transformer_layer_0", "transformer_layer_3"),
    ("transformer_layer_1", "transformer_layer_7")]`. Published beside `KD(temperature=5.0, weight=0.7,
    divide_by_num_classes=True)` and 0.3 of the cross-entropy, with weights from 10 to 1,000 of this; the best on
    MultiNLI is 1,000 and not normalized.

    Args:
        layers: Names or pairs of names of what gives states, `(batch, time, channels)`, equally wide in both networks.
        position: Integer, the token: 0 is BERT's `[CLS]`.
        normalize: Whether each state is divided by its length first.
        weight: Float, the factor of the mean in the total.
        **kwargs: As of `FeatureLoss`.

    Raises:
        ValueError: When it is built, if the states are not equally wide, or have no such token.
    """

    ndim = 3
    default_layers = (("transformer_layer_0", "transformer_layer_3"), ("transformer_layer_1", "transformer_layer_7"))

    def __init__(self, *, weight=1000.0, position=0, normalize=False, **kwargs):
        super().__init__(weight=weight, **kwargs)
        self.position, self.normalize = position, check_bool(normalize, "normalize")

    def build(self, labels_shape, student_shape, teacher_shape):
        """Checks that the states are equally wide, and long enough."""
        super().build(labels_shape, student_shape, teacher_shape)
        for own, other in self.pairs(student_shape, teacher_shape):
            if own[-1] != other[-1]:
                raise ValueError(
                    f"{self.name} compares states of equal width. Received: a student's of {own[-1]} and a teacher's "
                    f"of {other[-1]}. Choose networks of one hidden size."
                )
            for shape in (own, other):
                if shape[1] is not None and not -shape[1] <= self.position < shape[1]:
                    raise ValueError(
                        f"{self.name} compares the token at `position`. Received: position={self.position} and states "
                        f"of {shape[1]} tokens."
                    )

    def per_example(self, labels, student, teacher):
        """The mean over the layers."""
        pairs = self.pairs(student, teacher)
        rows = [
            patient_loss(own[:, self.position], other[:, self.position], normalize=self.normalize)
            for own, other in pairs
        ]
        return sum(rows) / len(rows)
