"""What soft labels are of, and how they are stored: what has to agree before they may teach."""

import dataclasses
import hashlib
import itertools
import json
import math
import re

import numpy as np

from keras_wsl import top_k_logits, untrusted

FORMAT = "keras_wsl.soft_labels/1"
CLEAN = "clean"
DTYPES = ("float32", "float16")
_PART_BYTES = 2**28
_LARGEST = 2**20  # Bytes of a manifest.
_PART = re.compile(rf"(?:{CLEAN}|view-(\d+))(?:\.part-(\d+))?\.npy")
EXAMPLE = np.dtype([("index", "<i4"), ("fingerprint", "<u8")])


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The content of `manifest.json`.

    Args:
        teacher: The network's name, a string.
        weights_sha256: Of the teacher's variables.
        file_sha256: Of the file of its weights, or `None`.
        examples: Integer, how many.
        examples_sha256: Of their numbers and fingerprints.
        classes: Integer.
        preprocessing: Dict, as of the data set.
        augmentation: Dict, as of `data.train_batches`; empty for data that are not varied.
        seed: Integer, of crops and flips.
        num_views: Integer; 0 for data that are not varied.
        clean: Whether the examples as they are were shown to the teacher too.
        dtype: `"float32"` or `"float16"`; of top-k, `""`.
        k: Integer, the logits kept of a row; 0 for all.
        temperatures: Of top-k, those at which the mass of the rest is known: floats.
        part_examples: Integer, the rows of a file.
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
    clean: bool
    dtype: str
    k: int
    temperatures: tuple
    part_examples: int

    @classmethod
    def read(cls, path):
        """Read the manifest in a file.

        Args:
            path: Path of `manifest.json`.

        Returns:
            `Manifest`, whose values are in their ranges and fit each other. Whether the files that it names are there
            is not checked.

        Raises:
            ValueError: In one line with the path, if the file is damaged, of another version, or has fields that are
                missing, unknown or out of their ranges.
            OSError: If it cannot be read.
        """
        content = untrusted.read_bytes(path, _LARGEST)
        try:
            return cls.parse(content)
        except ValueError as error:
            raise ValueError(
                f"{path} is no manifest of soft labels of this version. {error} Write the soft labels again in another "
                "folder."
            ) from error

    @classmethod
    def parse(cls, content):
        """Return the manifest in the bytes of a file. Raises as `read` does, without the path."""
        values = untrusted.parse_json(content, strict=True)
        untrusted.check_fields(values, _FIELDS)
        del values["format"]
        manifest = cls(**{**values, "temperatures": tuple(values["temperatures"])})
        manifest._check_together()
        return manifest

    def _check_together(self):
        """Raise `ValueError` for fields that are each in their range and contradict each other."""
        if self.k > self.classes:
            raise ValueError(f"`k` must be at most the number of classes, {self.classes}. Received: k={self.k}.")
        if self.part_examples > self.examples:
            raise ValueError(
                f"`part_examples` must be at most the number of examples, {self.examples}. Received: "
                f"part_examples={self.part_examples}."
            )
        if bool(self.k) != (self.dtype == "") or bool(self.k) != bool(self.temperatures):
            raise ValueError(
                f"`dtype` must be empty and `temperatures` must not be if `k` is positive, and the reverse if it is 0. "
                f"Received: k={self.k}, dtype={self.dtype!r}, {len(self.temperatures)} temperatures."
            )
        if bool(self.num_views) != bool(self.augmentation) or not (self.num_views or self.clean):
            raise ValueError(
                f"`num_views` must be positive if there is an augmentation, and else 0 with clean=true. Received: "
                f"num_views={self.num_views}, clean={self.clean}, augmentation of {len(self.augmentation)} settings."
            )

    def with_parts(self, rows=None):
        """The same with so many rows a file; by default as many as 256 MiB hold."""
        most = max(1, min(self.examples, _PART_BYTES // self.row_type.itemsize))
        return dataclasses.replace(self, part_examples=min(rows or most, self.examples))

    @property
    def temperature_key(self):
        """The file's content."""
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=2) + "\n"

    @property
    def sha256(self):
        """A name of all that is said here."""
        return hashlib.sha256(self.temperature_key.encode()).hexdigest()

    @property
    def row_type(self):
        """The NumPy dtype of an example's row."""
        if self.k:
            return top_k_logits.row_type(self.k, self.classes, self.temperatures)
        return np.dtype((np.dtype(self.dtype), (self.classes,)))

    @property
    def all_views(self):
        """An iterator over the views of which there are files: `None` for the examples as they are, then numbers."""
        return itertools.chain([None] if self.clean else [], range(self.num_views))

    @property
    def view_count(self):
        """The number of `all_views`."""
        return self.num_views + self.clean

    @property
    def parts_a_view(self):
        """The number of files of a view."""
        return -(-self.examples // self.part_examples)

    def has_view(self, view):
        """Return whether a view is one of `all_views`."""
        return self.clean if view is None else 0 <= view < self.num_views

    @property
    def bytes_of_a_view(self):
        """The size of the rows of a view."""
        return self.examples * self.row_type.itemsize

    def parts(self, view):
        """Return an iterator over the files of a view: `(name, first row, the row after the last)`."""
        return (self.part(view, i) for i in range(self.parts_a_view))

    def find(self, name):
        """Return the part of a file's name, as `parts` has it; `None` if it is no file of these soft labels."""
        match = _PART.fullmatch(name)
        if not match:
            return None
        view, i = None if match[1] is None else int(match[1]), int(match[2] or 0)
        part = self.part(view, i)
        return part if self.has_view(view) and i < self.parts_a_view and part[0] == name else None

    def part(self, view, i):
        """Return a file of a view by its number, as `parts` has it."""
        name, low = CLEAN if view is None else f"view-{view:05d}", i * self.part_examples
        name = f"{name}.npy" if self.parts_a_view == 1 else f"{name}.part-{i:05d}.npy"
        return name, low, min(low + self.part_examples, self.examples)

    def shape_and_dtype(self, rows):
        """Of an array of so many rows."""
        return ((rows,), self.row_type) if self.k else ((rows, self.classes), np.dtype(self.dtype))

    def check_same(self, wanted, but=()):
        """Raises `ValueError` with what differs from another manifest, `but` for some names."""
        for name, value in dataclasses.asdict(wanted).items():
            here = getattr(self, name)
            if name not in but and here != value:
                raise ValueError(
                    f"The soft labels are of another {_NAMES.get(name, name)}: they have {here!r}, and {value!r} is "
                    "asked for. Write them in another folder, or ask for the same."
                )


_NAMES = {
    "weights_sha256": "teacher (SHA-256 of its weights)",
    "file_sha256": "teacher (SHA-256 of its file)",
    "examples": "number of examples",
    "examples_sha256": "data set (SHA-256 of its examples' numbers, contents and labels)",
    "classes": "number of classes",
    "part_examples": "number of rows a file",
    "k": "k of top-k",
}


def _are_temperatures(values):
    """Return whether these are rising positive numbers, 1 among them, or none."""
    return (
        isinstance(values, list)
        and len(values) <= 100
        and all(type(value) in (int, float) and 0 < value < math.inf for value in values)
        and all(one < other for one, other in itertools.pairwise(values))
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
    "clean": untrusted.BOOLEAN,
    "dtype": untrusted.choice("", *DTYPES),
    "k": untrusted.integer(0, 10**7),
    "temperatures": (_are_temperatures, "a list of at most 100 positive numbers that rise, with 1, or an empty list"),
    "part_examples": untrusted.integer(1, 2**31),
}


def table_of(examples):
    """The numbers and fingerprints of a data set: a structured array, a row an example."""
    table = np.empty(len(examples), EXAMPLE)
    table["index"], table["fingerprint"] = examples.index, examples.fingerprints
    return table
