"""A teacher's logits, written once for each view of each example, and replayed in place of the teacher."""

from keras_wsl.soft_labels.store import SoftLabels
from keras_wsl.soft_labels.teacher_pass import DTYPES, write

__all__ = ["DTYPES", "SoftLabels", "write"]
