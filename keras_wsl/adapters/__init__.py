"""Layers that losses own and that train with the student, and memory banks of its outputs. None is exported."""

from keras_wsl.adapters.factors import Paraphraser, Translator
from keras_wsl.adapters.fusion import AttentionFusion
from keras_wsl.adapters.layers import convolution, embeddings, normalization
from keras_wsl.adapters.memory import MemoryBank
from keras_wsl.adapters.regressor import Regressor

__all__ = [
    "AttentionFusion",
    "MemoryBank",
    "Paraphraser",
    "Regressor",
    "Translator",
    "convolution",
    "embeddings",
    "normalization",
]
