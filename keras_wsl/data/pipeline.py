"""Batches for the Keras backend: `tf.data` on TensorFlow, NumPy on JAX and Torch. Both have the same bits."""

import keras

from keras_wsl.data import numpy_pipeline
from keras_wsl.data.image_files import ImageFileDataset


def train_batches(
    examples,
    *,
    seed,
    batch_size,
    initial_position=(0, 0),
    one_hot=False,
    num_views=None,
    soft_labels=None,
    pipeline="auto",
    **augmentation,
):
    """Return training batches without end. The same arguments give the same batches with every pipeline.

    To resume a run, pass `initial_position=(epoch, step)` here, and `initial_epoch=epoch` and
    `steps_per_epoch=examples.steps_per_epoch(batch_size)` to `fit`.

    Args:
        examples: A data set: `ImageArrays`, `SentencePairs`, `ImageFolder` or `TfdsImageDataset`.
        seed: Integer in `[0, 2**32)`.
        batch_size: Integer. The last batch of an epoch may be smaller, as may one with a file that cannot be read.
        initial_position: Epoch, and step in that epoch, of the first batch.
        one_hot: Whether labels are float32 `(n, classes)` instead of int32 `(n,)`.
        num_views: Integer. Epoch e has the crops and flips of epoch `e % num_views`, in an order of its own.
        soft_labels: `soft_labels.SoftLabels`, whose views, crops and flips are then used. The targets also have its
            `"teacher_logits"` for exactly these pixels. `seed` then affects only the order.
        pipeline: `"tensorflow"`, `"numpy"`, or `"auto"`, which depends on the Keras backend. JPEG files are always read
            by TensorFlow.
        **augmentation: Augmentation of images, by default `examples.augmentation`. For `ImageArrays`: `padding`, the
            number of pixels added on each side of the uint8 image before the crop, 0 for no crop; `padding_mode`,
            `"constant"` (zeros) or `"reflect"` (the image mirrored at its edge); and `flip`, whether half of the
            images are flipped left to right. For JPEG files: `scale` and `ratio`, the ranges of a crop's fraction of
            the area and of its aspect ratio (width / height), and `flip`.

    Returns:
        `tf.data.Dataset` or generator of `(inputs, {"labels", "index"})`. Inputs are float32
        `(n, height, width, channels)` for images, and a dict of int32 `(n, length)` for sentences; the index is int32
        `(n,)`.

    Raises:
        ValueError: If an argument is out of its range, or the soft labels are of other data, crops, flips or views.
    """
    _check_soft_labels(soft_labels)
    return _get_module(pipeline, examples).train_batches(
        examples,
        seed=seed,
        batch_size=batch_size,
        initial_position=initial_position,
        one_hot=one_hot,
        num_views=num_views,
        soft_labels=soft_labels,
        **augmentation,
    )


def augmented_batches(examples, batch_size, *, seed, view, pipeline="auto", **augmentation):
    """Return all examples once, in order, with the crops and flips of one view.

    Args:
        examples: A data set. See `train_batches`.
        batch_size: Integer. The last batch may be smaller.
        seed: Integer in `[0, 2**32)`.
        view: Integer in `[0, 2**32)`. Epoch e of `train_batches` has view e.
        pipeline: See `train_batches`.
        **augmentation: See `train_batches`.

    Returns:
        Iterable of batches like those of `train_batches`.

    Raises:
        ValueError: If an argument is out of its range.
    """
    module = _get_module(pipeline, examples)
    return module.augmented_batches(examples, batch_size, seed=seed, view=view, **augmentation)


def eval_batches(examples, batch_size, *, one_hot=False, soft_labels=None, pipeline="auto"):
    """Return all examples once, in order, without augmentation. The result can be iterated again.

    Args:
        examples: A data set. See `train_batches`.
        batch_size: Integer. The last batch may be smaller.
        one_hot: Whether labels are float32 `(n, classes)` instead of int32 `(n,)`.
        soft_labels: `soft_labels.SoftLabels`. The targets then also have its `"teacher_logits"` of the unaugmented
            examples.
        pipeline: See `train_batches`.

    Returns:
        `tf.data.Dataset` or `keras.utils.PyDataset` of batches like those of `train_batches`.

    Raises:
        ValueError: If an argument is out of its range, or the soft labels are of other data.
    """
    _check_soft_labels(soft_labels)
    module = _get_module(pipeline, examples)
    return module.eval_batches(examples, batch_size, one_hot=one_hot, soft_labels=soft_labels)


def _check_soft_labels(soft_labels):
    """Raise `ValueError` for other objects than `SoftLabels`, such as a path. This package cannot import the class."""
    if soft_labels is not None and not hasattr(soft_labels, "check_dataset"):
        raise ValueError(
            f"`soft_labels` must be a SoftLabels object. Received: soft_labels={soft_labels!r}. Open a directory with "
            "soft_labels.SoftLabels(directory)."
        )


def _get_module(pipeline, examples):
    if pipeline not in ("auto", "tensorflow", "numpy"):
        raise ValueError(f'`pipeline` must be "auto", "tensorflow" or "numpy". Received: pipeline={pipeline!r}.')
    if pipeline == "auto":
        pipeline = "tensorflow" if keras.backend.backend() == "tensorflow" else "numpy"
    if pipeline == "numpy" and not isinstance(examples, ImageFileDataset):
        return numpy_pipeline
    from keras_wsl.data import tf_data_pipeline

    return tf_data_pipeline
