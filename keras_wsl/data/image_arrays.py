"""Labeled images in memory, with their numbers and normalization statistics."""

import dataclasses
import pathlib
import zipfile
import zlib
from typing import NamedTuple

import numpy as np

from keras_wsl.data.dataset import Dataset, ImageDataset, fingerprint
from keras_wsl.files import atomic_write, make_directory

_FIELDS = ("images", "labels", "index", "classes", "mean", "std")


@dataclasses.dataclass(frozen=True, eq=False)
class ImageArrays(Dataset, ImageDataset):
    """Images, labels, and each example's number in its split.

    Args:
        images: uint8, shape `(n, height, width, channels)`.
        labels: Integers in `[0, len(classes))`, shape `(n,)`. Stored as int32.
        classes: Names of the classes, a tuple of strings.
        mean: Each channel's mean over training images in `[0, 1]`, a tuple of floats.
        std: Each channel's standard deviation over training images in `[0, 1]`, a tuple of floats.
        index: Distinct integers, shape `(n,)`: the positions in the whole split. Stored as int32. The examples of a
            subset keep their numbers, and so their crops and their rows of cached soft labels. Default:
            0, 1, ..., n - 1.

    Raises:
        ValueError: If shapes, dtypes or lengths do not match, a label is out of range, or a number repeats.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: tuple
    mean: tuple
    std: tuple
    index: np.ndarray | None = None

    PER_EXAMPLE_FIELDS = ("images", "labels", "index")

    def __post_init__(self):
        images = np.asarray(self.images)
        if images.dtype != np.uint8:
            raise ValueError(
                f"`images` must be uint8 in [0, 255], neither scaled nor normalized. Received: dtype {images.dtype}."
            )
        if images.ndim != 4 or 0 in images.shape:
            raise ValueError(
                "`images` must have shape (n, height, width, channels), none of them 0. "
                f"Received: shape {images.shape}."
            )
        self._set_labels(len(images))
        self._set_statistics(images.shape[3])
        self._set(images=images)

    @property
    def input_shape(self):
        """`(height, width, channels)`."""
        return self.images.shape[1:]

    @property
    def augmentation(self):
        """Crops and flips of the recipes for color images. Gray images are taken as glyphs, which are not flipped."""
        padding, flip = (4, True) if self.images.shape[-1] == 3 else (1, False)
        return {"padding": padding, "padding_mode": "constant", "flip": flip}

    def inputs(self, rows):
        """Return the normalized images at some positions: float32, shape `(n, height, width, channels)`."""
        return self.normalize(self.images[rows].astype("float32"))

    @property
    def fingerprints(self):
        """64-bit hash of each image and its label: uint64, shape `(n,)`."""
        return np.array([fingerprint(*row) for row in zip(self.images, self.labels)], "uint64")

    def save(self, path):
        """Write one `.npz` file, which `ImageArrays.load` reads without TensorFlow."""
        _write(path, _to_arrays(self))

    @classmethod
    def load(cls, path):
        """Read a file that `save` wrote.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is not a file of `ImageArrays`.
        """
        return _read(path, [""])[0]


class Splits(NamedTuple):
    """A data set. For a validation set, split train: `rest, validation = splits.train.stratified_split(5000)`."""

    train: ImageArrays
    test: ImageArrays


def binarize_classes(splits):
    """Replace the classes by two: whether a label is in the second half of the classes.

    Harutyunyan et al., https://arxiv.org/abs/2301.12245, use this task in their figures.

    Args:
        splits: `Splits`.

    Returns:
        `Splits` of the same images, with the labels 0 and 1.
    """

    def binarize(examples):
        labels = (examples.labels >= len(examples.classes) // 2).astype(examples.labels.dtype)
        return dataclasses.replace(examples, labels=labels, classes=("first half", "second half"))

    return Splits(*map(binarize, splits))


def save_npz(splits, path):
    """Write both splits to one `.npz` file, which `load_npz` and `cifar100(path)` read without TensorFlow."""
    _write(path, {**_to_arrays(splits.train, "train."), **_to_arrays(splits.test, "test.")})


def load_npz(path):
    """Read a file that `save_npz` wrote.

    Returns:
        `Splits`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a file of `Splits`.
    """
    return Splits(*_read(path, ["train.", "test."]))


def _to_arrays(examples, prefix=""):
    return {prefix + name: np.asarray(getattr(examples, name)) for name in _FIELDS}


def _write(path, arrays):
    path = pathlib.Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"The file's name must end in '.npz'. Received: {str(path)!r}.")
    make_directory(path.parent)
    atomic_write(path, lambda file: np.savez(file, **arrays))


def _read(path, prefixes):
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"The file {path} does not exist. Write it with `save` or `save_npz`.")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is not a complete .npz file. Write it again with `save` or `save_npz`.")
    with np.load(path, allow_pickle=False) as arrays:
        needed = [prefix + name for prefix in prefixes for name in _FIELDS]
        missing = [name for name in needed if name not in arrays]
        if missing:
            raise ValueError(
                f"{path} must have the arrays {missing}. Received: {arrays.files}. `ImageArrays.load` reads files of "
                "`ImageArrays.save`, and `load_npz` those of `save_npz`."
            )
        try:
            values = {name: arrays[name] for name in needed}
        except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(
                f"{path} is damaged or has other contents than arrays: {error}. Write it again."
            ) from error
        return [ImageArrays(**{name: values[prefix + name] for name in _FIELDS}) for prefix in prefixes]
