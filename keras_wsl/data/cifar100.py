"""CIFAR-100: Krizhevsky, 2009, "Learning multiple layers of features from tiny images"."""

import pathlib

import numpy as np

from keras_wsl.data import tfds_builder
from keras_wsl.data.image_arrays import ImageArrays, Splits, load_npz

# As in the distillation papers' code. The images have (0.5071, 0.4865, 0.4409) and (0.2673, 0.2564, 0.2762).
MEAN = (0.5071, 0.4867, 0.4408)
STD = (0.2675, 0.2565, 0.2761)


def cifar100(data_dir=None, *, download=False):
    """Load the 50,000 training and 10,000 test images, 32 x 32 x 3, of 100 classes.

    Example i of a split is the one that TFDS calls `train_0000i` or `test_0000i`, whatever its position in the files.

    Args:
        data_dir: A TFDS directory, or a `.npz` file that `save_npz` wrote, which needs no TensorFlow. Default: TFDS's
            own (`TFDS_DATA_DIR`, else `~/tensorflow_datasets`).
        download: Whether TFDS may download the data set. If False, the network is not used.

    Returns:
        `Splits`.

    Raises:
        FileNotFoundError: If the data set is missing and may not be downloaded.
        ValueError: If it is not CIFAR-100.
    """
    if data_dir is not None and pathlib.Path(data_dir).suffix == ".npz":
        return load_npz(data_dir)
    builder = tfds_builder.find_builder(
        "cifar100",
        data_dir,
        advice="Pass download=True (--download in the scripts), or set data_dir to its TFDS directory or to a .npz "
        "file that keras_wsl.data.save_npz wrote.",
        download=download,
    )
    classes = tuple(builder.info.features["label"].names)
    return Splits(*(_load_split(builder, split, classes) for split in ("train", "test")))


def _load_split(builder, split, classes):
    import tensorflow_datasets as tfds

    count = builder.info.splits[split].num_examples
    images, labels = np.empty((count, 32, 32, 3), "uint8"), np.empty(count, "int32")
    numbers = np.empty(count, "int64")
    low = 0
    for batch in tfds.as_numpy(builder.as_dataset(split=split, batch_size=1000, shuffle_files=False)):
        rows = slice(low, low := low + len(batch["label"]))
        images[rows], labels[rows] = batch["image"], batch["label"]
        numbers[rows] = [int(name.rpartition(b"_")[2]) for name in batch["id"]]
    order = np.argsort(numbers)
    if not np.array_equal(numbers[order], np.arange(count)):
        raise ValueError(f"The {split} split of CIFAR-100 must have the ids 0 to {count - 1} of TFDS. It has others.")
    return ImageArrays(images[order], labels[order], classes, MEAN, STD)
