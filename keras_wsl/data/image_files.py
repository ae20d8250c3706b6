"""Images that stay in their files: a directory per class, or the records of TFDS. `tf_data_pipeline` reads them."""

import dataclasses
import logging
import os
import pathlib

import numpy as np

from keras_wsl.data.dataset import Dataset, ImageDataset, fingerprint

# The statistics of ImageNet that all its published networks use.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
SUFFIXES = (".jpeg", ".jpg", ".png")
SYSTEM_FOLDERS = ("__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information", "__pycache__")


class TooManyCorruptImagesError(ValueError):
    """Raised if more images cannot be read than the limit allows."""


@dataclasses.dataclass
class CorruptFiles:
    """The files that cannot be read and that batches leave out. All subsets of a data set share one object.

    Args:
        limit: Integer, the maximum number of files. One more is an error.
    """

    limit: int = 100
    names: list = dataclasses.field(default_factory=list)

    def add(self, name):
        """Add a file, once, and log a warning."""
        if name not in self.names:
            self.names.append(name)
            logging.getLogger(__name__).warning("%s cannot be read as an image and is left out.", name)

    def check_limit(self):
        """Raise `TooManyCorruptImagesError` if there are more than the limit."""
        if len(self.names) > self.limit:
            raise TooManyCorruptImagesError(
                f"At most {self.limit} images may be unreadable. Received: {len(self.names)}, the first is "
                f"{self.names[0]!r}. Download these files again, or increase the limit."
            )


class ImageFileDataset(ImageDataset):
    """Base of data sets in files. Fields: `classes`, `image_size`, `resize`, `mean`, `std`, `corrupt_files`."""

    @property
    def input_shape(self):
        """`(height, width, 3)`."""
        return self.image_size, self.image_size, 3

    @property
    def augmentation(self):
        """Crops of 8 % to 100 % of the area, with aspect ratios from 3:4 to 4:3, and flips: the recipes of ImageNet."""
        return {"scale": (0.08, 1.0), "ratio": (3 / 4, 4 / 3), "flip": True}

    @property
    def preprocessing(self):
        """Settings that affect the network's inputs, except crops and flips."""
        return {**super().preprocessing, "resize": self.resize}

    @property
    def summary(self):
        """Counts for the record of a run, and the names of the first 20 images that were left out."""
        left_out = self.corrupt_files.names
        counts = {"examples": len(self), "classes": len(self.classes)}
        return {**counts, "unreadable_images": len(left_out), "unreadable": left_out[:20]}

    def _set_sizes(self):
        for name in ("image_size", "resize"):
            value = getattr(self, name)
            if value != int(value) or value < 1:
                raise ValueError(f"`{name}` must be a positive integer. Received: {name}={value!r}.")
        if self.resize < self.image_size:
            raise ValueError(
                "`resize` must be at least `image_size`, because the center is cropped after resizing. "
                f"Received: resize={self.resize}, image_size={self.image_size}."
            )
        self._set_statistics(3)


@dataclasses.dataclass(frozen=True, eq=False)
class ImageFolder(ImageFileDataset, Dataset):
    """Image files and their labels.

    Args:
        paths: n paths.
        labels: Integers in `[0, len(classes))`, shape `(n,)`. Stored as int32.
        classes: Names of the classes, a tuple of strings.
        image_size: Integer, height and width of a network's inputs.
        resize: Integer, the shorter side of a test image before its center is cropped.
        mean: Each channel's mean over training images in `[0, 1]`, a tuple of floats.
        std: Each channel's standard deviation over training images in `[0, 1]`, a tuple of floats.
        corrupt_files: `CorruptFiles`, which collects the files that cannot be read.
        index: Distinct integers, shape `(n,)`. Stored as int32. Default: 0, 1, ..., n - 1.

    Raises:
        ValueError: If lengths do not match, a size or a label is out of range, or a number repeats.
    """

    paths: np.ndarray
    labels: np.ndarray
    classes: tuple
    image_size: int = 224
    resize: int = 256
    mean: tuple = MEAN
    std: tuple = STD
    corrupt_files: CorruptFiles = dataclasses.field(default_factory=CorruptFiles)
    index: np.ndarray | None = None

    PER_EXAMPLE_FIELDS = ("paths", "labels", "index")

    def __post_init__(self):
        self._set_sizes()
        self._set(paths=np.array([os.fsencode(path) for path in self.paths]))
        self._set_labels(len(self.paths))

    @property
    def fingerprints(self):
        """64-bit hash of each file's name, its directory's name, its size and its label: uint64, shape `(n,)`."""
        hashes = []
        for path, label in zip(self.paths, self.labels):
            name, size = b"/".join(path.split(b"/")[-2:]), os.stat(path).st_size
            hashes.append(fingerprint(name, size.to_bytes(8, "little"), label))
        return np.array(hashes, "uint64")

    def get_names(self, numbers):
        """Return the paths of the examples with these numbers."""
        return [os.fsdecode(self.paths[row]) for row in np.flatnonzero(np.isin(self.index, numbers))]


@dataclasses.dataclass(frozen=True, eq=False)
class TfdsImageDataset(ImageFileDataset):
    """Images in the record files of a TFDS data set, which are read file by file and not kept in memory.

    Example i of a split is the i-th in its files, which TFDS wrote in a random order. An epoch's order comes from a
    random order of the files, several of which are read at once, and a shuffle buffer of examples.

    Args:
        builder: A `tfds.core.DatasetBuilder` that is prepared as `tfrecord` files, with the features `image` and
            `label`.
        split_name: The name of a split.
        image_size: Integer, height and width of a network's inputs.
        resize: Integer, the shorter side of a test image before its center is cropped.
        mean: Each channel's mean over training images in `[0, 1]`, a tuple of floats.
        std: Each channel's standard deviation over training images in `[0, 1]`, a tuple of floats.
        corrupt_files: `CorruptFiles`, which collects the images that cannot be read.
        buffer: Integer, the size of the shuffle buffer.
        low: Integer, the first example.
        high: Integer, the example after the last one. Default: the split's end.

    Raises:
        ValueError: If there is no such split, it has other features or files, or a size is out of range.
    """

    builder: object
    split_name: str
    image_size: int = 224
    resize: int = 256
    mean: tuple = MEAN
    std: tuple = STD
    corrupt_files: CorruptFiles = dataclasses.field(default_factory=CorruptFiles)
    buffer: int = 10_000
    low: int = 0
    high: int | None = None

    def __post_init__(self):
        info = self.builder.info
        if self.split_name not in info.splits:
            raise ValueError(
                f"`split_name` must be one of {list(info.splits)}, the splits of {info.full_name}. "
                f"Received: {self.split_name!r}."
            )
        if not {"image", "label"} <= set(info.features):
            raise ValueError(
                f"{info.full_name} must have the features 'image' and 'label'. Received: {list(info.features)}."
            )
        if info.file_format.value != "tfrecord":
            raise ValueError(
                f"{info.full_name} must be stored in tfrecord files. Received: {info.file_format.value} files."
            )
        self._set_sizes()
        size = info.splits[self.split_name].num_examples
        high = size if self.high is None else self.high
        if not 0 <= self.low < high <= size:
            raise ValueError(f"`low` and `high` must be in [0, {size}]. Received: low={self.low}, high={high}.")
        self._set(high=high)

    def _set(self, **fields):
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    def __len__(self):
        return self.high - self.low

    @property
    def classes(self):
        """Names of the classes, a tuple of strings."""
        return tuple(self.builder.info.features["label"].names)

    @property
    def labels(self):
        """The labels of all examples, int32, shape `(n,)`. Reads all files, which is slow."""
        import tensorflow_datasets as tfds

        skip = {"image": tfds.decode.SkipDecoding()}
        # File by file. By default TFDS interleaves several.
        dataset = self.builder.as_dataset(
            split=f"{self.split_name}[{self.low}:{self.high}]",
            decoders=skip,
            read_config=tfds.ReadConfig(interleave_cycle_length=1),
        )
        return np.array([int(example["label"]) for example in tfds.as_numpy(dataset)], "int32")

    @property
    def index(self):
        """The examples' numbers in the split."""
        return np.arange(self.low, self.high, dtype="int32")

    @property
    def shards(self):
        """The path of each file and the number of its first example: `[(path, number)]`."""
        split = self.builder.info.splits[self.split_name]
        limits = np.cumsum([0, *split.shard_lengths])
        files = zip(split.filepaths, limits[:-1], limits[1:])
        return [(os.fspath(path), int(first)) for path, first, end in files if first < self.high and end > self.low]

    @property
    def fingerprints(self):
        """64-bit hash of the data set's name and version, the split's files, and each example's number in them."""
        split = self.builder.info.splits[self.split_name]
        text = f"{self.builder.info.full_name} {self.split_name} {split.num_bytes} {split.shard_lengths}".encode()
        return np.array([fingerprint(text, number) for number in self.index], "uint64")

    def steps_per_epoch(self, batch_size):
        """Return the number of batches per epoch, including the smaller last one."""
        return -(-len(self) // batch_size)

    def slice(self, low, high):
        """Return the examples at the positions from `low` to `high - 1`. They keep their numbers."""
        return dataclasses.replace(self, low=self.low + low, high=min(self.low + high, self.high))

    def stratified_subset(self, limit, *, seed=0):
        """Return the first `limit` examples. The files are in a random order, so this ignores the seed."""
        del seed
        self._check_count(limit, len(self))
        return dataclasses.replace(self, high=self.low + int(limit))

    def stratified_split(self, num_holdout, *, seed=0):
        """Return all but the last `num_holdout` examples, and those. Ignores the seed, like `stratified_subset`."""
        del seed
        self._check_count(num_holdout, len(self) - 1)
        end = self.high - int(num_holdout)
        return dataclasses.replace(self, high=end), dataclasses.replace(self, low=end)

    def _check_count(self, count, maximum):
        if count != int(count) or not 1 <= count <= maximum:
            raise ValueError(
                f"The number of examples must be an integer from 1 to {maximum}. Received: {count!r} of {len(self)}."
            )

    def get_names(self, numbers):
        """Return names of the examples with these numbers."""
        return [f"{self.split_name} example {number} of {self.builder.info.full_name}" for number in numbers]


def image_folder(directory, *, classes=None, **kwargs):
    """Return the images of a tree `directory/CLASS/*.jpg` (or .jpeg, .png, in any case), labeled by directory name.

    Hidden files and directories, such as `.thumbs` and `._1.jpg`, are ignored. An entry with an image's name that is
    not a regular file, such as a named pipe or a symbolic link without a target, counts as a corrupt file.

    Args:
        directory: Path.
        classes: The expected names of the classes. Default: the directories' names, in alphabetical order.
        **kwargs: Fields of `ImageFolder`, such as `image_size`.

    Returns:
        `ImageFolder`, in the order of class and file name.

    Raises:
        FileNotFoundError: If there is no such directory.
        ValueError: If it has no directories, one of them has no image, or the classes are not the expected ones.
        TooManyCorruptImagesError: If more than `corrupt_files.limit` are not regular files.
    """
    directory = pathlib.Path(directory)
    if not directory.is_dir():
        raise FileNotFoundError(f"{str(directory)!r} must be a directory with a subdirectory per class. It is missing.")
    names = sorted(entry.name for entry in os.scandir(directory) if entry.is_dir() and not _is_hidden(entry.name))
    if not names:
        raise ValueError(f"{str(directory)!r} must have a subdirectory of images per class. It has none.")
    if classes is not None and set(names) != set(classes):
        raise ValueError(
            f"{str(directory)!r} must have the same classes as the training images. "
            f"Missing: {sorted(set(classes) - set(names))}. Unknown: {sorted(set(names) - set(classes))}."
        )
    classes = tuple(names if classes is None else classes)
    paths, labels, irregular = [], [], []
    for label, name in enumerate(classes):
        images = [entry for entry in os.scandir(directory / name) if _is_image(entry.name)]
        # Reading a named pipe or a device could wait forever.
        irregular += sorted(entry.path for entry in images if not entry.is_file())
        files = sorted(entry.path for entry in images if entry.is_file())
        if not files:
            raise ValueError(
                f"{str(directory / name)!r} must have files that end in {', '.join(SUFFIXES)}. It has none. Add "
                "images, or remove the directory."
            )
        paths += files
        labels += [label] * len(files)
    examples = ImageFolder(paths, np.array(labels), classes, **kwargs)
    for path in irregular:
        examples.corrupt_files.add(path)
    examples.corrupt_files.check_limit()
    return examples


def _is_hidden(name):
    """Return whether a file or directory is hidden, or made by an operating system or a file manager."""
    return name.startswith(".") or name in SYSTEM_FOLDERS


def _is_image(name):
    return name.lower().endswith(SUFFIXES) and not _is_hidden(name)
