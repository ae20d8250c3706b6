"""What all data sets share: labels, each example's number, and parts in which every class has its share."""

import dataclasses
import functools
import hashlib

import keras
import numpy as np

from keras_wsl.data import stateless_random


class Dataset:
    """Base of frozen dataclasses with `labels`, `classes` and `index`, and other fields with a row for each example.

    A subclass names all fields with a row for each example in `ROWS`, gives what a network is fed in `inputs(rows)`,
    and the settings of `train_batches` that suit it in `augmentation`; in `fingerprints`, 64 bits for each example's
    contents and label, uint64 `(n,)`; and in `preprocessing`, whatever else decides what a network is fed, for JSON.
    """

    ROWS = ("labels", "index")

    def __len__(self):
        return len(self.labels)

    @property
    def augmentation(self):
        """What `train_batches` takes beside, and its default here: `{name: value}`."""
        return {}

    @property
    def report(self):
        """What a run's record should say of it: `{name: count}`."""
        return {"examples": len(self), "classes": len(self.classes)}

    def steps_per_epoch(self, batch_size):
        """Batches of an epoch, the smaller last one among them."""
        return -(-len(self) // batch_size)

    def rows(self, positions):
        """The examples at these positions, with the numbers they have here.

        Args:
            positions: Integers in `[0, n)`, or booleans of shape `(n,)`.
        """
        return dataclasses.replace(self, **{name: getattr(self, name)[positions] for name in self.ROWS})

    def between(self, low, high):
        """The examples at the positions from `low` to `high - 1`, with the numbers they have here."""
        return self.rows(slice(low, high))

    def take(self, limit, *, seed=0):
        """A part in which every class has its share, up to one example; a larger limit only adds examples.

        Args:
            limit: Integer in `[1, n]`.
            seed: Integer; another seed is another choice.

        Returns:
            Examples of the same kind, in the order that they have here.
        """
        return self.rows(np.sort(self._by_share(limit, n_most=len(self), seed=seed)))

    def split(self, num_holdout, *, seed=0):
        """Two disjoint parts, in both of which every class has its share, up to one example.

        Args:
            num_holdout: Examples to hold out, an integer in `[1, n - 1]`.
            seed: Integer; another seed is another choice.

        Returns:
            The rest and the held-out: two of the same kind, in the order that they have here.
        """
        held = np.zeros(len(self), bool)
        held[self._by_share(num_holdout, n_most=len(self) - 1, seed=seed)] = True
        return self.rows(~held), self.rows(held)

    def _by_share(self, count, *, n_most, seed):
        """The first `count` positions when each class hands out its examples, drawn by hash, at an even pace."""
        if not stateless_random.is_whole(count) or not 1 <= count <= n_most:
            raise ValueError(
                f"{count!r} of {len(self)} examples asked for; expected an integer from 1 to {n_most}. Ask for so many."
            )
        hashes = stateless_random.draw(
            "subset", stateless_random.key("seed", seed), stateless_random.key("epoch", 0), self.index.astype("uint32")
        )
        by_class = np.lexsort((hashes, self.labels))
        sizes = np.bincount(self.labels)
        size = sizes[self.labels[by_class]]
        rank = np.arange(len(self)) - (np.cumsum(sizes) - sizes)[self.labels[by_class]]
        pace = np.empty(len(self))
        pace[by_class] = (rank + 0.5) / size
        return np.lexsort((hashes, pace))[: int(count)]

    def _set(self, **fields):
        """Sets fields, which a frozen dataclass lets nothing but this do."""
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    def _set_labels(self, count):
        """Checks labels, numbers and classes of `count` examples, and keeps them as int32 and a tuple of strings."""
        index = np.arange(count) if self.index is None else self.index
        labels, index = _integers("labels", self.labels, count), _integers("index", index, count)
        if isinstance(self.classes, str) or not np.iterable(self.classes):
            raise ValueError(f"classes are {self.classes!r}; expected the name of each class, such as ('cat', 'dog').")
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
        self._set(labels=labels.astype("int32"), index=index.astype("int32"), classes=classes)


class ImageDataset:
    """What data sets of images share: `mean` and `std` of each channel, by which pixels become a network's inputs."""

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

    def preprocessor(self):
        """Pixels to what networks take, as `normalize` has it: the model that `export` puts before a student.

        Of layers of Keras alone, so that no file needs this package.

        Returns:
            `keras.Model` that maps uint8 images, shape `(batch, *input_shape)`, to float32 of the same shape.
        """
        scale, shift = (values.tolist() for values in self.scale_and_shift)
        images = keras.Input(self.input_shape, dtype="uint8", name="images")
        normalized = keras.layers.Rescaling(scale, shift, dtype="float32", name="normalized")(images)
        return keras.Model(images, normalized, name="preprocessor")

    @property
    def preprocessing(self):
        """What becomes of the pixels, beside crops and flips."""
        return {"input_shape": list(self.input_shape), "mean": list(self.mean), "std": list(self.std)}

    def _set_statistics(self, channels):
        """Checks mean and standard deviation, and keeps them as tuples of floats."""
        mean, std = (tuple(float(value) for value in np.atleast_1d(values)) for values in (self.mean, self.std))
        if len(mean) != channels or len(std) != channels:
            raise ValueError(f"mean {mean} and std {std} expected to have {channels} values, as images have channels.")
        if max(mean) > 1 or max(std) > 1:
            raise ValueError(f"mean {mean} and std {std} expected of pixels in [0, 1]. Divide both by 255.")
        if not np.isfinite([*mean, *std]).all() or min(std) <= 0:
            raise ValueError(f"mean {mean} and std {std} expected to be finite, and std positive.")
        self._set(mean=mean, std=std)


def fingerprint(*parts):
    """64 bits that tell contents apart.

    Args:
        parts: Bytes, or NumPy arrays.

    Returns:
        Integer in `[0, 2**64)`.
    """
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part if isinstance(part, bytes) else np.ascontiguousarray(part))
    return int.from_bytes(digest.digest(), "little")


def _integers(name, values, count):
    values = np.asarray(values)
    if not np.issubdtype(values.dtype, np.integer) or values.shape != (count,):
        raise ValueError(
            f"{name} have dtype {values.dtype} and shape {values.shape}; expected integers, shape ({count},). "
            "Give one number an example."
        )
    return values.astype("int64")
