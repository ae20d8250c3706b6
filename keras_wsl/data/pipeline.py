"""Batches for the backend that runs: `tf.data` on TensorFlow, NumPy on JAX and Torch. Both give the same bits."""

import keras

from keras_wsl.data import arrays


def train_batches(
    examples,
    *,
    seed,
    batch_size,
    start=(0, 0),
    padding=4,
    flip=True,
    one_hot=False,
    views=None,
    framework="auto",
):
    """Endless training batches, the same for the same arguments on every framework.

    `fit(train_batches(..., start=(epoch, step)), initial_epoch=epoch, steps_per_epoch=steps)` goes on where a run was
    left, if `steps` is `examples.steps_per_epoch(batch_size)`.

    Args:
        examples: `Examples`.
        seed: Integer in `[0, 2**32)`.
        batch_size: Integer; the last batch of an epoch may be smaller.
        start: Epoch, and step in that epoch, of the first batch.
        padding: Black pixels put on each side of the uint8 image before the crop; 0 for no crop.
        flip: Whether half of the images are flipped left to right.
        one_hot: Whether labels are float32 `(n, classes)` instead of int32 `(n,)`.
        views: Integer: epoch e repeats the crops and flips of epoch `e % views`, in an order of its own.
        framework: `"tensorflow"`, `"numpy"`, or `"auto"`, which goes by the Keras backend.

    Returns:
        `tf.data.Dataset` or generator of `(images, {"labels", "index"})`: float32 `(n, height, width, channels)`,
        labels, int32 `(n,)`.

    Raises:
        ValueError: A setting is out of its range.
    """
    return _module(framework).train_batches(
        examples,
        seed=seed,
        batch_size=batch_size,
        start=start,
        padding=padding,
        flip=flip,
        one_hot=one_hot,
        views=views,
    )


def eval_batches(examples, batch_size, *, one_hot=False, framework="auto"):
    """All examples once, in order, normalised; can be gone through again and again.

    Args:
        examples: `Examples`.
        batch_size: Integer; the last batch may be smaller.
        one_hot: Whether labels are float32 `(n, classes)` instead of int32 `(n,)`.
        framework: `"tensorflow"`, `"numpy"`, or `"auto"`, which goes by the Keras backend.

    Returns:
        `tf.data.Dataset` or `keras.utils.PyDataset` of batches like those of `train_batches`.

    Raises:
        ValueError: A setting is out of its range.
    """
    return _module(framework).eval_batches(examples, batch_size, one_hot=one_hot)


def _module(framework):
    if framework == "auto":
        framework = "tensorflow" if keras.backend.backend() == "tensorflow" else "numpy"
    if framework == "tensorflow":
        from keras_wsl.data import tensorflow

        return tensorflow
    if framework != "numpy":
        raise ValueError(f'framework is {framework!r}; expected "auto", "tensorflow" or "numpy".')
    return arrays
