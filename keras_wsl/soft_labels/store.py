"""The reader of soft labels: the rows of whatever examples, in whatever order, through memory maps."""

import collections
import hashlib
import pathlib
import threading

import numpy as np

from keras_wsl import top_k
from keras_wsl.files import sha256
from keras_wsl.soft_labels.manifest import Manifest, table_of

_KEPT = 2  # Views whose files stay open: an epoch's, and the one before, while a pipeline reads ahead.


class SoftLabels:
    """A folder of a teacher's logits that `soft_labels.write` made.

    ```python
    store = soft_labels.SoftLabels("soft_labels/wrn_40_2")
    distiller = Distiller("teacher_logits", student, losses.WSL())
    distiller.fit(data.train_batches(splits.train, seed=0, batch_size=64, soft_labels=store), ...)
    ```

    The batches have the crops and flips that the teacher saw, so that its logits are those of these very pixels; no
    teacher is built. `views` of them come in turns, one an epoch. Whether a file is whole is checked at once, and its
    SHA-256 when it is first read.

    Args:
        folder: Path.

    Raises:
        FileNotFoundError: If there are no soft labels.
        ValueError: If they are of another version, not finished, or a file is not whole.
    """

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.manifest = read_manifest(self.folder)
        self.examples = self._examples()
        self._by_index = np.argsort(self.examples["index"])
        self._sorted = self.examples["index"][self._by_index]
        self._open, self._verified, self._lock = collections.OrderedDict(), set(), threading.Lock()
        missing = missing_parts(self.folder, self.manifest)
        if missing:
            everything = sum(len(self.manifest.parts(view)) for view in self.manifest.all_views)
            raise ValueError(
                f"{self.folder} lacks {len(missing)} of {everything} files, the first is {missing[0][1]}. Write the "
                "soft labels again with the same settings: what is there is kept."
            )
        for view in self.manifest.all_views:
            for name, low, high in self.manifest.parts(view):
                self._array(name, high - low)

    @property
    def seed(self):
        """Of crops and flips."""
        return self.manifest.seed

    @property
    def views(self):
        """How many there are before the first comes again; `None` for data that are not varied."""
        return self.manifest.views or None

    def rows(self, view, index):
        """The teacher's logits.

        Args:
            view: Integer in `[0, views)`, or `None` for the examples as they are.
            index: Integers, shape `(n,)`: the examples' numbers.

        Returns:
            float32, shape `(n, classes)`; or of top-k a dict, as `top_k.expand` takes it.

        Raises:
            ValueError: If there is no such view or example, a file is damaged, or an image could not be read when the
                teacher saw it.
        """
        positions = self._positions(index)
        parts = self._view(None if not self.manifest.views else view)
        size = self.manifest.part_examples
        found = np.empty(*self.manifest.shape_and_dtype(len(positions)))
        for part in np.unique(positions // size):
            here = positions // size == part
            found[here] = parts[part][positions[here] - part * size]
        values = found["logits"] if self.manifest.k else found
        if (unread := np.isnan(values).any(axis=-1)).any():
            raise ValueError(
                f"Example {index[unread.argmax()]} has no soft label in {self.folder}: it could not be read when they "
                "were written. Write them again in another folder."
            )
        return (
            top_k.decode(found, self.manifest.temperatures) if self.manifest.k else found.astype("float32", copy=False)
        )

    def check(self, examples, augmentation=None):
        """Raises `ValueError` unless these are some of the store's examples, varied as they were.

        Args:
            examples: A data set.
            augmentation: Dict, as of `data.train_batches`; `None` for examples as they are.
        """
        manifest = self.manifest
        if augmentation is None and not manifest.clean:
            raise ValueError(f"{self.folder} has no logits of examples as they are. Write it with clean=True.")
        wanted = {
            "number of classes": (manifest.classes, len(examples.classes)),
            "preprocessing": (manifest.preprocessing, as_json(examples.preprocessing)),
        }
        if augmentation is not None:
            wanted["augmentation"] = manifest.augmentation, as_json(augmentation)
        for name, (here, there) in wanted.items():
            if here != there:
                raise ValueError(
                    f"{self.folder} is of another {name}: it has {here}, and {there} is asked for. Train with the "
                    "same, or write soft labels of it."
                )
        table = table_of(examples)
        other = self.examples[self._positions(table["index"])]["fingerprint"] != table["fingerprint"]
        if other.any():
            raise ValueError(
                f"{self.folder} is of other data: {other.sum()} of {len(table)} examples have other contents or "
                f"another label, the first is number {table['index'][other.argmax()]}. Write soft labels of these data."
            )

    def verify(self):
        """Compares every file with its SHA-256.

        Raises:
            ValueError: If a file is damaged, with its name.
        """
        for view in self.manifest.all_views:
            for name, _, _ in self.manifest.parts(view):
                self._verify(name)

    def _positions(self, index):
        index = np.asarray(index)
        places = np.minimum(np.searchsorted(self._sorted, index), len(self._sorted) - 1)
        unknown = self._sorted[places] != index
        if unknown.any():
            raise ValueError(
                f"{self.folder} has no soft labels of {unknown.sum()} of {len(index)} examples, the first is number "
                f"{index[unknown.argmax()]}; it is of {self.manifest.examples} examples. Write them for all that are "
                "trained on."
            )
        return self._by_index[places]

    def _view(self, view):
        if view not in self.manifest.all_views:
            raise ValueError(
                f"{self.folder} has no view {view}; it has {self.manifest.views}, and clean={self.manifest.clean}."
            )
        with self._lock:
            if view not in self._open:
                parts = self.manifest.parts(view)
                for name, _, _ in parts:
                    self._verify(name)
                self._open[view] = [self._array(name, high - low) for name, low, high in parts]
                while len(self._open) > _KEPT:
                    self._open.popitem(last=False)
            return self._open[view]

    def _array(self, name, rows):
        """A file's array, mapped."""
        path = self.folder / name
        shape, dtype = self.manifest.shape_and_dtype(rows)
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} is not whole: {error}. {_REPAIR}") from error
        if array.shape != shape or array.dtype != dtype:
            raise ValueError(
                f"{path} holds {array.dtype} of shape {array.shape}; expected {dtype} of {shape}. {_REPAIR}"
            )
        return array

    def _verify(self, name):
        if name in self._verified:
            return
        path = self.folder / name
        if sha256(path) != digest_path(path).read_text().strip():
            raise ValueError(f"{path} is damaged: its SHA-256 is another than when it was written. {_REPAIR}")
        self._verified.add(name)

    def _examples(self):
        path = self.folder / "examples.npy"
        try:
            table = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} cannot be read: {error}. Write the soft labels again.") from error
        if hashlib.sha256(table.tobytes()).hexdigest() != self.manifest.examples_sha256:
            raise ValueError(f"{path} is damaged: its SHA-256 is not the manifest's. Write the soft labels again.")
        return table


_REPAIR = "Remove it with its .sha256, and write the soft labels again with the same settings: the rest is kept."


def read_manifest(folder):
    """The manifest of a folder.

    Raises:
        FileNotFoundError: If it has none.
        ValueError: If it is of another version.
    """
    path = folder / "manifest.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} holds no soft labels: there is no {path.name}. Write them by soft_labels.write, or by "
            "train/cache_soft_labels.py."
        )
    return Manifest.read(path)


def missing_parts(folder, manifest):
    """The files that are still to be written: `[(view, name, first row, the row after the last)]`."""
    return [
        (view, *part)
        for view in manifest.all_views
        for part in manifest.parts(view)
        if not (digest_path(folder / part[0]).exists() and (folder / part[0]).exists())
    ]


def digest_path(path):
    """Where the SHA-256 of a file stands: it is written last, and without it the file does not count."""
    return path.with_name(f"{path.name}.sha256")


def as_json(settings):
    """Settings as a manifest has them: tuples are lists."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}
