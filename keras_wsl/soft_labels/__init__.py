"""A teacher's logits, written once per view of each example, and used in place of the teacher."""

from keras_wsl.soft_labels.reader import SoftLabels
from keras_wsl.soft_labels.writer import DTYPES, write_soft_labels

__all__ = ["DTYPES", "SoftLabels", "write_soft_labels"]
