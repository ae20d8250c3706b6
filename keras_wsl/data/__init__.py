"""Data sets, and batches that depend only on a seed and a position."""

from keras_wsl.data.cifar100 import cifar100
from keras_wsl.data.digits import digits
from keras_wsl.data.image_arrays import ImageArrays, Splits, binarize_classes, load_npz, save_npz
from keras_wsl.data.image_files import (
    CorruptFiles,
    ImageFileDataset,
    ImageFolder,
    TfdsImageDataset,
    TooManyCorruptImagesError,
    image_folder,
)
from keras_wsl.data.imagenet import imagenet
from keras_wsl.data.multinli import MultiNLI, multinli
from keras_wsl.data.pipeline import augmented_batches, eval_batches, train_batches
from keras_wsl.data.sentence_pairs import SentencePairs

__all__ = [
    "CorruptFiles",
    "ImageArrays",
    "ImageFileDataset",
    "ImageFolder",
    "MultiNLI",
    "SentencePairs",
    "Splits",
    "TfdsImageDataset",
    "TooManyCorruptImagesError",
    "augmented_batches",
    "binarize_classes",
    "cifar100",
    "digits",
    "eval_batches",
    "image_folder",
    "imagenet",
    "load_npz",
    "multinli",
    "save_npz",
    "train_batches",
]
