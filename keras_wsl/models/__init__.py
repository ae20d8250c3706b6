"""Build the papers' networks by name, and load and save weights."""

from keras_wsl.models.registry import build, names, register
from keras_wsl.models.weights import load_weights, save_weights

__all__ = ["build", "load_weights", "names", "register", "save_weights"]
