"""The pass of a teacher over all views of all examples: it can be interrupted, continued and shared."""

import errno
import hashlib
import pathlib
import shutil
import time

import keras
import numpy as np

from keras_wsl import data, top_k_logits
from keras_wsl.argument_checks import check_positive_int, check_temperature
from keras_wsl.backend import predict_batch
from keras_wsl.data.numpy_pipeline import check_settings
from keras_wsl.features import check_network, reraise_as_input_error
from keras_wsl.files import atomic_write, exclusive, make_directory, remove_orphans, sha256
from keras_wsl.models.weights import weights_sha256
from keras_wsl.soft_labels.manifest import DTYPES, Manifest, table_of
from keras_wsl.soft_labels.reader import SoftLabels, as_json, digest_path, missing_parts, present_parts, read_manifest

_WAIT = 0.5  # Seconds between looks at what other writers have still to do.
_OWN = ("examples.npy", "manifest.json")  # What stands in a folder before its manifest does.


def write(
    teacher,
    examples,
    folder,
    *,
    seed=0,
    num_views=1,
    clean=True,
    dtype="float32",
    k=0,
    temperatures=(1.0, 4.0),
    batch_size=256,
    rows_per_file=None,
    teacher_file=None,
    verbose=1,
    **augmentation,
):
    """Writes a teacher's logits of all examples, in inference mode.

    A file appears whole, with its SHA-256, or not at all. What is there is kept: interrupted, call it again. Several
    processes may write into one folder, and share out its files; each returns when all are written.

    Args:
        teacher: A built `keras.Model` that gives logits, `(batch, classes)`.
        examples: A data set: `data.ImageArrays`, `SentencePairs`, `ImageFolder` or `TfdsImageDataset`.
        folder: Path, made if it is missing.
        seed: Integer in `[0, 2**32)`: of crops and flips.
        num_views: Positive integer: so many times each example is varied anew; as many as epochs replays a training in
            which no view comes twice. More than a folder has adds to it. Data that are not varied have none.
        clean: Whether also the examples as they are, for probes. Data that are not varied always have these.
        dtype: `"float32"`; or `"float16"`, in which rows are less their highest logit.
        k: Integer: only the k highest logits of a row, in float16, with the label's, and the mass of the rest at the
            temperatures; 0 for all.
        temperatures: Positive floats, of top-k: those of the losses. 1 is always there, where WSL's weights judge.
        batch_size: Positive integer.
        rows_per_file: Positive integer; by default as many as 256 MiB hold.
        teacher_file: Path of the file of the teacher's weights, whose SHA-256 is noted; or `None`.
        verbose: 0; 1 for sizes before, and a progress bar; 2 for sizes, and the rate at the end.
        **augmentation: As of `data.train_batches`.

    Returns:
        `SoftLabels`.

    Raises:
        ValueError: If a setting is out of its range, the teacher gives probabilities, other shapes or values that are
            not finite, or the folder holds soft labels of something else.
        OSError: If the disk has too little room, before anything is computed; or is full.
    """
    folder, batch_size = pathlib.Path(folder), check_positive_int(batch_size, "batch_size")
    augmentation = check_settings(examples, seed, batch_size, (0, 0), None, augmentation)
    table = table_of(examples)
    storage = _storage(dtype, k, temperatures, len(examples.classes))
    manifest = Manifest(
        **_identity(teacher, teacher_file),
        examples=len(table),
        examples_sha256=hashlib.sha256(table.tobytes()).hexdigest(),
        classes=len(examples.classes),
        preprocessing=as_json(examples.preprocessing),
        augmentation=as_json(augmentation),
        seed=int(seed),
        num_views=check_positive_int(num_views, "num_views") if augmentation else 0,
        clean=bool(clean) or not augmentation,
        **storage,
        part_examples=0,
    )
    manifest = manifest.with_parts(check_positive_int(rows_per_file, "rows_per_file") if rows_per_file else None)
    Manifest.parse(manifest.text.encode())  # What is written can be read again.
    _start(folder, manifest, table)
    count = _check_room(folder, manifest, verbose)
    bar = keras.utils.Progbar(count, verbose=verbose if count else 0, unit_name="example")
    writer = _Writer(teacher, examples, folder, manifest, augmentation, batch_size, bar)
    while todo := list(missing_parts(folder, manifest)):
        if not any([writer.take(*part) for part in todo]):
            time.sleep(_WAIT)  # Others write what is left.
    if writer.done < count:  # Else the bar has ended by itself.
        bar.update(writer.done, finalize=True)
    return SoftLabels(folder)


class _Writer:
    """Writes the files of a folder, one after the other, unless another process does."""

    def __init__(self, teacher, examples, folder, manifest, augmentation, batch_size, bar):
        self.teacher, self.examples, self.folder, self.manifest = teacher, examples, folder, manifest
        self.augmentation, self.batch_size, self.bar, self.done = augmentation, batch_size, bar, 0

    def take(self, view, name, low, high):
        """Whether the file is there in the end; not if another process is writing it."""
        path = self.folder / name
        with exclusive(path.with_name(f"{name}.lock")) as mine:
            if mine and not (digest_path(path).exists() and path.exists()):
                rows = self._rows(view, low, high)
                try:
                    atomic_write(path, lambda file: np.save(file, rows))
                    digest = sha256(path)
                    atomic_write(digest_path(path), lambda file: file.write(digest.encode()))
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    raise OSError(
                        errno.ENOSPC,
                        f"The disk is full: {name} needs {rows.nbytes / 2**20:.0f} MiB. Make room and write the soft "
                        "labels again; the files that are finished are kept",
                        str(self.folder),
                    ) from error
            return mine

    def _rows(self, view, low, high):
        """What the teacher says of a part of the examples; NaN for images that cannot be read."""
        part = self.examples.between(low, high)
        if view is None:
            batches = data.eval_batches(part, self.batch_size)
        else:
            settings = {"seed": self.manifest.seed, "view": view}
            batches = data.augmented_batches(part, self.batch_size, **settings, **self.augmentation)
        index = np.asarray(part.index)
        order = np.argsort(index)
        found = np.empty(*self.manifest.shape_and_dtype(len(index)))
        (found["logits"] if self.manifest.k else found)[:] = np.nan
        for inputs, targets in batches:
            numbers = np.asarray(targets["index"])
            logits = self._logits(inputs, numbers)
            rows = order[np.searchsorted(index, numbers, sorter=order)]
            found[rows] = self._encoded(logits, np.asarray(targets["labels"]))
            self.bar.add(len(numbers))
            self.done += len(numbers)
        return found

    def _logits(self, inputs, numbers):
        with reraise_as_input_error(self.teacher, inputs):
            given = predict_batch(self.teacher, inputs)
        logits = given["logits"] if isinstance(given, dict) else given
        if logits.shape != (len(numbers), self.manifest.classes):
            raise ValueError(
                f"{self.teacher.name} gives logits of shape {logits.shape} for {len(numbers)} examples; expected "
                f"({len(numbers)}, {self.manifest.classes}), as the data have {self.manifest.classes} classes."
            )
        with np.errstate(over="ignore"):
            finite = np.isfinite(logits.astype("float32")).all(axis=1)
        if not finite.all():
            raise ValueError(
                f"{self.teacher.name} gives logits that are not finite, for example number {numbers[finite.argmin()]}. "
                "Check its weights and the images."
            )
        return logits

    def _encoded(self, logits, labels):
        manifest = self.manifest
        if manifest.k:
            return top_k_logits.encode(logits, labels, manifest.k, manifest.temperatures)
        if manifest.dtype == "float16":
            with np.errstate(over="ignore"):
                logits = np.maximum(logits - logits.max(axis=1, keepdims=True), np.finfo("float16").min)
        return logits.astype(manifest.dtype)


def _identity(teacher, file):
    """Who teaches."""
    check_network("teacher", teacher)
    file_hash = sha256(file) if file else None
    return {"teacher": teacher.name, "weights_sha256": weights_sha256(teacher), "file_sha256": file_hash}


def _storage(dtype, k, temperatures, classes):
    """How rows are stored."""
    if not k:
        if dtype not in DTYPES:
            raise ValueError(f"dtype={dtype!r} is unknown. Expected one of {DTYPES}.")
        return {"dtype": dtype, "k": 0, "temperatures": ()}
    if not 1 <= check_positive_int(k, "k") <= classes:
        raise ValueError(f"k={k} is more than the {classes} classes. Give fewer, or 0 for all logits.")
    temperatures = sorted({1.0, *(check_temperature(temperature) for temperature in temperatures)})
    return {"dtype": "", "k": int(k), "temperatures": tuple(temperatures)}


def _start(folder, manifest, table):
    """Makes the folder, or checks that it is of the same."""
    make_directory(folder)
    remove_orphans(folder)
    path = folder / "manifest.json"
    if path.exists():
        there = read_manifest(folder)
        there.check_same(manifest, but=("num_views", "teacher"))
        if there.num_views > manifest.num_views:
            raise ValueError(
                f"{folder} has {there.num_views} views, and {manifest.num_views} were requested. Request at least as "
                "many, or use another folder."
            )
        if there.num_views == manifest.num_views:
            return
    elif any(not there.name.startswith(_OWN) for there in folder.iterdir()):  # Another writer may just have begun.
        raise ValueError(f"{folder} holds something else than soft labels. Choose another folder.")
    atomic_write(folder / "examples.npy", lambda file: np.save(file, table))
    atomic_write(path, lambda file: file.write(manifest.text.encode()))


def _check_room(folder, manifest, verbose):
    """Print how much will be written, and return the number of rows. Raise OSError if there is too little room."""
    there = present_parts(folder, manifest)
    files = manifest.view_count * manifest.parts_a_view - len(there)
    rows = manifest.view_count * manifest.examples - sum(high - low for _, low, high in there)
    needed = rows * manifest.row_type.itemsize
    free = shutil.disk_usage(folder).free
    if verbose:
        every = f"{manifest.classes} logits in {manifest.dtype}"
        kind = f"the {manifest.k} highest of {manifest.classes} logits" if manifest.k else every
        print(
            f"{folder}: {manifest.view_count} views of {manifest.examples:,} examples, {kind}: "
            f"{manifest.bytes_of_a_view / 2**20:,.1f} MiB a view; {files} files, {needed / 2**20:,.1f} MiB, to "
            f"write; {free / 2**30:,.1f} GiB free."
        )
    if needed > free:
        raise OSError(
            errno.ENOSPC,
            f"Soft labels of {needed / 2**30:.1f} GiB do not fit: {free / 2**30:.1f} GiB are free. Store float16, or "
            "the top k, or fewer views",
            str(folder),
        )
    return rows
