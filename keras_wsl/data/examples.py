"""Labelled images in memory, with the numbers and statistics that every pipeline needs."""

import dataclasses
import functools
import pathlib
import zipfile
from typing import NamedTuple

import numpy as np

from keras_wsl.data import seeded
from keras_wsl.files import write_atomically

_FIELDS = ("images", "labels", "index", "classes", "mean", "std")


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
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

    def __post_init__(self):
        images = np.asarray(self.images)
        if images.dtype != np.uint8:
            raise ValueError(f"images are {images.dtype}; expected uint8, not yet scaled or normalised.")
        if images.ndim != 4 or 0 in images.shape:
            raise ValueError(
                f"images have shape {images.shape}; expected (n, height, width, channels), none of them 0."
            )
        count, channels = len(images), images.shape[3]
        index = np.arange(count) if self.index is None else self.index
        labels, index = _integers("labels", self.labels, count), _integers("index", index, count)
        classes = tuple(str(name) for name in self.classes)
        wrong = np.flatnonzero((labels < 0) | (labels >= len(classes)))
        if len(wrong):
            first = wrong[0]
            raise ValueError(
                f"labels: example {first} (index {index[first]}) has {labels[first]}; expected 0 to "
                f"{len(classes) - 1}, as there are {len(classes)} classes. {len(wrong)} of {count} are out of range."
            )
        if index.min() < 0 or index.max() >= 2**31 or len(np.unique(index)) < count:
            raise ValueError("index expected to have a number of its own in [0, 2**31) for every example.")
        mean, std = (tuple(float(value) for value in values) for values in (self.mean, self.std))
        if len(mean) != channels or len(std) != channels:
            raise ValueError(f"mean {mean} and std {std} expected to have {channels} values, as images have channels.")
        if not np.isfinite([*mean, *std]).all() or min(std) <= 0:
            raise ValueError(f"mean {mean} and std {std} expected to be finite, and std positive.")
        # The only way to set a field of a frozen dataclass.
        numbers = {"labels": labels.astype("int32"), "index": index.astype("int32")}
        for name, value in {"images": images, **numbers, "classes": classes, "mean": mean, "std": std}.items():
            object.__setattr__(self, name, value)

    def __len__(self):
        return len(self.images)

    def steps_per_epoch(self, batch_size):
        """Batches of an epoch, the smaller last one among them."""
        return -(-len(self) // batch_size)

    @functools.cached_property
    def scale_and_shift(self):
        """`1 / (255 std)` and `-mean / std`: two float32, shape `(channels,)`."""
        mean, std = np.array(self.mean), np.array(self.std)
        return (1 / (255 * std)).astype("float32"), (-mean / std).astype("float32")

    def normalize(self, pixels):
        r"""Pixels as networks take them.

        $$x = \frac{v}{255 \sigma} - \frac{\mu}{\sigma}$$

        One product and one sum, each rounded to float32, so that NumPy and TensorFlow agree in every bit. Code that XLA
        compiles may round once less, and differ in the last bit.

        Args:
            pixels: Floats in `[0, 255]`, float32, shape `(..., channels)`, of any library.

        Returns:
            float32, the same shape.
        """
        scale, shift = self.scale_and_shift
        return pixels * scale + shift

    def rows(self, positions):
        """The examples at these positions, with the numbers they have here.

        Args:
            positions: Integers in `[0, n)`, or booleans of shape `(n,)`.

        Returns:
            `Examples`.
        """
        return dataclasses.replace(
            self, images=self.images[positions], labels=self.labels[positions], index=self.index[positions]
        )

    def take(self, limit, *, seed=0):
        """A part in which every class has its share, up to one example; a larger limit only adds examples.

        Args:
            limit: Integer in `[1, n]`.
            seed: Integer; another seed is another choice.

        Returns:
            `Examples`, in the order that they have here.
        """
        return self.rows(np.sort(self._by_share(limit, n_most=len(self), seed=seed)))

    def split(self, holdout, *, seed=0):
        """Two disjoint parts, in both of which every class has its share, up to one example.

        Args:
            holdout: Examples to hold out, an integer in `[1, n - 1]`.
            seed: Integer; another seed is another choice.

        Returns:
            The rest and the held-out: two `Examples`, in the order that they have here.
        """
        held = np.zeros(len(self), bool)
        held[self._by_share(holdout, n_most=len(self) - 1, seed=seed)] = True
        return self.rows(~held), self.rows(held)

    def save(self, path):
        """Writes one `.npz` file, which `Examples.load` reads without TensorFlow."""
        _write(path, _arrays(self))

    @classmethod
    def load(cls, path):
        """Reads what `save` wrote.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is not a file of `Examples`.
        """
        return _read(path, [""])[0]

    def _by_share(self, count, *, n_most, seed):
        """The first `count` positions when each class hands out its examples, drawn by hash, at an even pace."""
        if count != int(count) or not 1 <= count <= n_most:
            raise ValueError(f"{count!r} of {len(self)} examples asked for; expected an integer from 1 to {n_most}.")
        hashes = seeded.draw("subset", seeded.key("seed", seed), seeded.key("epoch", 0), self.index.astype("uint32"))
        by_class = np.lexsort((hashes, self.labels))
        sizes = np.bincount(self.labels)
        size = sizes[self.labels[by_class]]
        rank = np.arange(len(self)) - (np.cumsum(sizes) - sizes)[self.labels[by_class]]
        pace = np.empty(len(self))
        pace[by_class] = (rank + 0.5) / size
        return np.lexsort((hashes, pace))[: int(count)]


class Splits(NamedTuple):
    """A data set. A validation set is a part of train: `rest, validation = splits.train.split(5000)`."""

    train: Examples
    test: Examples


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


def _integers(name, values, count):
    values = np.asarray(values)
    if not np.issubdtype(values.dtype, np.integer) or values.shape != (count,):
        raise ValueError(
            f"{name} have dtype {values.dtype} and shape {values.shape}; expected integers, shape ({count},)."
        )
    return values.astype("int64")


def _arrays(examples, prefix=""):
    return {prefix + name: np.asarray(getattr(examples, name)) for name in _FIELDS}


def _write(path, arrays):
    path = pathlib.Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"{path} is not named .npz.")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: np.savez(file, **arrays))


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
                f"{path} has the arrays {arrays.files}, and not {missing}; `Examples.load` reads what `Examples.save` "
                "wrote, `load_npz` what `save_npz` wrote."
            )
        return [Examples(**{name: arrays[prefix + name] for name in _FIELDS}) for prefix in prefixes]
