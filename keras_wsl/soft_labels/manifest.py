"""What soft labels are of, and how they are stored: what has to agree before they may teach."""

import dataclasses
import hashlib
import json

import numpy as np

from keras_wsl import top_k

FORMAT = "keras_wsl.soft_labels/1"
CLEAN = "clean"
_PART_BYTES = 2**28
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
        views: Integer; 0 for data that are not varied.
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
    views: int
    clean: bool
    dtype: str
    k: int
    temperatures: tuple
    part_examples: int

    @classmethod
    def read(cls, path):
        """The manifest in a file.

        Raises:
            ValueError: If the file is none of this version.
        """
        try:
            found = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(
                f"{path} is no manifest of soft labels: {error}. Write them anew in another folder."
            ) from error
        if not isinstance(found, dict) or found.pop("format", None) != FORMAT:
            raise ValueError(f"{path} is of another version of soft labels; expected {FORMAT}. Write them anew.")
        found["temperatures"] = tuple(found["temperatures"])
        return cls(**found)

    def with_parts(self, rows=None):
        """The same with so many rows a file; by default as many as 256 MiB hold."""
        most = max(1, min(self.examples, _PART_BYTES // self.row_type.itemsize))
        return dataclasses.replace(self, part_examples=min(rows or most, self.examples))

    @property
    def text(self):
        """The file's content."""
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=2) + "\n"

    @property
    def sha256(self):
        """A name of all that is said here."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def row_type(self):
        """The NumPy dtype of an example's row."""
        if self.k:
            return top_k.row_type(self.k, self.classes, self.temperatures)
        return np.dtype((np.dtype(self.dtype), (self.classes,)))

    @property
    def all_views(self):
        """The views of which there are files: numbers, and `None` for the examples as they are."""
        return [*([None] if self.clean else []), *range(self.views)]

    @property
    def bytes_of_a_view(self):
        """The size of the rows of a view."""
        return self.examples * self.row_type.itemsize

    def parts(self, view):
        """The files of a view: `[(name, first row, the row after the last)]`."""
        name = CLEAN if view is None else f"view-{view:05d}"
        starts = range(0, self.examples, self.part_examples)
        return [
            (
                f"{name}.npy" if len(starts) == 1 else f"{name}.part-{i:05d}.npy",
                low,
                min(low + self.part_examples, self.examples),
            )
            for i, low in enumerate(starts)
        ]

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


def table_of(examples):
    """The numbers and fingerprints of a data set: a structured array, a row an example."""
    table = np.empty(len(examples), EXAMPLE)
    table["index"], table["fingerprint"] = examples.index, examples.fingerprints
    return table
