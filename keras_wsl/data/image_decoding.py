"""Decode JPEG files like torchvision's transforms for ImageNet. Files that cannot be read are left out."""

import math

import numpy as np
import tensorflow as tf

from keras_wsl.data import stateless_random

ATTEMPTS = 10  # Number of random crops that are tried before the center is used.


def decode_and_filter(examples, contents, labels, index, decode):
    """Decode the images of a batch, and leave out those that cannot be read.

    Args:
        examples: `ImageFolder` or `TfdsImageDataset`, whose `corrupt_files` records what is left out.
        contents: Strings, shape `(n,)`: the first argument of `decode`.
        labels: int32, shape `(n,)`.
        index: int32, shape `(n,)`.
        decode: Function of one of the contents and its number to float32 `(size, size, 3)` in `[0, 255]`.

    Returns:
        Normalized images, float32, shape `(m, size, size, 3)` where m <= n; labels; index.
    """
    images = tf.data.Dataset.from_tensor_slices((contents, labels, index)).map(
        lambda content, label, number: (decode(content, number), label, number)
    )
    # The only way in a graph of TensorFlow to continue after a damaged file.
    images = images.ignore_errors().batch(tf.size(index, tf.int64))
    empty = (tf.zeros([0, *examples.input_shape]), tf.zeros([0], tf.int32), tf.zeros([0], tf.int32))
    images, labels, decoded = images.reduce(empty, lambda _, batch: batch)

    def record_corrupt(index, decoded):
        for name in examples.get_names(np.setdiff1d(index, decoded)):
            examples.corrupt_files.add(name)
        examples.corrupt_files.check_limit()
        if not len(decoded):
            raise ValueError(f"None of the {len(index)} images of a batch can be read.")
        return np.int32(len(decoded))

    count = tf.cond(
        tf.size(decoded) < tf.size(index),
        lambda: tf.numpy_function(record_corrupt, [index, decoded], tf.int32),
        lambda: tf.size(decoded),
    )
    with tf.control_dependencies([count]):
        images = tf.ensure_shape(examples.normalize(images), [None, *examples.input_shape])
    return images, tf.ensure_shape(labels, [None]), tf.ensure_shape(decoded, [None])


def center_crop(contents, number, examples):
    """Resize an image's shorter side and crop the center: float32, shape `(size, size, 3)`, in `[0, 255]`."""
    del number  # Unused: the crop is not random.
    image = _decode(contents)
    height, width = _get_size(image)
    # Integers, rounded down, as in PyTorch.
    shorter, resize, size = tf.minimum(height, width), examples.resize, examples.image_size
    resized = _resize(image, tf.stack([resize * height // shorter, resize * width // shorter]))
    height, width = _get_size(resized)
    top, left = (_round((tf.cast(side - size, tf.float64)) / 2) for side in (height, width))
    return resized[top : top + size, left : left + size]


def random_crop(contents, number, examples, *, seed, view, scale, ratio, flip):
    r"""Crop a random area and shape, resize it and flip it at random: Szegedy et al., https://arxiv.org/abs/1409.4842.

    $$w = \sqrt{s H W r}, \qquad h = \sqrt{s H W / r}, \qquad s \sim U(\mathrm{scale}), \quad
      \log r \sim U(\log \mathrm{ratio})$$

    Uses the first of ten draws that fits in the image; if none fits, the center with the nearest shape. Of a JPEG, only
    that part is decoded: a truncated file can be read if the crop lies above the missing part.

    Args:
        contents: String, the file's content.
        number: int32, the example's number. With seed and view it determines the result.
        examples: `ImageFolder` or `TfdsImageDataset`.
        seed: uint32, shape `(1,)`.
        view: uint32, shape `(1,)`.
        scale: Two floats, the range of the crop's fraction of the area.
        ratio: Two floats, the range of the aspect ratio, width / height.
        flip: Whether half of the images are flipped left to right.

    Returns:
        float32, shape `(size, size, 3)`, in `[0, 255]`.
    """
    number = tf.cast(number, tf.uint32)
    is_jpeg = tf.io.is_jpeg(contents)
    shape = tf.cond(
        is_jpeg,
        lambda: tf.io.extract_jpeg_shape(contents)[:2],
        lambda: tf.shape(_decode(contents))[:2],
    )
    top, left, height, width = random_window(number, shape[0], shape[1], seed=seed, view=view, scale=scale, ratio=ratio)
    image = tf.cond(
        is_jpeg,
        lambda: tf.image.decode_and_crop_jpeg(
            contents, tf.stack([top, left, height, width]), channels=3, dct_method="INTEGER_ACCURATE"
        ),
        lambda: _decode(contents)[top : top + height, left : left + width],
    )
    image = _resize(image, [examples.image_size] * 2)
    flips = stateless_random.random_uint32("flip", seed, view, number[None])[0] // np.uint32(2**31)
    return tf.cond((flips == 1) & flip, lambda: image[:, ::-1], lambda: image)


def random_window(number, height, width, *, seed, view, scale, ratio):
    """Return top, left, height and width of `random_crop`'s crop of an image of a size: four int32."""

    def uniform(stream, low, high):
        counters = number * np.uint32(ATTEMPTS) + np.arange(ATTEMPTS, dtype="uint32")
        bits = stateless_random.random_uint32(stream, seed, view, counters)
        return low + (high - low) * tf.cast(bits, tf.float64) / 2**32

    areas = uniform("area", *scale) * tf.cast(height * width, tf.float64)
    ratios = tf.exp(uniform("ratio", math.log(ratio[0]), math.log(ratio[1])))
    widths, heights = _round(tf.sqrt(areas * ratios)), _round(tf.sqrt(areas / ratios))
    fits = (0 < widths) & (widths <= width) & (0 < heights) & (heights <= height)
    first, any_fits = tf.argmax(fits), tf.reduce_any(fits)
    # The largest centered crop with an aspect ratio in the range.
    center_height = tf.minimum(height, _round(tf.cast(width, tf.float64) / ratio[0]))
    center_width = tf.minimum(width, _round(tf.cast(height, tf.float64) * ratio[1]))
    crop_height = tf.where(any_fits, heights[first], center_height)
    crop_width = tf.where(any_fits, widths[first], center_width)

    def offset(stream, max_offset):
        drawn = tf.cast(tf.floor(uniform(stream, 0, 1)[first] * tf.cast(max_offset + 1, tf.float64)), tf.int32)
        return tf.where(any_fits, drawn, max_offset // 2)

    return offset("top", height - crop_height), offset("left", width - crop_width), crop_height, crop_width


def _decode(contents):
    """Return the whole image, uint8. Of a JPEG, the pixels equal Pillow's; those of `decode_image` differ slightly."""
    return tf.cond(
        tf.io.is_jpeg(contents),
        lambda: tf.image.decode_jpeg(contents, channels=3, dct_method="INTEGER_ACCURATE"),
        lambda: tf.image.decode_image(contents, channels=3, expand_animations=False),
    )


def _resize(image, size):
    """Resize bilinearly with antialiasing, and round to integers like Pillow."""
    resized = tf.image.resize(image, size, antialias=True)
    return tf.clip_by_value(tf.round(resized), 0.0, 255.0)


def _get_size(image):
    shape = tf.shape(image)
    return shape[0], shape[1]


def _round(value):
    """Round to the nearest integer, halves to the even one, like Python."""
    return tf.cast(tf.round(value), tf.int32)
