"""The reader of soft labels: the rows of whatever examples, in whatever order, through memory maps."""

import collections
import contextlib
import hashlib
import json
import os
import pathlib
import re
import threading

import keras
import numpy as np

from keras_wsl import top_k_logits, untrusted
from keras_wsl.files import atomic_write, sha256
from keras_wsl.soft_labels.manifest import EXAMPLE, Manifest, table_of

_KEPT = 2  # Views whose files stay open: an epoch's, and the one before, while a pipeline reads ahead.


class SoftLabels:
    """A folder of a teacher's logits that `soft_labels.write` made.

    ```python
    store = soft_labels.SoftLabels("soft_labels/wrn_40_2")
    distiller = Distiller("teacher_logits", student, losses.WSL())
    distiller.fit(data.train_batches(splits.train, seed=0, batch_size=64, soft_labels=store), ...)
    ```

    The batches have the crops and flips that the teacher saw, so that its logits are those of these very pixels; no
    teacher is built. `num_views` of them come in turns, one an epoch.

    The shape, dtype and size of every file are checked at once, and its SHA-256 when it is first used. The size, time
    of change and inode of a file with the right SHA-256 are noted beside it, in `NAME.npy.verified`, so that the next
    process need not read all of it again; a store that cannot be written to has no such notes. A file with another
    size, time or inode is read again. Only `verify` notices a change that leaves all three as they were.

    Args:
        folder: Path.

    Raises:
        FileNotFoundError: If there are no soft labels.
        ValueError: In one line with the file's name, if they are of another version, not finished, the manifest has
            values out of their ranges, or a file is not whole.
    """

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.manifest = read_manifest(self.folder)
        self.examples = self._examples()
        self._by_index = np.argsort(self.examples["index"])
        self._sorted = self.examples["index"][self._by_index]
        self._open, self._verified, self._lock = collections.OrderedDict(), {}, threading.Lock()
        there = present_parts(self.folder, self.manifest)
        everything = self.manifest.view_count * self.manifest.parts_a_view
        if len(there) < everything:
            _, first, _, _ = next(missing_parts(self.folder, self.manifest))
            raise ValueError(
                f"{self.folder} lacks {everything - len(there)} of {everything} files, the first is {first}. Write the "
                "soft labels again with the same settings: what is there is kept."
            )
        for name, low, high in sorted(there):
            self._array(name, high - low)

    @property
    def seed(self):
        """Of crops and flips."""
        return self.manifest.seed

    @property
    def num_views(self):
        """How many there are before the first comes again; `None` for data that are not varied."""
        return self.manifest.num_views or None

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
        view = view if self.manifest.num_views else None
        if not self.manifest.has_view(view):
            raise ValueError(
                f"{self.folder} has no view {view}; it has {self.manifest.num_views}, and clean={self.manifest.clean}."
            )
        size = self.manifest.part_examples
        found = np.empty(*self.manifest.shape_and_dtype(len(positions)))
        for part in np.unique(positions // size):
            here = positions // size == part
            found[here] = self._part(view, int(part))[positions[here] - part * size]
        self._check_rows(found, index)
        return (
            top_k_logits.decode(found, self.manifest.temperatures)
            if self.manifest.k
            else found.astype("float32", copy=False)
        )

    def _check_rows(self, rows, index):
        """Raise `ValueError` for an example that had no row, or whose row no teacher gives."""
        values = rows["logits"] if self.manifest.k else rows
        good = np.isfinite(values).all(axis=-1)
        if self.manifest.k:
            good &= (rows["classes"] < self.manifest.classes).all(axis=-1)
            good &= np.isfinite(rows["label"]) & np.isfinite(rows["rest"]).all(axis=-1)
        if good.all():
            return
        example = index[good.argmin()]
        if np.isnan(values[good.argmin()]).all():
            raise ValueError(
                f"Example {example} has no soft label in {self.folder}: it could not be read when they were written. "
                "Write them again in another folder."
            )
        raise ValueError(
            f"The soft label of example {example} in {self.folder} has values that are not finite, or classes that do "
            "not exist. Write the soft labels again in another folder."
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

    def verify(self, verbose=1):
        """Read every file and compare it with its SHA-256, also if it was compared before.

        Args:
            verbose: 0; 1 for a progress bar; 2 for one line at the end.

        Raises:
            ValueError: If a file is damaged, with its name.
        """
        self._examples()
        bar = keras.utils.Progbar(
            self.manifest.view_count * self.manifest.parts_a_view, verbose=verbose, unit_name="file"
        )
        for view in self.manifest.all_views:
            for name, _, _ in self.manifest.parts(view):
                self._verify(name, again=True)
                bar.add(1)

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

    def _part(self, view, i):
        """A file's array, compared with its SHA-256 when it is opened."""
        with self._lock:
            parts = self._open.setdefault(view, {})
            if i not in parts:
                name, low, high = self.manifest.part(view, i)
                self._verify(name)
                parts[i] = self._array(name, high - low)
                while len(self._open) > _KEPT:
                    self._open.popitem(last=False)
            return parts[i]

    def _array(self, name, rows):
        """A file's array, mapped."""
        try:
            return untrusted.map_array(self.folder / name, *self.manifest.shape_and_dtype(rows))
        except ValueError as error:
            raise ValueError(f"{error} {_REPAIR}") from error

    def _verify(self, name, *, again=False):
        """Compare a file with its SHA-256, unless it is as it was when it was last compared."""
        path = self.folder / name
        digest, now = self._digest(path), os.stat(path)
        # Before the file is read, so that a change in the meantime counts as one.
        state = {"sha256": digest, "size": now.st_size, "mtime_ns": now.st_mtime_ns, "inode": now.st_ino}
        state = json.dumps(state).encode()
        note = path.with_name(f"{name}.verified")
        if not again and state in (self._verified.get(name), _read_note(note)):
            return
        if sha256(path) != digest:
            with contextlib.suppress(OSError):  # The store may be one that cannot be written to.
                note.unlink(missing_ok=True)
            raise ValueError(f"{path} is damaged: its SHA-256 is another than when it was written. {_REPAIR}")
        self._verified[name] = state
        with contextlib.suppress(OSError):
            atomic_write(note, lambda file: file.write(state))

    def _digest(self, path):
        """The SHA-256 that a file had when it was written."""
        try:
            digest = untrusted.read_bytes(digest_path(path), 100).decode("ascii").strip()
        except (OSError, ValueError) as error:
            raise ValueError(f"{digest_path(path)} cannot be read: {error}. {_REPAIR}") from error
        if not re.fullmatch("[0-9a-f]{64}", digest):
            raise ValueError(f"{digest_path(path)} holds no SHA-256. {_REPAIR}")
        return digest

    def _examples(self):
        path = self.folder / "examples.npy"
        try:
            table = np.array(untrusted.map_array(path, (self.manifest.examples,), EXAMPLE))
        except ValueError as error:
            raise ValueError(f"{error} Write the soft labels again.") from error
        if hashlib.sha256(table.tobytes()).hexdigest() != self.manifest.examples_sha256:
            raise ValueError(f"{path} is damaged: its SHA-256 is not the manifest's. Write the soft labels again.")
        index = np.sort(table["index"])
        if index[0] < 0 or (index[1:] == index[:-1]).any():
            raise ValueError(f"{path} has a negative or repeated example number. Write the soft labels again.")
        return table


def _read_note(path):
    """What was noted when a file was last compared with its SHA-256; `None` if there is no note that can be read."""
    try:
        return untrusted.read_bytes(path, 1000)
    except (OSError, ValueError):
        return None


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


def present_parts(folder, manifest):
    """Return the files that are finished: `[(name, first row, the row after the last)]`."""
    names = set(os.listdir(folder))
    found = [manifest.find(name) for name in names if digest_path(pathlib.Path(name)).name in names]
    return [part for part in found if part]


def missing_parts(folder, manifest):
    """Return an iterator over the files that are missing: `(view, name, first row, the row after the last)`."""
    there = {name for name, _, _ in present_parts(folder, manifest)}
    return ((view, *part) for view in manifest.all_views for part in manifest.parts(view) if part[0] not in there)


def digest_path(path):
    """Where the SHA-256 of a file stands: it is written last, and without it the file does not count."""
    return path.with_name(f"{path.name}.sha256")


def as_json(settings):
    """Settings as a manifest has them: tuples are lists."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}
