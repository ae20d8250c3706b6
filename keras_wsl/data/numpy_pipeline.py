"""Batches made with NumPy. `tf_data_pipeline` makes the same ones, bit for bit."""

import keras
import numpy as np

from keras_wsl.data import stateless_random

# How pixels outside an image are made: modes of `np.pad`, and in capitals of `tf.pad`.
PADDING_MODES = ("constant", "reflect")


def train_batches(
    examples,
    *,
    seed,
    batch_size,
    initial_position=(0, 0),
    one_hot=False,
    num_views=None,
    soft_labels=None,
    **augmentation,
):
    """Yield batches without end. See `pipeline.train_batches` for the arguments and errors.

    Batches depend only on the arguments and each example's number, so those from a later `initial_position` equal the
    ones that a run from the beginning has there. `fit` on JAX and Torch accepts a generator and can stop at any step.

    Args:
        examples: `ImageArrays` or `SentencePairs`.
        **augmentation: Arguments of `augment`. None for sentences.

    Returns:
        Generator of `(inputs, {"labels", "index"})`.
    """
    augmentation = check_settings(examples, seed, batch_size, initial_position, num_views, augmentation)
    view_seed, num_views = resolve_cached_views(examples, soft_labels, seed, num_views, augmentation)

    def generate():
        epoch, first_step = initial_position
        while True:
            order = stateless_random.epoch_permutation(seed, epoch, examples.index)
            for low in range(first_step * batch_size, len(order), batch_size):
                rows = order[low : low + batch_size]
                view = get_view(epoch, num_views)
                yield (
                    _make_inputs(examples, rows, view_seed, view, augmentation),
                    _make_targets(examples, rows, one_hot, soft_labels, view),
                )
            epoch, first_step = epoch + 1, 0

    return generate()


def augmented_batches(examples, batch_size, *, seed, view, **augmentation):
    """Yield all examples once, in order, augmented as in one view. See `pipeline.augmented_batches`."""
    augmentation = check_settings(examples, seed, batch_size, (view, 0), None, augmentation)
    batches = (np.arange(low, min(low + batch_size, len(examples))) for low in range(0, len(examples), batch_size))
    return (
        (_make_inputs(examples, rows, seed, view, augmentation), _make_targets(examples, rows, one_hot=False))
        for rows in batches
    )


def eval_batches(examples, batch_size, *, one_hot=False, soft_labels=None):
    """Return all examples once, in order, without augmentation. See `pipeline.eval_batches` for the arguments.

    This is not a generator, which `fit(validation_data=)` would find empty from the second epoch on.

    Returns:
        `keras.utils.PyDataset` of batches like those of `train_batches`, for `fit`, `evaluate`, `predict` and `for`.
    """
    check_batches(examples, batch_size)
    if soft_labels is not None:
        soft_labels.check_dataset(examples)
    return _EvalBatches(examples, batch_size, one_hot, soft_labels)


def augment(examples, rows, *, seed, view, padding=4, padding_mode="constant", flip=True):
    """Crop and flip the images at some positions as in one view.

    Args:
        examples: `ImageArrays`.
        rows: Integers, shape `(n,)`: positions in `examples`.
        seed: Integer in `[0, 2**32)`.
        view: Integer in `[0, 2**32)`: the epoch, if every epoch is another view.
        padding: Integer, the number of pixels added on each side of the uint8 image before the crop.
        padding_mode: `"constant"` (zeros) or `"reflect"` (the image mirrored at its edge).
        flip: Whether half of the images are flipped left to right.

    Returns:
        float32, shape `(n, height, width, channels)`.
    """
    index = examples.index[rows].astype("uint32")
    seed, view = stateless_random.as_uint32("seed", seed), stateless_random.as_uint32("view", view)
    offsets = stateless_random.crop_offsets(seed, view, index, padding)
    top, left, flips = (values.astype("int32") for values in offsets)
    count, height, width, channels = (len(index), *examples.images.shape[1:])
    indices = stateless_random.crop_indices(
        np.arange(count, dtype="int32"), top, left, flips * int(flip), height=height, width=width, padding=padding
    )
    if padding_mode == "constant":  # Takes a fifth of the time of `np.pad`.
        padded = np.zeros((count, height + 2 * padding, width + 2 * padding, channels), "uint8")
        padded[:, padding : padding + height, padding : padding + width] = examples.images[rows]
    else:
        sides = (0, 0), (padding, padding), (padding, padding), (0, 0)
        padded = np.pad(examples.images[rows], sides, mode=padding_mode)
    return examples.normalize(padded.reshape(-1, channels)[indices].astype("float32"))


def get_view(epoch, num_views):
    """Return the view of an epoch. Accepts integers and tensors."""
    return epoch if num_views is None else epoch % num_views


def resolve_cached_views(examples, soft_labels, seed, num_views, augmentation):
    """Return the seed of crops and flips and the number of views: those of the soft labels, if there are any.

    Raises:
        ValueError: If the soft labels are of other data, crops, flips or views.
    """
    if soft_labels is None:
        return seed, num_views
    soft_labels.check_dataset(examples, augmentation)
    if num_views not in (None, soft_labels.num_views):
        raise ValueError(
            f"`num_views` must be the number of views of the soft labels, {soft_labels.num_views}. "
            f"Received: num_views={num_views}. Leave it out."
        )
    return soft_labels.seed, soft_labels.num_views


def check_batches(examples, batch_size):
    """Raise `ValueError` unless `examples` is a data set and `batch_size` a positive integer."""
    if not hasattr(examples, "steps_per_epoch"):
        raise ValueError(
            f"`examples` must be a data set such as data.ImageArrays. Received: {type(examples).__name__}. Of Splits, "
            "pass one split: splits.train."
        )
    if not stateless_random.is_integral(batch_size) or batch_size < 1:
        raise ValueError(f"`batch_size` must be a positive integer. Received: batch_size={batch_size!r}.")


def check_settings(examples, seed, batch_size, initial_position, num_views, augmentation):
    """Validate the arguments of `train_batches` at the call, and not at the first batch.

    Returns:
        The augmentation with its defaults.

    Raises:
        ValueError: If an argument is out of its range.
    """
    check_batches(examples, batch_size)
    stateless_random.as_uint32("seed", seed)
    if not isinstance(initial_position, (tuple, list)) or len(initial_position) != 2:
        raise ValueError(
            "`initial_position` must be an epoch and a step in it, such as (0, 0). "
            f"Received: initial_position={initial_position!r}."
        )
    epoch, step = initial_position
    steps = examples.steps_per_epoch(batch_size)
    stateless_random.as_uint32("initial_position[0]", epoch)
    if not stateless_random.is_integral(step) or not 0 <= step < steps:
        raise ValueError(
            f"`initial_position` must have a step from 0 to {steps - 1}, because an epoch has {len(examples)} examples "
            f"in batches of {batch_size}. Received: epoch {epoch}, step {step!r}."
        )
    if num_views is not None and not (stateless_random.is_integral(num_views) and num_views >= 1):
        raise ValueError(
            "`num_views` must be a positive integer, or None for a new view in every epoch. "
            f"Received: num_views={num_views!r}."
        )
    defaults = examples.augmentation
    if unknown := sorted(set(augmentation) - set(defaults)):
        raise ValueError(
            f"The augmentation of {type(examples).__name__} has the arguments {sorted(defaults)}. Received: {unknown}."
        )
    padding = augmentation.get("padding", 0)
    if not stateless_random.is_integral(padding) or padding < 0:
        raise ValueError(f"`padding` must be a non-negative integer. Received: padding={padding!r}.")
    padding_mode = augmentation.get("padding_mode", "constant")
    if padding_mode not in PADDING_MODES:
        raise ValueError(f"`padding_mode` must be one of {PADDING_MODES}. Received: padding_mode={padding_mode!r}.")
    augmentation = {**defaults, **augmentation}
    if padding_mode == "reflect" and augmentation["padding"] >= (side := min(examples.input_shape[:2])):
        raise ValueError(
            f"`padding` must be less than {side} for padding_mode='reflect', because the images have shape "
            f"{examples.input_shape}. Received: padding={augmentation['padding']}."
        )
    for name, limit in (("scale", 1), ("ratio", np.inf)):
        low, high = augmentation.get(name, (1, 1))
        if not 0 < low <= high <= limit:
            raise ValueError(
                f"`{name}` must be two numbers with 0 < low <= high{' <= 1' * (limit == 1)}. "
                f"Received: {name}={augmentation[name]!r}."
            )
    return augmentation


class _EvalBatches(keras.utils.PyDataset):
    def __init__(self, examples, batch_size, one_hot, soft_labels):
        super().__init__()
        self.examples, self.batch_size, self.one_hot, self.soft_labels = examples, batch_size, one_hot, soft_labels

    def __len__(self):
        return self.examples.steps_per_epoch(self.batch_size)

    def __getitem__(self, step):
        rows = slice(step * self.batch_size, (step + 1) * self.batch_size)
        return self.examples.inputs(rows), _make_targets(self.examples, rows, self.one_hot, self.soft_labels)


def _make_inputs(examples, rows, seed, view, augmentation):
    if not augmentation:
        return examples.inputs(rows)
    return augment(examples, rows, seed=seed, view=view, **augmentation)


def _make_targets(examples, rows, one_hot, soft_labels=None, view=None):
    labels, index = examples.labels[rows], examples.index[rows]
    if one_hot:
        labels = (labels[:, None] == np.arange(len(examples.classes))).astype("float32")
    targets = {"labels": labels, "index": index}
    if soft_labels is not None:
        targets["teacher_logits"] = soft_labels.lookup(view, index)
    return targets
