"""Base classes of data sets: labels, example numbers, and stratified subsets."""

import dataclasses
import functools
import hashlib

import keras
import numpy as np

from keras_wsl.data import stateless_random


class Dataset:
    """Base of frozen dataclasses with `labels`, `classes`, `index`, and further fields with one row per example.

    A subclass names all fields with one row per example in `PER_EXAMPLE_FIELDS`, and defines:

    - `inputs(rows)`: the network's inputs for some positions.
    - `augmentation`: the augmentation arguments of `train_batches` and their defaults.
    - `fingerprints`: a hash of each example's contents and label, uint64, shape `(n,)`.
    - `preprocessing`: all other settings that affect the network's inputs, as a dict for JSON.
    """

    PER_EXAMPLE_FIELDS = ("labels", "index")

    def __len__(self):
        return len(self.labels)

    @property
    def augmentation(self):
        """Augmentation arguments of `train_batches` and their defaults: `{name: value}`."""
        return {}

    @property
    def summary(self):
        """Counts for the record of a run: `{name: count}`."""
        return {"examples": len(self), "classes": len(self.classes)}

    def steps_per_epoch(self, batch_size):
        """Return the number of batches per epoch, including the smaller last one."""
        return -(-len(self) // batch_size)

    def select(self, positions):
        """Return the examples at some positions. They keep their numbers.

        Args:
            positions: Integers in `[0, n)`, or booleans of shape `(n,)`.
        """
        return dataclasses.replace(self, **{name: getattr(self, name)[positions] for name in self.PER_EXAMPLE_FIELDS})

    def slice(self, low, high):
        """Return the examples at the positions from `low` to `high - 1`. They keep their numbers."""
        return self.select(slice(low, high))

    def stratified_subset(self, limit, *, seed=0):
        """Return a subset with the class proportions of the whole, up to one example per class.

        The subset of a larger `limit` contains the subset of a smaller one.

        Args:
            limit: Integer in `[1, n]`.
            seed: Integer. Each seed selects another subset.

        Returns:
            A data set of the same class, in the order of this one.
        """
        return self.select(np.sort(self._stratified_order(limit, maximum=len(self), seed=seed)))

    def stratified_split(self, num_holdout, *, seed=0):
        """Split into two disjoint parts with the class proportions of the whole, up to one example per class.

        Args:
            num_holdout: Number of examples to hold out, an integer in `[1, n - 1]`.
            seed: Integer. Each seed selects another split.

        Returns:
            `(rest, held_out)`: two data sets of the same class, in the order of this one.
        """
        held_out = np.zeros(len(self), bool)
        held_out[self._stratified_order(num_holdout, maximum=len(self) - 1, seed=seed)] = True
        return self.select(~held_out), self.select(held_out)

    def _stratified_order(self, count, *, maximum, seed):
        """Return the first `count` positions of an order by hash in which every class is spread evenly."""
        if not stateless_random.is_integral(count) or not 1 <= count <= maximum:
            raise ValueError(
                f"The number of examples must be an integer from 1 to {maximum}. Received: {count!r} of {len(self)}."
            )
        seed, epoch = stateless_random.as_uint32("seed", seed), stateless_random.as_uint32("epoch", 0)
        hashes = stateless_random.random_uint32("subset", seed, epoch, self.index.astype("uint32"))
        by_class = np.lexsort((hashes, self.labels))
        class_sizes = np.bincount(self.labels)
        sorted_labels = self.labels[by_class]
        rank = np.arange(len(self)) - (np.cumsum(class_sizes) - class_sizes)[sorted_labels]
        quantile = np.empty(len(self))
        quantile[by_class] = (rank + 0.5) / class_sizes[sorted_labels]
        return np.lexsort((hashes, quantile))[: int(count)]

    def _set(self, **fields):
        """Set fields of the frozen dataclass."""
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    def _set_labels(self, count):
        """Validate labels, numbers and classes of `count` examples, and store them as int32 and a tuple of strings."""
        index = np.arange(count) if self.index is None else self.index
        labels, index = _validate_integers("labels", self.labels, count), _validate_integers("index", index, count)
        if isinstance(self.classes, str) or not np.iterable(self.classes):
            raise ValueError(
                f"`classes` must be a sequence with the name of each class, such as ('cat', 'dog'). "
                f"Received: classes={self.classes!r}."
            )
        classes = tuple(str(name) for name in self.classes)
        invalid = np.flatnonzero((labels < 0) | (labels >= len(classes)))
        if len(invalid):
            first = invalid[0]
            raise ValueError(
                f"`labels` must be in [0, {len(classes) - 1}], because there are {len(classes)} classes. "
                f"Received: label {labels[first]} for example {first} (index {index[first]}). "
                f"{len(invalid)} of {count} labels are out of range."
            )
        if index.min() < 0 or index.max() >= 2**31 or len(np.unique(index)) < count:
            raise ValueError("`index` must have a distinct integer in [0, 2**31) for every example.")
        self._set(labels=labels.astype("int32"), index=index.astype("int32"), classes=classes)


class ImageDataset:
    """Base of image data sets, with `mean` and `std` of each channel, by which pixels are normalized."""

    @functools.cached_property
    def scale_and_shift(self):
        """`1 / (255 std)` and `-mean / std`: two float32 arrays, shape `(channels,)`."""
        mean, std = np.array(self.mean), np.array(self.std)
        return (1 / (255 * std)).astype("float32"), (-mean / std).astype("float32")

    def normalize(self, pixels):
        r"""Normalize pixels to a network's inputs.

        $$x = \frac{v}{255 \sigma} - \frac{\mu}{\sigma}$$

        This is one product and one sum, each rounded to float32, so that NumPy and TensorFlow return the same bits.
        Code that XLA compiles may round once less, and differ in the last bit.

        Args:
            pixels: Floats in `[0, 255]`, float32, shape `(..., channels)`, of any library.

        Returns:
            float32, the same shape.
        """
        scale, shift = self.scale_and_shift
        return pixels * scale + shift

    def preprocessor(self):
        """Return `normalize` as a model, which `export` puts before a student.

        It has only layers of Keras, so files of it do not need this package.

        Returns:
            `keras.Model` that maps uint8 images, shape `(batch, *input_shape)`, to float32 of the same shape.
        """
        scale, shift = (values.tolist() for values in self.scale_and_shift)
        images = keras.Input(self.input_shape, dtype="uint8", name="images")
        normalized = keras.layers.Rescaling(scale, shift, dtype="float32", name="normalized")(images)
        return keras.Model(images, normalized, name="preprocessor")

    @property
    def preprocessing(self):
        """Settings that affect the network's inputs, except crops and flips."""
        return {"input_shape": list(self.input_shape), "mean": list(self.mean), "std": list(self.std)}

    def _set_statistics(self, channels):
        """Validate mean and standard deviation, and store them as tuples of floats."""
        mean, std = (tuple(float(value) for value in np.atleast_1d(values)) for values in (self.mean, self.std))
        received = f"Received: mean={mean}, std={std}."
        if len(mean) != channels or len(std) != channels:
            raise ValueError(f"`mean` and `std` must have {channels} values, one per channel of the images. {received}")
        if max(mean) > 1 or max(std) > 1:
            raise ValueError(f"`mean` and `std` must be those of pixels in [0, 1]. {received} Divide both by 255.")
        if not np.isfinite([*mean, *std]).all() or min(std) <= 0:
            raise ValueError(f"`mean` and `std` must be finite, and `std` positive. {received}")
        self._set(mean=mean, std=std)


def fingerprint(*chunks):
    """Return a 64-bit hash of some contents.

    Args:
        chunks: Bytes, or NumPy arrays.

    Returns:
        Integer in `[0, 2**64)`.
    """
    digest = hashlib.blake2b(digest_size=8)
    for chunk in chunks:
        digest.update(chunk if isinstance(chunk, bytes) else np.ascontiguousarray(chunk))
    return int.from_bytes(digest.digest(), "little")


def _validate_integers(name, values, count):
    values = np.asarray(values)
    if not np.issubdtype(values.dtype, np.integer) or values.shape != (count,):
        raise ValueError(
            f"`{name}` must be integers of shape ({count},), one per example. "
            f"Received: dtype {values.dtype} and shape {values.shape}."
        )
    return values.astype("int64")
