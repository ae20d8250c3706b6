"""Write a teacher's logits of all views of all examples. Can be interrupted, resumed and shared by processes."""

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
from keras_wsl.file_lock import file_lock
from keras_wsl.files import atomic_write, make_directory, remove_orphans, sha256
from keras_wsl.models.weights import weights_sha256
from keras_wsl.soft_labels.manifest import DTYPES, Manifest, make_example_table
from keras_wsl.soft_labels.reader import (
    SoftLabels,
    find_missing_shards,
    find_shards,
    get_digest_path,
    read_manifest,
    tuples_to_lists,
)

_WAIT = 0.5  # Seconds between checks for files that other processes write.
_RESERVED_NAMES = ("examples.npy", "manifest.json")  # Files of a directory whose manifest is being written.


def write_soft_labels(
    teacher,
    examples,
    directory,
    *,
    seed=0,
    num_views=1,
    include_unaugmented=True,
    dtype="float32",
    top_k=0,
    temperatures=(1.0, 4.0),
    batch_size=256,
    rows_per_file=None,
    teacher_file=None,
    verbose=1,
    **augmentation,
):
    """Write a teacher's logits of all examples, in inference mode.

    A file appears complete, with its SHA-256, or not at all. Existing files are kept: if interrupted, call it again.
    Several processes may write to one directory and share its files. Each returns when all are written.

    Args:
        teacher: A built `keras.Model` that returns logits, `(batch, classes)`.
        examples: A data set: `data.ImageArrays`, `SentencePairs`, `ImageFolder` or `TfdsImageDataset`.
        directory: Path. Created if it is missing.
        seed: Integer in `[0, 2**32)`, the seed of crops and flips.
        num_views: Positive integer, the number of augmented views of each example. With as many views as epochs, no
            view repeats in training. A larger number than a directory has adds views. Ignored for data without
            augmentation.
        include_unaugmented: Whether to also write the logits of the unaugmented examples, for evaluation on them.
            Always true for data without augmentation.
        dtype: `"float32"`, or `"float16"`, for which each row's highest logit is subtracted.
        top_k: Integer. If positive, only the k highest logits of a row are stored, in float16, with the label's logit
            and the probability mass of the others at the temperatures. 0 stores all logits.
        temperatures: Positive floats, the temperatures of the losses, for top-k. 1 is always added, because WSL's
            weights use it.
        batch_size: Positive integer.
        rows_per_file: Positive integer. Default: as many as 256 MiB hold.
        teacher_file: Path of the file of the teacher's weights, whose SHA-256 is recorded, or `None`.
        verbose: 0 for no output, 1 for sizes and a progress bar, 2 for sizes and the rate at the end.
        **augmentation: See `data.train_batches`.

    Returns:
        `SoftLabels`.

    Raises:
        ValueError: If an argument is out of its range, the teacher returns probabilities, other shapes or values that
            are not finite, or the directory has other soft labels.
        OSError: If the disk has too little space, before anything is computed; or is full.
    """
    directory, batch_size = pathlib.Path(directory), check_positive_int(batch_size, "batch_size")
    augmentation = check_settings(examples, seed, batch_size, (0, 0), None, augmentation)
    table = make_example_table(examples)
    storage = _validate_storage(dtype, top_k, temperatures, len(examples.classes))
    manifest = Manifest(
        **_identify_teacher(teacher, teacher_file),
        examples=len(table),
        examples_sha256=hashlib.sha256(table.tobytes()).hexdigest(),
        classes=len(examples.classes),
        preprocessing=tuples_to_lists(examples.preprocessing),
        augmentation=tuples_to_lists(augmentation),
        seed=int(seed),
        num_views=check_positive_int(num_views, "num_views") if augmentation else 0,
        include_unaugmented=bool(include_unaugmented) or not augmentation,
        **storage,
        rows_per_file=0,
    )
    manifest = manifest.with_shards(check_positive_int(rows_per_file, "rows_per_file") if rows_per_file else None)
    Manifest.parse(manifest.to_json().encode())  # Check that it can be read again.
    _prepare_directory(directory, manifest, table)
    count = _check_disk_space(directory, manifest, verbose)
    bar = keras.utils.Progbar(count, verbose=verbose if count else 0, unit_name="example")
    writer = _Writer(teacher, examples, directory, manifest, augmentation, batch_size, bar)
    while missing := list(find_missing_shards(directory, manifest)):
        if not any([writer.write(*shard) for shard in missing]):
            time.sleep(_WAIT)  # Other processes write the remaining files.
    if writer.done < count:  # Otherwise the bar has ended by itself.
        bar.update(writer.done, finalize=True)
    return SoftLabels(directory)


class _Writer:
    """Write the files of a directory in turn, except those that another process writes."""

    def __init__(self, teacher, examples, directory, manifest, augmentation, batch_size, bar):
        self.teacher, self.examples, self.directory, self.manifest = teacher, examples, directory, manifest
        self.augmentation, self.batch_size, self.bar, self.done = augmentation, batch_size, bar, 0

    def write(self, view, name, low, high):
        """Write a file unless it exists, and return True; return False if another process is writing it."""
        path = self.directory / name
        with file_lock(path.with_name(f"{name}.lock")) as acquired:
            if acquired and not (get_digest_path(path).exists() and path.exists()):
                rows = self._compute_rows(view, low, high)
                try:
                    atomic_write(path, lambda file: np.save(file, rows))
                    digest = sha256(path)
                    atomic_write(get_digest_path(path), lambda file: file.write(digest.encode()))
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    raise OSError(
                        errno.ENOSPC,
                        f"The disk is full: {name} needs {rows.nbytes / 2**20:.0f} MiB. Free space and write the soft "
                        "labels again. The complete files are kept",
                        str(self.directory),
                    ) from error
            return acquired

    def _compute_rows(self, view, low, high):
        """Return the teacher's logits of some examples, encoded. They are NaN for images that cannot be read."""
        examples = self.examples.slice(low, high)
        if view is None:
            batches = data.eval_batches(examples, self.batch_size)
        else:
            kwargs = {"seed": self.manifest.seed, "view": view, **self.augmentation}
            batches = data.augmented_batches(examples, self.batch_size, **kwargs)
        index = np.asarray(examples.index)
        order = np.argsort(index)
        rows = np.empty(*self.manifest.shape_and_dtype(len(index)))
        (rows["logits"] if self.manifest.top_k else rows)[:] = np.nan
        for inputs, targets in batches:
            numbers = np.asarray(targets["index"])
            logits = self._compute_logits(inputs, numbers)
            positions = order[np.searchsorted(index, numbers, sorter=order)]
            rows[positions] = self._encode(logits, np.asarray(targets["labels"]))
            self.bar.add(len(numbers))
            self.done += len(numbers)
        return rows

    def _compute_logits(self, inputs, numbers):
        with reraise_as_input_error(self.teacher, inputs):
            outputs = predict_batch(self.teacher, inputs)
        logits = outputs["logits"] if isinstance(outputs, dict) else outputs
        if logits.shape != (len(numbers), self.manifest.classes):
            raise ValueError(
                f"The logits of {self.teacher.name} must have shape ({len(numbers)}, {self.manifest.classes}), because "
                f"the data have {self.manifest.classes} classes. Received: shape {logits.shape}."
            )
        with np.errstate(over="ignore"):
            finite = np.isfinite(logits.astype("float32")).all(axis=1)
        if not finite.all():
            raise ValueError(
                f"The logits of {self.teacher.name} must be finite. They are not for example number "
                f"{numbers[finite.argmin()]}. Check the weights and the images."
            )
        return logits

    def _encode(self, logits, labels):
        manifest = self.manifest
        if manifest.top_k:
            return top_k_logits.encode(logits, labels, manifest.top_k, manifest.temperatures)
        if manifest.dtype == "float16":
            with np.errstate(over="ignore"):
                logits = np.maximum(logits - logits.max(axis=1, keepdims=True), np.finfo("float16").min)
        return logits.astype(manifest.dtype)


def _identify_teacher(teacher, file):
    check_network("teacher", teacher)
    file_hash = sha256(file) if file else None
    return {"teacher": teacher.name, "weights_sha256": weights_sha256(teacher), "file_sha256": file_hash}


def _validate_storage(dtype, top_k, temperatures, classes):
    """Return the manifest's fields for how rows are stored."""
    if not top_k:
        if dtype not in DTYPES:
            raise ValueError(f"`dtype` must be one of {DTYPES}. Received: dtype={dtype!r}.")
        return {"dtype": dtype, "top_k": 0, "temperatures": ()}
    if not 1 <= check_positive_int(top_k, "top_k") <= classes:
        raise ValueError(
            f"`top_k` must be at most the number of classes, {classes}, or 0 for all logits. Received: top_k={top_k}."
        )
    temperatures = sorted({1.0, *(check_temperature(temperature) for temperature in temperatures)})
    return {"dtype": "", "top_k": int(top_k), "temperatures": tuple(temperatures)}


def _prepare_directory(directory, manifest, table):
    """Create the directory and its manifest, or check that an existing manifest is the same."""
    make_directory(directory)
    remove_orphans(directory)
    path = directory / "manifest.json"
    if path.exists():
        existing = read_manifest(directory)
        existing.check_same(manifest, ignore=("num_views", "teacher"))
        if existing.num_views > manifest.num_views:
            raise ValueError(
                f"`num_views` must be at least the number of views in {directory}, {existing.num_views}. Received: "
                f"num_views={manifest.num_views}. Pass a larger number, or use another directory."
            )
        if existing.num_views == manifest.num_views:
            return
    elif any(not entry.name.startswith(_RESERVED_NAMES) for entry in directory.iterdir()):  # Another writer may start.
        raise ValueError(f"{directory} must be empty or have soft labels. It has other files. Use another directory.")
    atomic_write(directory / "examples.npy", lambda file: np.save(file, table))
    atomic_write(path, lambda file: file.write(manifest.to_json().encode()))


def _check_disk_space(directory, manifest, verbose):
    """Print how much will be written and return the number of rows. Raise `OSError` if there is too little space."""
    complete = find_shards(directory, manifest)
    files = manifest.view_count * manifest.shards_per_view - len(complete)
    rows = manifest.view_count * manifest.examples - sum(high - low for _, low, high in complete)
    needed = rows * manifest.row_type.itemsize
    free = shutil.disk_usage(directory).free
    if verbose:
        storage = f"{manifest.classes} logits in {manifest.dtype}"
        if manifest.top_k:
            storage = f"the {manifest.top_k} highest of {manifest.classes} logits"
        print(
            f"{directory}: {manifest.view_count} views of {manifest.examples:,} examples, {storage}: "
            f"{manifest.bytes_per_view / 2**20:,.1f} MiB per view; {files} files, {needed / 2**20:,.1f} MiB, to "
            f"write; {free / 2**30:,.1f} GiB free."
        )
    if needed > free:
        raise OSError(
            errno.ENOSPC,
            f"Soft labels of {needed / 2**30:.1f} GiB do not fit: {free / 2**30:.1f} GiB are free. Store float16, or "
            "the top k, or fewer views",
            str(directory),
        )
    return rows
