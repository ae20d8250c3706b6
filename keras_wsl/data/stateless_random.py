"""Random decisions of the input pipeline as a function of (seed, epoch or view, example index), without state.

The integer hash has the same bits in NumPy, TensorFlow and JAX, because it uses only `^ * // % +` of uint32. So an
epoch is the same on every backend, on every machine, and after a restart. Source of Murmur3's finalizer:
https://github.com/aappleby/smhasher. The keys have 32 bits, which is enough for data but not for secrets.
"""

import math
import numbers
import zlib

import numpy as np

# The stream's name is part of the key. Without it, examples early in an epoch would also be cropped at the top.
STREAMS = {
    name: np.uint32(zlib.crc32(name.encode()))
    for name in ("order", "top", "left", "flip", "subset", "area", "ratio", "buffer")
}


def murmur3_finalizer(bits):
    """Apply Murmur3's finalizer: a bijection of uint32 in which every output bit depends on every input bit.

    Args:
        bits: uint32 array of any shape except `()`, for which NumPy warns when values overflow.

    Returns:
        uint32, the same shape.
    """
    # Division, because TensorFlow has no `>>`. np.uint32, because JAX refuses Python integers from 2**31 on.
    bits = (bits ^ (bits // np.uint32(2**16))) * np.uint32(0x85EBCA6B)
    bits = (bits ^ (bits // np.uint32(2**13))) * np.uint32(0xC2B2AE35)
    return bits ^ (bits // np.uint32(2**16))


def random_uint32(stream, seed, epoch, index):
    r"""Return a uniform uint32 for each example.

    $$k = m(m(\mathrm{seed} \oplus \mathrm{stream}) \oplus \mathrm{epoch}),
      \qquad u_i = m(m(i \oplus k) + k)$$

    where $m$ is `murmur3_finalizer` and the stream enters as the CRC-32 of its name.

    Args:
        stream: A name in `STREAMS`.
        seed: uint32, shape `(1,)`.
        epoch: uint32, shape `(1,)`. The view, for augmentations that repeat.
        index: uint32, shape `(n,)`.

    Returns:
        uint32, shape `(n,)`, of the arrays' library.
    """
    key = murmur3_finalizer(murmur3_finalizer(seed ^ STREAMS[stream]) ^ epoch)
    return murmur3_finalizer(murmur3_finalizer(index ^ key) + key)


def crop_offsets(seed, view, index, padding):
    """Return the position of each example's crop, and whether it is flipped.

    Args:
        seed: uint32, shape `(1,)`.
        view: uint32, shape `(1,)`.
        index: uint32, shape `(n,)`.
        padding: Integer, the number of pixels added on each side.

    Returns:
        Top and left in `[0, 2 * padding]` and flip in `{0, 1}`: three uint32 arrays, shape `(n,)`.
    """
    num_offsets = np.uint32(2 * padding + 1)
    top = random_uint32("top", seed, view, index) % num_offsets
    left = random_uint32("left", seed, view, index) % num_offsets
    return top, left, random_uint32("flip", seed, view, index) // np.uint32(2**31)


def crop_indices(rows, top, left, flip, *, height, width, padding):
    r"""Return the indices of the crops' pixels in a batch of padded images flattened to `(pixels, channels)`.

    $$\mathrm{pixel}_{iyx} = (i (H + 2p) + \mathrm{top}_i + y)(W + 2p) + \mathrm{left}_i + x'$$

    with $x' = W - 1 - x$ if example $i$ is flipped, else $x' = x$.

    Args:
        rows: 0, 1, ..., n - 1: int32, shape `(n,)`.
        top: int32, shape `(n,)`.
        left: int32, shape `(n,)`.
        flip: int32, shape `(n,)`, 0 or 1.
        height: Integer, the height of the images before padding, $H$.
        width: Integer, their width, $W$.
        padding: Integer, $p$.

    Returns:
        int32, shape `(n, height, width)`.
    """
    columns = np.arange(width, dtype="int32")
    y = (rows * (height + 2 * padding) + top)[:, None] + np.arange(height, dtype="int32")
    x = left[:, None] + flip[:, None] * (width - 1 - 2 * columns) + columns
    return y[:, :, None] * (width + 2 * padding) + x[:, None, :]


def epoch_permutation(seed, epoch, index):
    """Return the order of an epoch as a permutation of a data set's positions.

    Args:
        seed: Integer in `[0, 2**32)`.
        epoch: Integer in `[0, 2**32)`.
        index: Integers, shape `(n,)`: the examples' numbers, which are hashed.

    Returns:
        int64 NumPy array, shape `(n,)`: positions in `index`.
    """
    seed, epoch = as_uint32("seed", seed), as_uint32("epoch", epoch)
    return np.argsort(random_uint32("order", seed, epoch, np.asarray(index).astype("uint32")), kind="stable")


def is_integral(value):
    """Return whether a value is a finite integer, of any numeric type."""
    return isinstance(value, numbers.Real) and math.isfinite(value) and value == int(value)


def as_uint32(name, value):
    """Convert an integer to the hash's type.

    Args:
        name: The argument's name, for the error.
        value: Integer in `[0, 2**32)`.

    Returns:
        uint32 NumPy array, shape `(1,)`, because NumPy warns when scalars overflow.

    Raises:
        ValueError: If it is not an integer or does not fit. Two seeds would be equal if values overflowed.
    """
    if not is_integral(value) or not 0 <= value < 2**32:
        raise ValueError(f"`{name}` must be an integer in [0, 2**32). Received: {name}={value!r}.")
    return np.array([int(value)], "uint32")
