"""What a run reads: its part of the data, cached soft labels, and teacher checkpoints."""

import contextlib
import pathlib

import keras

from keras_wsl import data, soft_labels, teacher_checkpoints
from keras_wsl.files import sha256


def split_dataset(splits, config):
    """Return the training set, the validation set (`None` to validate on the test set) and the test set of a run."""
    train, test = splits.train, splits.test
    validation = None
    if config.validation_examples:
        train, validation = train.stratified_split(config.validation_examples, seed=config.seed)
    if config.max_train_examples:
        train = train.stratified_subset(config.max_train_examples, seed=config.seed)
    return train, validation, test


def augmentation_kwargs(config):
    """Return the arguments of `data.train_batches` in which a run differs from the augmentation of its data set."""
    return {} if config.padding_mode == "constant" else {"padding_mode": config.padding_mode}


def clean_batches(config, store, train):
    """Return batches of unaugmented training examples, or `None` if the soft labels have no logits for them.

    Args:
        config: `Config`.
        store: `SoftLabels`, or `None`.
        train: Training data set.
    """
    if store and not store.manifest.include_unaugmented:
        return None
    examples = train.stratified_subset(min(config.clean_examples, len(train)))
    batches = data.eval_batches(examples, config.eval_batch_size, soft_labels=store, pipeline="numpy")
    if isinstance(batches, keras.utils.PyDataset):  # Arrays in memory. Files are read again in each epoch.
        batches = [batches[i] for i in range(len(batches))]
    return batches


def open_checkpoints(config):
    """Return the `teacher_checkpoints.Checkpoints` of `--online`, or `None`."""
    if not config.online:
        return None
    default = pathlib.Path(config.teacher_weights).parent / "checkpoints"
    return teacher_checkpoints.Checkpoints(config.teacher_checkpoints or default)


def open_soft_labels(config):
    """Return the `SoftLabels` of `--soft_labels`, or `None`.

    Raises:
        FileNotFoundError: If the directory holds no soft labels.
        ValueError: If a file is missing or damaged, or the soft labels are those of another teacher.
    """
    if not config.soft_labels:
        return None
    store = soft_labels.SoftLabels(config.soft_labels)
    for name, stored, expected in (
        ("teacher", store.manifest.teacher, config.teacher),
        ("teacher_weights", store.manifest.file_sha256, config.teacher_weights and sha256(config.teacher_weights)),
    ):
        if expected and stored != expected:
            raise ValueError(
                f"--soft_labels={config.soft_labels} must be those of the teacher. Received: soft labels with --{name} "
                f"{stored!r}, and a run with {expected!r}. Leave --{name} out, or cache soft labels of this teacher."
            )
    return store


@contextlib.contextmanager
def explain_unreadable(examples):
    """Raise `TooManyCorruptImagesError` for an error in TensorFlow's input pipeline that unreadable images caused."""
    try:
        yield
    except Exception:
        if isinstance(examples, data.ImageFileDataset):
            examples.corrupt_files.check_limit()
        raise
