"""Knowledge adjustment: Wen et al., 2019, https://arxiv.org/abs/1911.07471."""

import keras
from keras import ops

from keras_wsl.losses.logit.kd import KD
from keras_wsl.ops import class_indices, is_class, value_at_label


def probability_shift(labels, teacher_logits):
    """Teacher's logits in which the likeliest class and the label have changed places; as they are where they agree.

    Args:
        labels: Integers, shape `(...)`.
        teacher_logits: Floats, shape `(..., classes)`.

    Returns:
        Floats, shape `(..., classes)`.
    """
    likeliest = ops.cast(ops.argmax(teacher_logits, axis=-1), labels.dtype)
    is_label, is_likeliest = (is_class(each, teacher_logits) for each in (labels, likeliest))
    # Not `ops.max`: on TensorFlow it refuses an empty batch, such as the last replica may get.
    at_label, highest = (value_at_label(each, teacher_logits)[..., None] for each in (labels, likeliest))
    return ops.where(is_label, highest, ops.where(is_likeliest, at_label, teacher_logits))


@keras.saving.register_keras_serializable("keras_wsl")
class KnowledgeAdjustment(KD):
    """`KD` from a teacher that is always right: `probability_shift` puts its largest probability on the label.

    A weighting judges the teacher as it was.

    Args:
        **kwargs: As of `KD`.
    """

    def per_example(self, labels, student, teacher):
        """`soft_label_loss` of the student's and the shifted logits."""
        labels = class_indices(labels, teacher["logits"])
        return super().per_example(labels, student, {"logits": probability_shift(labels, teacher["logits"])})
