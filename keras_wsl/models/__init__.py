"""Networks of the papers, built by name, and their weights."""

from keras_wsl.models.weights import load_weights, save_weights
from keras_wsl.models.zoo import build, names, register

__all__ = ["build", "load_weights", "names", "register", "save_weights"]
