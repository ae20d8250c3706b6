"""A teacher's logits, written once for each view of each example, and replayed in place of the teacher."""

from keras_wsl.soft_labels.reader import SoftLabels
from keras_wsl.soft_labels.writer import DTYPES, write

__all__ = ["DTYPES", "SoftLabels", "write"]
