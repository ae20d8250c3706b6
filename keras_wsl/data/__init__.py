"""Data sets, and batches of them that depend on a seed and a position alone."""

from keras_wsl.data.cifar100 import cifar100
from keras_wsl.data.digits import digits
from keras_wsl.data.examples import Examples, Splits, load_npz, save_npz
from keras_wsl.data.pipeline import eval_batches, train_batches

__all__ = ["Examples", "Splits", "cifar100", "digits", "eval_batches", "load_npz", "save_npz", "train_batches"]
