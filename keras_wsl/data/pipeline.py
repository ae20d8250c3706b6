"""Batches for the backend that runs: `tf.data` on TensorFlow, NumPy on JAX and Torch. Both give the same bits."""

import keras

from keras_wsl.data import numpy_pipeline
from keras_wsl.data.image_files import ImageFileDataset


def train_batches(
    examples,
    *,
    seed,
    batch_size,
    start=(0, 0),
    one_hot=False,
    num_views=None,
    soft_labels=None,
    framework="auto",
    **augmentation,
):
    """Endless training batches, the same for the same arguments on every framework.

    `fit(train_batches(..., start=(epoch, step)), initial_epoch=epoch, steps_per_epoch=steps)` goes on where a run was
    left, if `steps` is `examples.steps_per_epoch(batch_size)`.

    Args:
        examples: A data set: `ImageArrays`, `SentencePairs`, `ImageFolder` or `TfdsImageDataset`.
        seed: Integer in `[0, 2**32)`.
        batch_size: Integer; the last batch of an epoch may be smaller, as may one in which a file could not be read.
        start: Epoch, and step in that epoch, of the first batch.
        one_hot: Whether labels are float32 `(n, classes)` instead of int32 `(n,)`.
        num_views: Integer: epoch e repeats the crops and flips of epoch `e % views`, in an order of its own.
        soft_labels: `soft_labels.SoftLabels`, whose views and crops and flips are then taken: targets also have its
            `"teacher_logits"` of exactly these pixels. `seed` is of the order alone.
        framework: `"tensorflow"`, `"numpy"`, or `"auto"`, which goes by the Keras backend; JPEG files are always read
            by TensorFlow.
        **augmentation: How images are varied, by default as `examples.augmentation` says. Of `ImageArrays`, `padding`,
        the
            pixels put on each side of the uint8 image before the crop, 0 for no crop; `padding_mode`, whether these are
            `"constant"` (zeros) or `"reflect"` the image; and `flip`, whether half of the images are flipped left to
            right. Of JPEG files, `scale` and `ratio`, the ranges of a crop's share of the area and of its width by
            height, and `flip`.

    Returns:
        `tf.data.Dataset` or generator of `(inputs, {"labels", "index"})`: float32 `(n, height, width, channels)` of
        images, a dict of int32 `(n, length)` of sentences; labels; int32 `(n,)`.

    Raises:
        ValueError: A setting is out of its range, or the soft labels are of other data, crops, flips or views.
    """
    _check_store(soft_labels)
    settings = {"seed": seed, "batch_size": batch_size, "start": start, "one_hot": one_hot, "num_views": num_views}
    return _module(framework, examples).train_batches(examples, **settings, soft_labels=soft_labels, **augmentation)


def augmented_batches(examples, batch_size, *, seed, view, framework="auto", **augmentation):
    """All examples once, in order, with the crops and flips of a view.

    Args:
        examples: A data set, as of `train_batches`.
        batch_size: Integer; the last batch may be smaller.
        seed: Integer in `[0, 2**32)`.
        view: Integer in `[0, 2**32)`: that of epoch e of `train_batches` is e.
        framework: As of `train_batches`.
        **augmentation: As of `train_batches`.

    Returns:
        Iterable of batches like those of `train_batches`.

    Raises:
        ValueError: A setting is out of its range.
    """
    module = _module(framework, examples)
    return module.augmented_batches(examples, batch_size, seed=seed, view=view, **augmentation)


def eval_batches(examples, batch_size, *, one_hot=False, soft_labels=None, framework="auto"):
    """All examples once, in order and as they are; can be gone through again and again.

    Args:
        examples: A data set, as of `train_batches`.
        batch_size: Integer; the last batch may be smaller.
        one_hot: Whether labels are float32 `(n, classes)` instead of int32 `(n,)`.
        soft_labels: `soft_labels.SoftLabels` whose `"teacher_logits"` of the unvaried examples targets also have.
        framework: `"tensorflow"`, `"numpy"`, or `"auto"`, which goes by the Keras backend.

    Returns:
        `tf.data.Dataset` or `keras.utils.PyDataset` of batches like those of `train_batches`.

    Raises:
        ValueError: A setting is out of its range, or the soft labels are of other data.
    """
    _check_store(soft_labels)
    return _module(framework, examples).eval_batches(examples, batch_size, one_hot=one_hot, soft_labels=soft_labels)


def _check_store(soft_labels):
    """Raises ValueError for what are no soft labels, such as their folder: this room does not know the class."""
    if soft_labels is not None and not hasattr(soft_labels, "check"):
        raise ValueError(
            f"soft_labels is {soft_labels!r}; expected a store of them. Open it: soft_labels.SoftLabels(folder)."
        )


def _module(framework, examples):
    if framework not in ("auto", "tensorflow", "numpy"):
        raise ValueError(f'framework is {framework!r}; expected "auto", "tensorflow" or "numpy".')
    if framework == "auto":
        framework = "tensorflow" if keras.backend.backend() == "tensorflow" else "numpy"
    if framework == "numpy" and not isinstance(examples, ImageFileDataset):
        return numpy_pipeline
    from keras_wsl.data import tf_data_pipeline

    return tf_data_pipeline
