"""JPEG files to arrays, as torchvision's transforms for ImageNet have it; a file that cannot be read is left out."""

import math

import numpy as np
import tensorflow as tf

from keras_wsl.data import stateless_random

ATTEMPTS = 10  # Random crops that may not fit before the centre is taken.


def readable(examples, contents, labels, index, decode):
    """Decodes the images of a batch, without those that cannot be read.

    Args:
        examples: `ImageFolder` or `TfdsImageDataset`, whose `unreadable` hears of what was left out.
        contents: Strings, shape `(n,)`: what `decode` takes.
        labels: int32, shape `(n,)`.
        index: int32, shape `(n,)`.
        decode: Function of one of the contents and its number, to float32 `(size, size, 3)` in `[0, 255]`.

    Returns:
        Normalised images, float32, shape `(m, size, size, 3)` where m <= n; labels; index.
    """
    images = tf.data.Dataset.from_tensor_slices((contents, labels, index)).map(
        lambda content, label, number: (decode(content, number), label, number)
    )
    # The only way that TensorFlow's graphs have to go on after a file that is damaged.
    images = images.ignore_errors().batch(tf.size(index, tf.int64))
    nothing = (tf.zeros([0, *examples.input_shape]), tf.zeros([0], tf.int32), tf.zeros([0], tf.int32))
    images, labels, found = images.reduce(nothing, lambda _, batch: batch)

    def note(index, found):
        for name in examples.names_of(np.setdiff1d(index, found)):
            examples.unreadable.note(name)
        examples.unreadable.check()
        if not len(found):
            raise ValueError(f"None of the {len(index)} images of a batch could be read.")
        return np.int32(len(found))

    count = tf.cond(
        tf.size(found) < tf.size(index),
        lambda: tf.numpy_function(note, [index, found], tf.int32),
        lambda: tf.size(found),
    )
    with tf.control_dependencies([count]):
        images = tf.ensure_shape(examples.normalize(images), [None, *examples.input_shape])
    return images, tf.ensure_shape(labels, [None]), tf.ensure_shape(found, [None])


def centre(contents, number, examples):
    """The centre of an image whose shorter side was resized: float32, shape `(size, size, 3)`, in `[0, 255]`."""
    del number  # It is the same for every example.
    image = _decoded(contents)
    height, width = _size_of(image)
    # Whole numbers, rounded down, as PyTorch's.
    shorter, resize, size = tf.minimum(height, width), examples.resize, examples.image_size
    resized = _resized(image, tf.stack([resize * height // shorter, resize * width // shorter]))
    height, width = _size_of(resized)
    top, left = (_rounded((tf.cast(side - size, tf.float64)) / 2) for side in (height, width))
    return resized[top : top + size, left : left + size]


def random_crop(contents, number, examples, *, seed, view, scale, ratio, flip):
    r"""A crop of random area and shape, resized, and flipped or not: Szegedy et al., https://arxiv.org/abs/1409.4842.

    $$w = \sqrt{s H W r}, \qquad h = \sqrt{s H W / r}, \qquad s \sim U(\mathrm{scale}), \quad
      \log r \sim U(\log \mathrm{ratio})$$

    The first of ten draws that fits in the image; else the centre, of the nearest shape. Only that part of a JPEG is
    decoded: a file that was cut off can be read as long as the crop lies above the cut.

    Args:
        contents: String, the file.
        number: int32, the example's number, which with seed and view decides all.
        examples: `ImageFolder` or `TfdsImageDataset`.
        seed: uint32, shape `(1,)`.
        view: uint32, shape `(1,)`.
        scale: Two floats, the range of the share of the area.
        ratio: Two floats, the range of width by height.
        flip: Whether half of the images are flipped left to right.

    Returns:
        float32, shape `(size, size, 3)`, in `[0, 255]`.
    """
    number = tf.cast(number, tf.uint32)
    is_jpeg = tf.io.is_jpeg(contents)
    shape = tf.cond(
        is_jpeg,
        lambda: tf.io.extract_jpeg_shape(contents)[:2],
        lambda: tf.shape(_decoded(contents))[:2],
    )
    top, left, height, width = random_window(number, shape[0], shape[1], seed=seed, view=view, scale=scale, ratio=ratio)
    image = tf.cond(
        is_jpeg,
        lambda: tf.image.decode_and_crop_jpeg(
            contents, tf.stack([top, left, height, width]), channels=3, dct_method="INTEGER_ACCURATE"
        ),
        lambda: _decoded(contents)[top : top + height, left : left + width],
    )
    image = _resized(image, [examples.image_size] * 2)
    flips = stateless_random.draw("flip", seed, view, number[None])[0] // np.uint32(2**31)
    return tf.cond((flips == 1) & flip, lambda: image[:, ::-1], lambda: image)


def random_window(number, height, width, *, seed, view, scale, ratio):
    """Top, left, height and width of the crop of `random_crop` in an image of a size: four int32."""

    def uniform(choice, low, high):
        bits = stateless_random.draw(
            choice, seed, view, number * np.uint32(ATTEMPTS) + np.arange(ATTEMPTS, dtype="uint32")
        )
        return low + (high - low) * tf.cast(bits, tf.float64) / 2**32

    area = uniform("area", *scale) * tf.cast(height * width, tf.float64)
    shape = tf.exp(uniform("ratio", math.log(ratio[0]), math.log(ratio[1])))
    widths, heights = _rounded(tf.sqrt(area * shape)), _rounded(tf.sqrt(area / shape))
    fits = (0 < widths) & (widths <= width) & (0 < heights) & (heights <= height)
    first = tf.argmax(fits)
    # The largest centre that is as wide or as narrow as the range of shapes allows.
    all_width, all_height = tf.cast(width, tf.float64), tf.cast(height, tf.float64)
    high = tf.minimum(height, _rounded(all_width / ratio[0]))
    wide = tf.minimum(width, _rounded(all_height * ratio[1]))
    found = tf.reduce_any(fits)
    high, wide = tf.where(found, heights[first], high), tf.where(found, widths[first], wide)

    def place(choice, room):
        drawn = tf.cast(tf.floor(uniform(choice, 0, 1)[first] * tf.cast(room + 1, tf.float64)), tf.int32)
        return tf.where(found, drawn, room // 2)

    return place("top", height - high), place("left", width - wide), high, wide


def _decoded(contents):
    """The whole image, uint8; of a JPEG the pixels that Pillow has, which `decode_image` misses by some levels."""
    return tf.cond(
        tf.io.is_jpeg(contents),
        lambda: tf.image.decode_jpeg(contents, channels=3, dct_method="INTEGER_ACCURATE"),
        lambda: tf.image.decode_image(contents, channels=3, expand_animations=False),
    )


def _resized(image, size):
    """Bilinear with antialiasing, to whole grey values as Pillow gives them."""
    resized = tf.image.resize(image, size, antialias=True)
    return tf.clip_by_value(tf.round(resized), 0.0, 255.0)


def _size_of(image):
    shape = tf.shape(image)
    return shape[0], shape[1]


def _rounded(value):
    """Of a half, to the even neighbour, as Python does."""
    return tf.cast(tf.round(value), tf.int32)
