"""Labelled images in memory, with the numbers and statistics that every pipeline needs."""

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
    """Images, labels, and each example's number in the split that it came from.

    Args:
        images: uint8, shape `(n, height, width, channels)`.
        labels: Integers in `[0, len(classes))`, shape `(n,)`; kept as int32.
        classes: Names of the classes, a tuple of strings.
        mean: Each channel's mean of training images in `[0, 1]`, a tuple of floats.
        std: Each channel's standard deviation, likewise.
        index: Integers, shape `(n,)`, no two equal; kept as int32. The position in the whole split, so that a subset's
            examples keep their numbers, and with them their crops and their rows of cached soft labels. Default:
            0, 1, ..., n - 1.

    Raises:
        ValueError: Shapes, dtypes or lengths do not fit, a label is out of range, or a number comes twice.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: tuple
    mean: tuple
    std: tuple
    index: np.ndarray | None = None

    ROWS = ("images", "labels", "index")

    def __post_init__(self):
        images = np.asarray(self.images)
        if images.dtype != np.uint8:
            raise ValueError(f"images are {images.dtype}; expected uint8, not yet scaled or normalised. Give 0 to 255.")
        if images.ndim != 4 or 0 in images.shape:
            raise ValueError(
                f"images have shape {images.shape}; expected (n, height, width, channels), none of them 0. Add the "
                "axis that is missing."
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
        """Crops and flips of natural images, as in the recipes; grey ones are glyphs, which a flip would change."""
        padding, flip = (4, True) if self.images.shape[-1] == 3 else (1, False)
        return {"padding": padding, "padding_mode": "constant", "flip": flip}

    def inputs(self, rows):
        """The images at some positions, normalised: float32, shape `(n, height, width, channels)`."""
        return self.normalize(self.images[rows].astype("float32"))

    @property
    def fingerprints(self):
        """64 bits for each image and its label: uint64, shape `(n,)`."""
        return np.array([fingerprint(*row) for row in zip(self.images, self.labels)], "uint64")

    def save(self, path):
        """Writes one `.npz` file, which `ImageArrays.load` reads without TensorFlow."""
        _write(path, _arrays(self))

    @classmethod
    def load(cls, path):
        """Reads what `save` wrote.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is not a file of `ImageArrays`.
        """
        return _read(path, [""])[0]


class Splits(NamedTuple):
    """A data set. A validation set is a part of train: `rest, validation = splits.train.split(5000)`."""

    train: ImageArrays
    test: ImageArrays


def halves(splits):
    """The task of two classes, whether a label is in the second half of the classes, as in the second paper's figures.

    Args:
        splits: `Splits`.

    Returns:
        `Splits` of the same images, with the labels 0 and 1.
    """

    def of(part):
        half = len(part.classes) // 2
        labels = (part.labels >= half).astype(part.labels.dtype)
        return dataclasses.replace(part, labels=labels, classes=("first half", "second half"))

    return Splits(*map(of, splits))


def save_npz(splits, path):
    """Writes both splits to one `.npz` file, which `load_npz` and `cifar100(path)` read without TensorFlow."""
    _write(path, {**_arrays(splits.train, "train."), **_arrays(splits.test, "test.")})


def load_npz(path):
    """Reads what `save_npz` wrote.

    Returns:
        `Splits`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not a file of `Splits`.
    """
    return Splits(*_read(path, ["train.", "test."]))


def _arrays(examples, prefix=""):
    return {prefix + name: np.asarray(getattr(examples, name)) for name in _FIELDS}


def _write(path, arrays):
    path = pathlib.Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"{path} is not named .npz.")
    make_directory(path.parent)
    atomic_write(path, lambda file: np.savez(file, **arrays))


def _read(path, prefixes):
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}; `save` and `save_npz` write such files.")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is not a whole .npz file; write it again with `save` or `save_npz`.")
    with np.load(path, allow_pickle=False) as arrays:
        needed = [prefix + name for prefix in prefixes for name in _FIELDS]
        missing = [name for name in needed if name not in arrays]
        if missing:
            raise ValueError(
                f"{path} has the arrays {arrays.files}, and not {missing}; `ImageArrays.load` reads "
                "what `ImageArrays.save` wrote, `load_npz` what `save_npz` wrote."
            )
        try:
            found = {name: arrays[name] for name in needed}
        except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"{path} holds what is no array, or is damaged: {error}. Write it again.") from error
        return [ImageArrays(**{name: found[prefix + name] for name in _FIELDS}) for prefix in prefixes]
