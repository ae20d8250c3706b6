"""Images that stay in their files: a folder for each class, or the records of TFDS. Read by `tensorflow.py`."""

import dataclasses
import logging
import os
import pathlib

import numpy as np

from keras_wsl.data.dataset import Dataset, ImageDataset, fingerprint

# Of ImageNet, as all its networks have them.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
SUFFIXES = (".jpeg", ".jpg", ".png")
SYSTEM_FOLDERS = ("__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information", "__pycache__")


class TooManyCorruptImagesError(ValueError):
    """More files could not be read than the limit allows."""


@dataclasses.dataclass
class CorruptFiles:
    """The files that could not be read, which batches leave out; shared by all parts of a data set.

    Args:
        limit: Integer, so many may be left out; at one more, reading ends with an error.
    """

    limit: int = 100
    names: list = dataclasses.field(default_factory=list)

    def note(self, name):
        """Adds a file, once, and warns of it."""
        if name not in self.names:
            self.names.append(name)
            logging.getLogger(__name__).warning("%s cannot be read as an image, and is left out.", name)

    def check(self):
        """Raises `TooManyCorruptImagesError` if there are more than the limit."""
        if len(self.names) > self.limit:
            raise TooManyCorruptImagesError(
                f"{len(self.names)} images could not be read, and the limit is {self.limit}; the first is "
                f"{self.names[0]!r}. Fetch these files again, or raise the limit."
            )


class ImageFileDataset(ImageDataset):
    """What the data sets of files share. Fields: `classes`, `image_size`, `resize`, `mean`, `std`, `unreadable`."""

    @property
    def input_shape(self):
        """`(height, width, 3)`."""
        return self.image_size, self.image_size, 3

    @property
    def augmentation(self):
        """Crops of 8 % to all of the area, of shapes from 3:4 to 4:3, and flips, as in the recipes for ImageNet."""
        return {"scale": (0.08, 1.0), "ratio": (3 / 4, 4 / 3), "flip": True}

    @property
    def preprocessing(self):
        """What becomes of the pixels, beside crops and flips."""
        return {**super().preprocessing, "resize": self.resize}

    @property
    def report(self):
        """What a run's record should say of it: `{name: count}`, and the first of the images left out."""
        left_out = self.unreadable.names
        counts = {"examples": len(self), "classes": len(self.classes)}
        return {**counts, "unreadable_images": len(left_out), "unreadable": left_out[:20]}

    def _set_sizes(self):
        for name in ("image_size", "resize"):
            value = getattr(self, name)
            if value != int(value) or value < 1:
                raise ValueError(f"{name} is {value!r}; expected an integer >= 1.")
        if self.resize < self.image_size:
            raise ValueError(
                f"resize is {self.resize} and image_size {self.image_size}; expected a shorter side, before the centre "
                "is cut out, at least as long as what is cut out."
            )
        self._set_statistics(3)


@dataclasses.dataclass(frozen=True, eq=False)
class ImageFolder(ImageFileDataset, Dataset):
    """Image files and their labels.

    Args:
        paths: Paths, n of them.
        labels: Integers in `[0, len(classes))`, shape `(n,)`; kept as int32.
        classes: Names of the classes, a tuple of strings.
        image_size: Integer, height and width of what networks see.
        resize: Integer, the shorter side of a test image before its centre is cut out.
        mean: Each channel's mean of training images in `[0, 1]`, a tuple of floats.
        std: Each channel's standard deviation, likewise.
        unreadable: `CorruptFiles`, which counts the files that could not be read.
        index: Integers, shape `(n,)`, no two equal; kept as int32. Default: 0, 1, ..., n - 1.

    Raises:
        ValueError: Lengths do not fit, a size or a label is out of range, or a number comes twice.
    """

    paths: np.ndarray
    labels: np.ndarray
    classes: tuple
    image_size: int = 224
    resize: int = 256
    mean: tuple = MEAN
    std: tuple = STD
    unreadable: CorruptFiles = dataclasses.field(default_factory=CorruptFiles)
    index: np.ndarray | None = None

    ROWS = ("paths", "labels", "index")

    def __post_init__(self):
        self._set_sizes()
        self._set(paths=np.array([os.fsencode(path) for path in self.paths]))
        self._set_labels(len(self.paths))

    @property
    def fingerprints(self):
        """64 bits for each file's name, its folder's, its size and its label: uint64, shape `(n,)`."""
        found = []
        for path, label in zip(self.paths, self.labels):
            name, size = b"/".join(path.split(b"/")[-2:]), os.stat(path).st_size
            found.append(fingerprint(name, size.to_bytes(8, "little"), label))
        return np.array(found, "uint64")

    def names_of(self, numbers):
        """The paths of the examples of these numbers."""
        return [os.fsdecode(self.paths[row]) for row in np.flatnonzero(np.isin(self.index, numbers))]


@dataclasses.dataclass(frozen=True, eq=False)
class TfdsImageDataset(ImageFileDataset):
    """Images in the record files of a data set of TFDS, read file by file: nothing is held in memory.

    Example i of a split is the i-th in its files, which TFDS wrote in a random order. An epoch's order comes from a
    random order of the files, several of which are read at once, and a buffer of examples.

    Args:
        builder: A `tfds.core.DatasetBuilder` that is prepared as `tfrecord` files, with the features `image` and
            `label`.
        split: The name of a split.
        image_size: Integer, height and width of what networks see.
        resize: Integer, the shorter side of a test image before its centre is cut out.
        mean: Each channel's mean of training images in `[0, 1]`, a tuple of floats.
        std: Each channel's standard deviation, likewise.
        unreadable: `CorruptFiles`, which counts the images that could not be read.
        buffer: Integer, the examples among which the next one is drawn.
        low: Integer, the first example.
        high: Integer, the one after the last; the split's end by default.

    Raises:
        ValueError: There is no such split, it has other features or files, or a size is out of range.
    """

    builder: object
    split_name: str
    image_size: int = 224
    resize: int = 256
    mean: tuple = MEAN
    std: tuple = STD
    unreadable: CorruptFiles = dataclasses.field(default_factory=CorruptFiles)
    buffer: int = 10_000
    low: int = 0
    high: int | None = None

    def __post_init__(self):
        info = self.builder.info
        if self.split_name not in info.splits:
            raise ValueError(f"{info.full_name} has no split {self.split_name!r}; expected one of {list(info.splits)}.")
        if missing := {"image", "label"} - set(info.features):
            raise ValueError(f"{info.full_name} has no {sorted(missing)}; its features are {list(info.features)}.")
        if info.file_format.value != "tfrecord":
            raise ValueError(f"{info.full_name} is in {info.file_format.value} files; expected tfrecord.")
        self._set_sizes()
        size = info.splits[self.split_name].num_examples
        high = size if self.high is None else self.high
        if not 0 <= self.low < high <= size:
            raise ValueError(f"Examples {self.low} to {high} were asked for; expected some of 0 to {size}.")
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
        """The labels of all examples, int32, shape `(n,)`: reads all files once, which takes its time."""
        import tensorflow_datasets as tfds

        skip = {"image": tfds.decode.SkipDecoding()}
        # File after file; by default TFDS reads several in turns.
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
        """Of each file, its path and the number of its first example: `[(path, number)]`."""
        split = self.builder.info.splits[self.split_name]
        firsts = np.cumsum([0, *split.shard_lengths])
        found = zip(split.filepaths, firsts[:-1], firsts[1:])
        return [(os.fspath(path), int(first)) for path, first, end in found if first < self.high and end > self.low]

    @property
    def fingerprints(self):
        """64 bits for each example: of the data set, its version, the split's files, and the number among them."""
        split = self.builder.info.splits[self.split_name]
        text = f"{self.builder.info.full_name} {self.split_name} {split.num_bytes} {split.shard_lengths}".encode()
        return np.array([fingerprint(text, number) for number in self.index], "uint64")

    def steps_per_epoch(self, batch_size):
        """Batches of an epoch, the smaller last one among them."""
        return -(-len(self) // batch_size)

    def between(self, low, high):
        """The examples at the positions from `low` to `high - 1`, with the numbers they have here."""
        return dataclasses.replace(self, low=self.low + low, high=min(self.low + high, self.high))

    def take(self, limit, *, seed=0):
        """The first examples: the files are in a random order, and whatever the seed, they are a random part."""
        del seed
        self._check_count(limit, len(self))
        return dataclasses.replace(self, high=self.low + int(limit))

    def split(self, num_holdout, *, seed=0):
        """All but the last examples, and the last ones, likewise."""
        del seed
        self._check_count(num_holdout, len(self) - 1)
        end = self.high - int(num_holdout)
        return dataclasses.replace(self, high=end), dataclasses.replace(self, low=end)

    def _check_count(self, count, most):
        if count != int(count) or not 1 <= count <= most:
            raise ValueError(f"{count!r} of {len(self)} examples asked for; expected an integer from 1 to {most}.")

    def names_of(self, numbers):
        """What the examples of these numbers are called."""
        return [f"{self.split_name} example {number} of {self.builder.info.full_name}" for number in numbers]


def image_folder(folder, *, classes=None, **settings):
    """The images of a tree `folder/CLASS/*.jpg` (or .jpeg, .png, in whatever case), labelled by their folder's name.

    Hidden files and folders, such as `.thumbs` and `._1.jpg`, are ignored. What has an image's name and is no regular
    file, such as a named pipe or a link without a target, is counted among the files that cannot be read.

    Args:
        folder: Path.
        classes: The classes' names that are expected; by default those found, in alphabetical order.
        **settings: Fields of `ImageFolder`, such as `image_size`.

    Returns:
        `ImageFolder`, by class and file name.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: It has no folders, one of them has no image, or the classes are others than those expected.
        TooManyCorruptImagesError: More than `unreadable.limit` are no regular files.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"There is no folder {str(folder)!r}; expected one with a folder for each class. Name another."
        )
    found = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not _is_hidden(entry.name))
    if not found:
        raise ValueError(f"{str(folder)!r} has no folders; expected one for each class, with its images.")
    if classes is not None and set(found) != set(classes):
        raise ValueError(
            f"{str(folder)!r} has other classes than were expected: {sorted(set(classes) - set(found))} are missing, "
            f"{sorted(set(found) - set(classes))} are not known. Training and test images must have the same ones."
        )
    classes = tuple(found if classes is None else classes)
    paths, labels, left_out = [], [], []
    for label, name in enumerate(classes):
        images = [entry for entry in os.scandir(folder / name) if _is_image(entry.name)]
        # To read a named pipe or a device would take forever.
        left_out += sorted(entry.path for entry in images if not entry.is_file())
        files = sorted(entry.path for entry in images if entry.is_file())
        if not files:
            raise ValueError(
                f"{str(folder / name)!r} has no images; expected files that end in {', '.join(SUFFIXES)}. Put some "
                "there, or remove the folder."
            )
        paths += files
        labels += [label] * len(files)
    examples = ImageFolder(paths, np.array(labels), classes, **settings)
    for path in left_out:
        examples.unreadable.note(path)
    examples.unreadable.check()
    return examples


def _is_hidden(name):
    """Whether a file or folder is hidden, or made by an operating system or a file manager."""
    return name.startswith(".") or name in SYSTEM_FOLDERS


def _is_image(name):
    return name.lower().endswith(SUFFIXES) and not _is_hidden(name)
