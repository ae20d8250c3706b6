"""What all arms of a comparison share: networks, sizes, recipe and random data."""

import dataclasses
import itertools

import numpy as np

LEARNING_RATE = 0.05
MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
TEMPERATURE = 4.0
ALPHA = 2.25  # WSL's weight.
KD_SHARE = 0.9  # KD's weight; the labels' loss has the rest.
PRODUCT = 2048  # Rows and columns of the matrices that are multiplied, to see what rate the machine has.
BATCHES = 4  # That are held in memory, and come again and again.


@dataclasses.dataclass(frozen=True)
class Case:
    """Two networks, by their names in `models.build`, and the batches that they are given."""

    teacher: str = "wrn_40_2"
    student: str = "wrn_16_2"
    batch_size: int = 64
    size: int = 32
    classes: int = 100

    @property
    def shape(self):
        """`(height, width, channels)` of an image."""
        return (self.size, self.size, 3)

    def arrays(self):
        """Normalized images, `(BATCHES, batch_size, height, width, 3)`, and labels; the same at every call."""
        generator = np.random.default_rng(0)
        images = generator.normal(size=(BATCHES, self.batch_size, *self.shape)).astype("float32")
        return images, generator.integers(0, self.classes, (BATCHES, self.batch_size)).astype("int32")

    def batches(self):
        """An endless generator of `(images, labels)`, NumPy arrays."""
        yield from itertools.cycle(list(zip(*self.arrays())))

    def examples(self, batches):
        """Return `data.ImageArrays` with this number of batches of random images."""
        from keras_wsl import data

        count = batches * self.batch_size
        images = np.random.default_rng(0).integers(0, 256, (count, *self.shape), dtype="uint8")
        names = tuple(map(str, range(self.classes)))
        return data.ImageArrays(images, np.arange(count) % self.classes, names, (0.5,) * 3, (0.25,) * 3)
