"""Knowledge adjustment: Wen et al., 2019, https://arxiv.org/abs/1911.07471."""

import keras
from keras import ops

from keras_wsl.losses.logit.kd import KD
from keras_wsl.ops import class_indices, is_class, value_at_label


def probability_shift(labels, teacher_logits):
    """Swap the teacher's highest logit and the logit of the label.

    Args:
        labels: Integers, shape `(...)`.
        teacher_logits: Floats, shape `(..., classes)`.

    Returns:
        Floats, shape `(..., classes)`.
    """
    predicted = ops.cast(ops.argmax(teacher_logits, axis=-1), labels.dtype)
    is_label, is_predicted = (is_class(classes, teacher_logits) for classes in (labels, predicted))
    # Not `ops.max`, which raises an error on an empty batch on TensorFlow, such as the last replica may have.
    at_label, highest = (value_at_label(classes, teacher_logits)[..., None] for classes in (labels, predicted))
    return ops.where(is_label, highest, ops.where(is_predicted, at_label, teacher_logits))


@keras.saving.register_keras_serializable("keras_wsl")
class KnowledgeAdjustment(KD):
    """`KD` from a corrected teacher: `probability_shift` gives the label the largest probability.

    A weighting uses the original logits.

    Args:
        **kwargs: See `KD`.
    """

    def per_example(self, labels, student, teacher):
        """Return `soft_label_loss` of the student's and the shifted logits."""
        labels = class_indices(labels, teacher["logits"])
        return super().per_example(labels, student, {"logits": probability_shift(labels, teacher["logits"])})
