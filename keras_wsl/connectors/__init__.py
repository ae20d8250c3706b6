"""Adapters that train with the student, which losses own, and memories of what it gave: none is exported."""

from keras_wsl.connectors.factors import Paraphraser, Translator
from keras_wsl.connectors.fusion import AttentionFusion
from keras_wsl.connectors.layers import convolution, embeddings, normalization
from keras_wsl.connectors.memory import MemoryBank
from keras_wsl.connectors.regressor import Regressor

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
