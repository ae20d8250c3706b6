"""The manifest of soft labels: what they were computed from, and how they are stored."""

import dataclasses
import hashlib
import itertools
import json
import math
import re

import numpy as np

from keras_wsl import top_k_logits, untrusted

FORMAT = "keras_wsl.soft_labels/1"
_UNAUGMENTED = "unaugmented"
DTYPES = ("float32", "float16")
_SHARD_BYTES = 2**28
_MAX_BYTES = 2**20  # Of a manifest.
_SHARD = re.compile(rf"(?:{_UNAUGMENTED}|view-(\d+))(?:\.shard-(\d+))?\.npy")
EXAMPLE = np.dtype([("index", "<i4"), ("fingerprint", "<u8")])


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The content of `manifest.json`.

    Args:
        teacher: The network's name, a string.
        weights_sha256: SHA-256 of the teacher's variables.
        file_sha256: SHA-256 of the file of its weights, or `None`.
        examples: Integer, the number of examples.
        examples_sha256: SHA-256 of their numbers and fingerprints.
        classes: Integer, the number of classes.
        preprocessing: Dict, `preprocessing` of the data set.
        augmentation: Dict, the augmentation arguments of `data.train_batches`. Empty for data without augmentation.
        seed: Integer, the seed of crops and flips.
        num_views: Integer. 0 for data without augmentation.
        include_unaugmented: Whether there are also logits of the unaugmented examples.
        dtype: `"float32"` or `"float16"`. `""` for top-k.
        top_k: Integer, the number of logits stored per row. 0 for all.
        temperatures: Floats, the temperatures at which the probability mass of the other logits is stored, for top-k.
        rows_per_file: Integer.
    """

    teacher: str
    weights_sha256: str
    file_sha256: str | None
    examples: int
    examples_sha256: str
    classes: int
    preprocessing: dict
    augmentation: dict
    seed: int
    num_views: int
    include_unaugmented: bool
    dtype: str
    top_k: int
    temperatures: tuple
    rows_per_file: int

    @classmethod
    def read(cls, path):
        """Read the manifest in a file.

        Args:
            path: Path of `manifest.json`.

        Returns:
            `Manifest`, whose values are in their ranges and consistent. Whether the files that it names exist is not
            checked.

        Raises:
            ValueError: In one line with the path, if the file is damaged, of another version, or has fields that are
                missing, unknown or out of their ranges.
            OSError: If it cannot be read.
        """
        content = untrusted.read_bytes(path, _MAX_BYTES)
        try:
            return cls.parse(content)
        except ValueError as error:
            raise ValueError(
                f"{path} is not a manifest of soft labels of this version. {error} Write the soft labels to another "
                "directory."
            ) from error

    @classmethod
    def parse(cls, content):
        """Return the manifest in the bytes of a file. Raises the errors of `read`, without the path."""
        values = untrusted.parse_json(content, strict=True)
        untrusted.check_fields(values, _FIELDS)
        del values["format"]
        manifest = cls(**{**values, "temperatures": tuple(values["temperatures"])})
        manifest._check_consistent()
        return manifest

    def _check_consistent(self):
        """Raise `ValueError` for fields that are each in their range but contradict each other."""
        if self.top_k > self.classes:
            raise ValueError(
                f"`top_k` must be at most the number of classes, {self.classes}. Received: top_k={self.top_k}."
            )
        if self.rows_per_file > self.examples:
            raise ValueError(
                f"`rows_per_file` must be at most the number of examples, {self.examples}. Received: "
                f"rows_per_file={self.rows_per_file}."
            )
        if bool(self.top_k) != (self.dtype == "") or bool(self.top_k) != bool(self.temperatures):
            raise ValueError(
                "`dtype` must be empty and `temperatures` must not if `top_k` is positive, and the reverse if it is 0. "
                f"Received: top_k={self.top_k}, dtype={self.dtype!r}, {len(self.temperatures)} temperatures."
            )
        if bool(self.num_views) != bool(self.augmentation) or not (self.num_views or self.include_unaugmented):
            raise ValueError(
                f"`num_views` must be positive if there is an augmentation, and else 0 with include_unaugmented=true. "
                f"Received: num_views={self.num_views}, include_unaugmented={self.include_unaugmented}, augmentation "
                f"of {len(self.augmentation)} arguments."
            )

    def with_shards(self, rows_per_file=None):
        """Return a copy with another number of rows per file. Default: as many as 256 MiB hold."""
        rows_per_file = rows_per_file or max(1, _SHARD_BYTES // self.row_type.itemsize)
        return dataclasses.replace(self, rows_per_file=min(rows_per_file, self.examples))

    def to_json(self):
        """Return the file's content."""
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=2) + "\n"

    @property
    def sha256(self):
        """The SHA-256 of the file."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @property
    def row_type(self):
        """The NumPy dtype of one example's row."""
        if self.top_k:
            return top_k_logits.row_type(self.top_k, self.classes, self.temperatures)
        return np.dtype((np.dtype(self.dtype), (self.classes,)))

    @property
    def all_views(self):
        """An iterator over the stored views: `None` for the unaugmented examples, then numbers."""
        return itertools.chain([None] if self.include_unaugmented else [], range(self.num_views))

    @property
    def view_count(self):
        """The number of `all_views`."""
        return self.num_views + self.include_unaugmented

    @property
    def shards_per_view(self):
        """The number of files per view."""
        return -(-self.examples // self.rows_per_file)

    def has_view(self, view):
        """Return whether a view is in `all_views`."""
        return self.include_unaugmented if view is None else 0 <= view < self.num_views

    @property
    def bytes_per_view(self):
        """The size of the rows of one view."""
        return self.examples * self.row_type.itemsize

    def shards(self, view):
        """Return an iterator over the files of a view: `(name, first row, row after the last)`."""
        return (self.shard(view, i) for i in range(self.shards_per_view))

    def find(self, name):
        """Return the element of `shards` with a file's name, or `None` if it is not a file of these soft labels."""
        match = _SHARD.fullmatch(name)
        if not match:
            return None
        view, i = None if match[1] is None else int(match[1]), int(match[2] or 0)
        shard = self.shard(view, i)
        return shard if self.has_view(view) and i < self.shards_per_view and shard[0] == name else None

    def shard(self, view, i):
        """Return element `i` of the `shards` of a view."""
        name, low = _UNAUGMENTED if view is None else f"view-{view:05d}", i * self.rows_per_file
        name = f"{name}.npy" if self.shards_per_view == 1 else f"{name}.shard-{i:05d}.npy"
        return name, low, min(low + self.rows_per_file, self.examples)

    def shape_and_dtype(self, rows):
        """Return shape and dtype of an array with a number of rows."""
        return ((rows,), self.row_type) if self.top_k else ((rows, self.classes), np.dtype(self.dtype))

    def check_same(self, requested, ignore=()):
        """Raise `ValueError` if another manifest differs in a field that is not in `ignore`."""
        for name, value in dataclasses.asdict(requested).items():
            stored = getattr(self, name)
            if name not in ignore and stored != value:
                raise ValueError(
                    f"The {_DESCRIPTIONS.get(name, name)} must be that of the existing soft labels, {stored!r}. "
                    f"Received: {value!r}. Pass the same, or write to another directory."
                )


_DESCRIPTIONS = {
    "weights_sha256": "teacher (SHA-256 of its weights)",
    "file_sha256": "teacher (SHA-256 of its file)",
    "examples": "number of examples",
    "examples_sha256": "data set (SHA-256 of its examples' numbers, contents and labels)",
    "classes": "number of classes",
}


def _are_temperatures(values):
    """Return whether these are increasing positive numbers that include 1, or none."""
    return (
        isinstance(values, list)
        and len(values) <= 100
        and all(type(value) in (int, float) and 0 < value < math.inf for value in values)
        and all(low < high for low, high in itertools.pairwise(values))
        and len({top_k_logits.temperature_key(value) for value in values}) == len(values)
        and (not values or 1 in values)
    )


_FIELDS = {
    "format": untrusted.choice(FORMAT),
    "teacher": untrusted.TEXT,
    "weights_sha256": untrusted.DIGEST,
    "file_sha256": untrusted.optional(untrusted.DIGEST),
    "examples": untrusted.integer(1, 2**31),  # Their numbers are int32.
    "examples_sha256": untrusted.DIGEST,
    "classes": untrusted.integer(1, 10**7),
    "preprocessing": untrusted.OBJECT,
    "augmentation": untrusted.OBJECT,
    "seed": untrusted.integer(0, 2**32 - 1),
    "num_views": untrusted.integer(0, 2**31),
    "include_unaugmented": untrusted.BOOLEAN,
    "dtype": untrusted.choice("", *DTYPES),
    "top_k": untrusted.integer(0, 10**7),
    "temperatures": (_are_temperatures, "a list of at most 100 increasing positive numbers that include 1, or empty"),
    "rows_per_file": untrusted.integer(1, 2**31),
}


def make_example_table(examples):
    """Return numbers and fingerprints of a data set's examples: a structured array with one row per example."""
    table = np.empty(len(examples), EXAMPLE)
    table["index"], table["fingerprint"] = examples.index, examples.fingerprints
    return table
