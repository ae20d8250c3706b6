"""Read soft labels through memory maps: the rows of any examples in any order."""

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
from keras_wsl.soft_labels.manifest import EXAMPLE, Manifest, make_example_table

_OPEN_VIEWS = 2  # Views whose files stay open: the epoch's and the one before, because a pipeline reads ahead.


class SoftLabels:
    """A directory of a teacher's logits that `soft_labels.write_soft_labels` wrote.

    ```python
    store = soft_labels.SoftLabels("soft_labels/wrn_40_2")
    distiller = Distiller("teacher_logits", student, losses.WSL())
    distiller.fit(data.train_batches(splits.train, seed=0, batch_size=64, soft_labels=store), ...)
    ```

    The batches have the teacher's crops and flips, so that its logits are those of exactly these pixels. The teacher
    itself is not needed. Each epoch uses one of `num_views` views, in turn.

    Opening checks the shape, dtype and size of every file; the first use of a file checks its SHA-256. If that is
    correct, the file's size, modification time and inode are recorded in `NAME.npy.verified`, so that the next process
    does not need to read the whole file again. A read-only directory has no such records. A file whose size, time or
    inode differs is read again. Only `verify` detects a change that preserves all three.

    Args:
        directory: Path.

    Raises:
        FileNotFoundError: If there are no soft labels.
        ValueError: In one line with the file's name, if they are of another version or incomplete, the manifest has
            values out of their ranges, or a file is not complete.
    """

    def __init__(self, directory):
        self.directory = pathlib.Path(directory)
        self.manifest = read_manifest(self.directory)
        self.examples = self._read_examples()
        self._by_index = np.argsort(self.examples["index"])
        self._sorted = self.examples["index"][self._by_index]
        self._open, self._verified, self._lock = collections.OrderedDict(), {}, threading.Lock()
        shards = find_shards(self.directory, self.manifest)
        total = self.manifest.view_count * self.manifest.shards_per_view
        if len(shards) < total:
            _, first, _, _ = next(find_missing_shards(self.directory, self.manifest))
            raise ValueError(
                f"{self.directory} must have {total} files. {total - len(shards)} are missing, the first is {first}. "
                "Write the soft labels again with the same arguments: existing files are kept."
            )
        for name, low, high in sorted(shards):
            self._map_array(name, high - low)

    @property
    def seed(self):
        """The seed of crops and flips."""
        return self.manifest.seed

    @property
    def num_views(self):
        """The number of views, after which the first is used again. `None` for data without augmentation."""
        return self.manifest.num_views or None

    def lookup(self, view, index):
        """Return the teacher's logits of some examples.

        Args:
            view: Integer in `[0, num_views)`, or `None` for the unaugmented examples.
            index: Integers, shape `(n,)`: the examples' numbers.

        Returns:
            float32, shape `(n, classes)`. For top-k a dict, the first argument of `top_k_logits.expand`.

        Raises:
            ValueError: If there is no such view or example, a file is damaged, or an image could not be read when the
                soft labels were written.
        """
        positions = self._get_positions(index)
        view = view if self.manifest.num_views else None
        if not self.manifest.has_view(view):
            raise ValueError(
                f"{self.directory} has no view {view}: num_views={self.manifest.num_views}, "
                f"include_unaugmented={self.manifest.include_unaugmented}."
            )
        shards, offsets = np.divmod(positions, self.manifest.rows_per_file)
        rows = np.empty(*self.manifest.shape_and_dtype(len(positions)))
        for shard in np.unique(shards):
            selected = shards == shard
            rows[selected] = self._open_shard(view, int(shard))[offsets[selected]]
        self._check_rows(rows, index)
        if self.manifest.top_k:
            return top_k_logits.decode(rows, self.manifest.temperatures)
        return rows.astype("float32", copy=False)

    def _check_rows(self, rows, index):
        """Raise `ValueError` for an example without logits, or with values that no teacher returns."""
        values = rows["logits"] if self.manifest.top_k else rows
        valid = np.isfinite(values).all(axis=-1)
        if self.manifest.top_k:
            valid &= (rows["classes"] < self.manifest.classes).all(axis=-1)
            valid &= np.isfinite(rows["label"]) & np.isfinite(rows["rest"]).all(axis=-1)
        if valid.all():
            return
        example = index[valid.argmin()]
        problem = "has values that are not finite, or classes that do not exist"
        if np.isnan(values[valid.argmin()]).all():
            problem = "is missing, because the example could not be read when the soft labels were written"
        raise ValueError(
            f"The soft label of example {example} in {self.directory} {problem}. Write the soft labels to another "
            "directory."
        )

    def check_dataset(self, examples, augmentation=None):
        """Raise `ValueError` unless these soft labels are of a data set, or a superset, with the same augmentation.

        Args:
            examples: A data set.
            augmentation: Dict, the augmentation arguments of `data.train_batches`. `None` for unaugmented examples.
        """
        manifest = self.manifest
        if augmentation is None and not manifest.include_unaugmented:
            raise ValueError(
                f"{self.directory} has no logits of unaugmented examples. Write it with include_unaugmented=True."
            )
        pairs = {
            "number of classes": (manifest.classes, len(examples.classes)),
            "preprocessing": (manifest.preprocessing, tuples_to_lists(examples.preprocessing)),
        }
        if augmentation is not None:
            pairs["augmentation"] = manifest.augmentation, tuples_to_lists(augmentation)
        for name, (stored, requested) in pairs.items():
            if stored != requested:
                raise ValueError(
                    f"The {name} must be that of the soft labels in {self.directory}, {stored}. Received: {requested}. "
                    "Train with the same, or write other soft labels."
                )
        table = make_example_table(examples)
        differs = self.examples[self._get_positions(table["index"])]["fingerprint"] != table["fingerprint"]
        if differs.any():
            raise ValueError(
                f"The soft labels in {self.directory} are of other data: {differs.sum()} of {len(table)} examples have "
                f"other contents or another label, the first is number {table['index'][differs.argmax()]}. Write soft "
                "labels of these data."
            )

    def verify(self, verbose=1):
        """Read every file and compare it with its SHA-256, including files that were verified before.

        Args:
            verbose: 0 for no output, 1 for a progress bar, 2 for one line at the end.

        Raises:
            ValueError: With the file's name, if a file is damaged.
        """
        self._read_examples()
        bar = keras.utils.Progbar(
            self.manifest.view_count * self.manifest.shards_per_view, verbose=verbose, unit_name="file"
        )
        for view in self.manifest.all_views:
            for name, _, _ in self.manifest.shards(view):
                self._verify(name, force=True)
                bar.add(1)

    def _get_positions(self, index):
        index = np.asarray(index)
        ranks = np.minimum(np.searchsorted(self._sorted, index), len(self._sorted) - 1)
        unknown = self._sorted[ranks] != index
        if unknown.any():
            raise ValueError(
                f"{self.directory} has no soft labels of {unknown.sum()} of {len(index)} examples, the first is number "
                f"{index[unknown.argmax()]}. It has {self.manifest.examples} examples. Write soft labels of all "
                "training examples."
            )
        return self._by_index[ranks]

    def _open_shard(self, view, i):
        """Return a file's array. Verifies the file's SHA-256 when it opens it."""
        with self._lock:
            shards = self._open.setdefault(view, {})
            if i not in shards:
                name, low, high = self.manifest.shard(view, i)
                self._verify(name)
                shards[i] = self._map_array(name, high - low)
                while len(self._open) > _OPEN_VIEWS:
                    self._open.popitem(last=False)
            return shards[i]

    def _map_array(self, name, rows):
        try:
            return untrusted.map_array(self.directory / name, *self.manifest.shape_and_dtype(rows))
        except ValueError as error:
            raise ValueError(f"{error} {_REPAIR}") from error

    def _verify(self, name, *, force=False):
        """Compare a file with its SHA-256, unless it was verified and has not changed since."""
        path = self.directory / name
        digest, status = self._read_digest(path), os.stat(path)
        # Made before the file is read, so that a later change is detected.
        state = {"sha256": digest, "size": status.st_size, "mtime_ns": status.st_mtime_ns, "inode": status.st_ino}
        state = json.dumps(state).encode()
        record = path.with_name(f"{name}.verified")
        if not force and state in (self._verified.get(name), _read_record(record)):
            return
        if sha256(path) != digest:
            with contextlib.suppress(OSError):  # The directory may be read-only.
                record.unlink(missing_ok=True)
            raise ValueError(f"{path} is damaged: its SHA-256 differs from that when it was written. {_REPAIR}")
        self._verified[name] = state
        with contextlib.suppress(OSError):
            atomic_write(record, lambda file: file.write(state))

    def _read_digest(self, path):
        """Return the SHA-256 that a file had when it was written."""
        try:
            digest = untrusted.read_bytes(get_digest_path(path), 100).decode("ascii").strip()
        except (OSError, ValueError) as error:
            raise ValueError(f"{get_digest_path(path)} cannot be read: {error}. {_REPAIR}") from error
        if not re.fullmatch("[0-9a-f]{64}", digest):
            raise ValueError(f"{get_digest_path(path)} must have a SHA-256. It has other contents. {_REPAIR}")
        return digest

    def _read_examples(self):
        path = self.directory / "examples.npy"
        try:
            table = np.array(untrusted.map_array(path, (self.manifest.examples,), EXAMPLE))
        except ValueError as error:
            raise ValueError(f"{error} Write the soft labels again.") from error
        if hashlib.sha256(table.tobytes()).hexdigest() != self.manifest.examples_sha256:
            raise ValueError(
                f"{path} is damaged: its SHA-256 is not that in the manifest. Write the soft labels again."
            )
        index = np.sort(table["index"])
        if index[0] < 0 or (index[1:] == index[:-1]).any():
            raise ValueError(f"{path} has a negative or repeated example number. Write the soft labels again.")
        return table


def _read_record(path):
    """Return the record of a file's last verification, or `None` if there is none that can be read."""
    try:
        return untrusted.read_bytes(path, 1000)
    except (OSError, ValueError):
        return None


_REPAIR = "Remove it and its .sha256, and write the soft labels again with the same arguments: other files are kept."


def read_manifest(directory):
    """Read the manifest of a directory.

    Raises:
        FileNotFoundError: If it has none.
        ValueError: If it is of another version.
    """
    path = directory / "manifest.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{directory} has no soft labels: there is no {path.name}. Write them with soft_labels.write_soft_labels, "
            "or with train/cache_soft_labels.py."
        )
    return Manifest.read(path)


def find_shards(directory, manifest):
    """Return the complete files: `[(name, first row, row after the last)]`."""
    names = set(os.listdir(directory))
    shards = [manifest.find(name) for name in names if get_digest_path(pathlib.Path(name)).name in names]
    return [shard for shard in shards if shard]


def find_missing_shards(directory, manifest):
    """Return an iterator over the missing files: `(view, name, first row, row after the last)`."""
    complete = {name for name, _, _ in find_shards(directory, manifest)}
    return (
        (view, *shard) for view in manifest.all_views for shard in manifest.shards(view) if shard[0] not in complete
    )


def get_digest_path(path):
    """Return the path of a file's SHA-256, which is written last. A file without it counts as missing."""
    return path.with_name(f"{path.name}.sha256")


def tuples_to_lists(values):
    """Return a dict with lists in place of tuples, as JSON has them."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
