"""Batches made by NumPy alone; `tensorflow.py` makes the same ones, bit for bit."""

import keras
import numpy as np

from keras_wsl.data import stateless_random


def train_batches(
    examples, *, seed, batch_size, start=(0, 0), one_hot=False, num_views=None, soft_labels=None, **augmentation
):
    """Endless batches, each epoch a permutation of all examples, as `pipeline.train_batches` says.

    They depend on the arguments and each example's number alone, so batches from a later `start` are those that a run
    from the beginning would see there. A generator, which `fit` on JAX and Torch takes and can leave at any step.

    Args:
        examples: `ImageArrays` or `SentencePairs`.
        seed: Integer in `[0, 2**32)`.
        batch_size: Integer; the last batch of an epoch may be smaller.
        start: Epoch, and step in that epoch, of the first batch.
        one_hot: Whether labels are float32 `(n, classes)` instead of int32 `(n,)`.
        num_views: Integer: epoch e repeats the crops and flips of epoch `e % views`, in an order of its own.
        soft_labels: `soft_labels.SoftLabels`, or None.
        **augmentation: Settings of `augmented`; none for sentences.

    Returns:
        Generator of `(inputs, {"labels", "index"})`: labels, int32 `(n,)`.

    Raises:
        ValueError: A setting is out of its range.
    """
    augmentation = check_settings(examples, seed, batch_size, start, num_views, augmentation)
    view_seed, num_views = replayed(examples, soft_labels, seed, num_views, augmentation)

    def generate():
        epoch, first_step = start
        while True:
            order = stateless_random.order(seed, epoch, examples.index)
            for low in range(first_step * batch_size, len(order), batch_size):
                rows = order[low : low + batch_size]
                view = view_of(epoch, num_views)
                yield (
                    _varied(examples, rows, view_seed, view, augmentation),
                    _targets(examples, rows, one_hot, soft_labels, view),
                )
            epoch, first_step = epoch + 1, 0

    return generate()


def augmented_batches(examples, batch_size, *, seed, view, **augmentation):
    """All examples once, in order, as a view shows them: a generator of batches like those of `train_batches`."""
    augmentation = check_settings(examples, seed, batch_size, (view, 0), None, augmentation)
    parts = (np.arange(low, min(low + batch_size, len(examples))) for low in range(0, len(examples), batch_size))
    return (
        (_varied(examples, rows, seed, view, augmentation), _targets(examples, rows, one_hot=False)) for rows in parts
    )


def eval_batches(examples, batch_size, *, one_hot=False, soft_labels=None):
    """All examples once, in order, as they are.

    Not a generator, which `fit(validation_data=)` would find empty from the second epoch on.

    Args:
        examples: `ImageArrays` or `SentencePairs`.
        batch_size: Integer; the last batch may be smaller.
        one_hot: Whether labels are float32 `(n, classes)` instead of int32 `(n,)`.
        soft_labels: `soft_labels.SoftLabels`, or None.

    Returns:
        `keras.utils.PyDataset` of batches like those of `train_batches`, for `fit`, `evaluate`, `predict` and `for`.
    """
    check_batches(examples, batch_size)
    if soft_labels is not None:
        soft_labels.check(examples)
    return _InOrder(examples, batch_size, one_hot, soft_labels)


# How pixels beyond the border of an image are made: modes of `np.pad`, and in capitals of `tf.pad`.
PADDING_MODES = ("constant", "reflect")


def augmented(examples, rows, *, seed, view, padding=4, padding_mode="constant", flip=True):
    """The images at some positions, as a view shows them.

    Args:
        examples: `ImageArrays`.
        rows: Integers, shape `(n,)`: positions in `examples`.
        seed: Integer in `[0, 2**32)`.
        view: Integer in `[0, 2**32)`: the epoch, if every epoch is another view.
        padding: Pixels put on each side of the uint8 image before the crop.
        padding_mode: Which: `"constant"`, or `"reflect"`, those of the image, mirrored at its edge.
        flip: Whether half of the images are flipped left to right.

    Returns:
        float32, shape `(n, height, width, channels)`.
    """
    index = examples.index[rows].astype("uint32")
    top, left, flips = (
        values.astype("int32")
        for values in stateless_random.windows(
            stateless_random.key("seed", seed), stateless_random.key("view", view), index, padding
        )
    )
    count, height, width, channels = (len(index), *examples.images.shape[1:])
    places = stateless_random.pixels(
        np.arange(count, dtype="int32"), top, left, flips * int(flip), height=height, width=width, padding=padding
    )
    if padding_mode == "constant":  # A fifth of the time of `np.pad`.
        padded = np.zeros((count, height + 2 * padding, width + 2 * padding, channels), "uint8")
        padded[:, padding : padding + height, padding : padding + width] = examples.images[rows]
    else:
        sides = (0, 0), (padding, padding), (padding, padding), (0, 0)
        padded = np.pad(examples.images[rows], sides, mode=padding_mode)
    return examples.normalize(padded.reshape(-1, channels)[places].astype("float32"))


def view_of(epoch, num_views):
    """The view that an epoch shows; of integers, or of tensors of them."""
    return epoch if num_views is None else epoch % num_views


def replayed(examples, soft_labels, seed, num_views, augmentation):
    """The seed of crops and flips, and the number of views: those of the soft labels where there are such.

    Raises:
        ValueError: If the soft labels are of other data, crops, flips or views.
    """
    if soft_labels is None:
        return seed, num_views
    soft_labels.check(examples, augmentation)
    if num_views not in (None, soft_labels.num_views):
        raise ValueError(
            f"views is {num_views}, and the soft labels are of {soft_labels.num_views} views. Leave `num_views` out."
        )
    return soft_labels.seed, soft_labels.num_views


def check_batches(examples, batch_size):
    """Raises ValueError if these are no examples, or the size of a batch is not a positive integer."""
    if not hasattr(examples, "steps_per_epoch"):
        raise ValueError(
            f"There are no batches of {type(examples).__name__}; expected a data set such as data.ImageArrays. Of "
            "Splits, give one part: splits.train."
        )
    if not stateless_random.is_whole(batch_size) or batch_size < 1:
        raise ValueError(f"batch_size is {batch_size!r}; expected an integer >= 1. Give 64, for example.")


def check_settings(examples, seed, batch_size, start, num_views, augmentation):
    """The augmentation with its defaults filled in.

    Raises:
        ValueError: If a setting of `train_batches` is out of its range: at the call, and not at the first batch.
    """
    check_batches(examples, batch_size)
    stateless_random.key("seed", seed)
    if not isinstance(start, (tuple, list)) or len(start) != 2:
        raise ValueError(f"start is {start!r}; expected an epoch and a step in it, such as (0, 0).")
    epoch, step = start
    steps = examples.steps_per_epoch(batch_size)
    stateless_random.key("start's epoch", epoch)
    if not stateless_random.is_whole(step) or not 0 <= step < steps:
        raise ValueError(
            f"start is epoch {epoch}, step {step!r}; expected a step from 0 to {steps - 1}, as an epoch is "
            f"{len(examples)} examples in batches of {batch_size}."
        )
    if num_views is not None and not (stateless_random.is_whole(num_views) and num_views >= 1):
        raise ValueError(f"views is {num_views!r}; expected an integer >= 1, or None for a new view in every epoch.")
    own = examples.augmentation
    if unknown := sorted(set(augmentation) - set(own)):
        raise ValueError(f"{type(examples).__name__} are not varied by {unknown}; expected some of {sorted(own)}.")
    padding = augmentation.get("padding", 0)
    if not stateless_random.is_whole(padding) or padding < 0:
        raise ValueError(f"padding is {padding!r}; expected an integer >= 0.")
    padding_mode = augmentation.get("padding_mode", "constant")
    if padding_mode not in PADDING_MODES:
        raise ValueError(f"padding_mode is {padding_mode!r}; expected one of {' or '.join(PADDING_MODES)}.")
    padding = {**own, **augmentation}.get("padding", 0)
    if padding_mode == "reflect" and padding >= min(examples.input_shape[:2]):
        raise ValueError(f"Images of {examples.input_shape} have no {padding} pixels to reflect; expected fewer.")
    for name, highest in (("scale", 1), ("ratio", np.inf)):
        low, high = augmentation.get(name, (1, 1))
        if not 0 < low <= high <= highest:
            raise ValueError(f"{name} is {augmentation[name]!r}; expected 0 < low <= high{' <= 1' * (highest == 1)}.")
    return {**own, **augmentation}


class _InOrder(keras.utils.PyDataset):
    def __init__(self, examples, batch_size, one_hot, soft_labels):
        super().__init__()
        self.examples, self.batch_size, self.one_hot, self.soft_labels = examples, batch_size, one_hot, soft_labels

    def __len__(self):
        return self.examples.steps_per_epoch(self.batch_size)

    def __getitem__(self, step):
        rows = slice(step * self.batch_size, (step + 1) * self.batch_size)
        return self.examples.inputs(rows), _targets(self.examples, rows, self.one_hot, self.soft_labels)


def _varied(examples, rows, seed, view, augmentation):
    if not augmentation:
        return examples.inputs(rows)
    return augmented(examples, rows, seed=seed, view=view, **augmentation)


def _targets(examples, rows, one_hot, soft_labels=None, view=None):
    labels, index = examples.labels[rows], examples.index[rows]
    if one_hot:
        labels = (labels[:, None] == np.arange(len(examples.classes))).astype("float32")
    targets = {"labels": labels, "index": index}
    if soft_labels is not None:
        targets["teacher_logits"] = soft_labels.rows(view, index)
    return targets
