"""Random decisions of the input as a function of (seed, epoch or view, example index), with no state.

An integer hash with the same bits in NumPy, TensorFlow and JAX, since it uses `^ * // % +` of uint32 alone: an epoch is
the same whenever, wherever and on whatever backend it is made. Murmur3's finalizer: https://github.com/aappleby/smhasher.
Its keys have 32 bits: good for data, not for secrets.
"""

import math
import numbers
import zlib

import numpy as np

# Without a name in the key, an example that comes early in an epoch would also be cropped at the top.
CHOICES = {
    name: np.uint32(zlib.crc32(name.encode()))
    for name in ("order", "top", "left", "flip", "subset", "area", "ratio", "buffer")
}


def mix(bits):
    """Murmur3's finalizer: a bijection of uint32 in which every output bit depends on every input bit.

    Args:
        bits: uint32 array of any shape but `()`, of which NumPy warns when it wraps round.

    Returns:
        uint32, the same shape.
    """
    # Division, since TensorFlow has no `>>`; np.uint32, since JAX refuses Python integers from 2**31 on.
    bits = (bits ^ (bits // np.uint32(2**16))) * np.uint32(0x85EBCA6B)
    bits = (bits ^ (bits // np.uint32(2**13))) * np.uint32(0xC2B2AE35)
    return bits ^ (bits // np.uint32(2**16))


def draw(choice, seed, epoch, index):
    r"""A uniform uint32 for each example.

    $$k = m(m(\mathrm{seed} \oplus \mathrm{choice}) \oplus \mathrm{epoch}),
      \qquad u_i = m(m(i \oplus k) + k)$$

    with $m$ = `mix`, and the CRC-32 of the choice's name for the choice.

    Args:
        choice: A name in `CHOICES`.
        seed: uint32, shape `(1,)`.
        epoch: uint32, shape `(1,)`; the view, for augmentations that come again.
        index: uint32, shape `(n,)`.

    Returns:
        uint32, shape `(n,)`, of the library that the arrays came from.
    """
    key = mix(mix(seed ^ CHOICES[choice]) ^ epoch)
    return mix(mix(index ^ key) + key)


def windows(seed, view, index, padding):
    """Where to crop, and whether to flip.

    Args:
        seed: uint32, shape `(1,)`.
        view: uint32, shape `(1,)`.
        index: uint32, shape `(n,)`.
        padding: Integer, the zeros put on each side.

    Returns:
        Top and left in `[0, 2 * padding]` and flip in `{0, 1}`: three uint32, shape `(n,)`.
    """
    places = np.uint32(2 * padding + 1)
    top = draw("top", seed, view, index) % places
    left = draw("left", seed, view, index) % places
    return top, left, draw("flip", seed, view, index) // np.uint32(2**31)


def pixels(rows, top, left, flip, *, height, width, padding):
    r"""Where the pixels of the windows lie in a batch of padded images that was flattened to `(pixels, channels)`.

    $$\mathrm{pixel}_{iyx} = (i (H + 2p) + \mathrm{top}_i + y)(W + 2p) + \mathrm{left}_i + x'$$

    with $x' = W - 1 - x$ where example $i$ is flipped, else $x' = x$.

    Args:
        rows: 0, 1, ..., n - 1: int32, shape `(n,)`.
        top: int32, shape `(n,)`.
        left: int32, shape `(n,)`.
        flip: int32, shape `(n,)`, 0 or 1.
        height: Integer, of the images before padding, $H$.
        width: Integer, $W$.
        padding: Integer, $p$.

    Returns:
        int32, shape `(n, height, width)`.
    """
    across = np.arange(width, dtype="int32")
    y = (rows * (height + 2 * padding) + top)[:, None] + np.arange(height, dtype="int32")
    x = left[:, None] + flip[:, None] * (width - 1 - 2 * across) + across
    return y[:, :, None] * (width + 2 * padding) + x[:, None, :]


def order(seed, epoch, index):
    """The order of an epoch: a permutation of an example set's positions.

    Args:
        seed: Integer in `[0, 2**32)`.
        epoch: Integer in `[0, 2**32)`.
        index: Integers, shape `(n,)`: the examples' numbers, by which they are drawn.

    Returns:
        int64 NumPy array, shape `(n,)`: positions in `index`.
    """
    keys = draw("order", key("seed", seed), key("epoch", epoch), np.asarray(index).astype("uint32"))
    return np.argsort(keys, kind="stable")


def is_whole(value):
    """Whether it is a whole number, of whatever type of numbers."""
    return isinstance(value, numbers.Real) and math.isfinite(value) and value == int(value)


def key(name, value):
    """A whole number as the hash takes it.

    Args:
        name: What it is, for the error.
        value: Integer in `[0, 2**32)`.

    Returns:
        uint32 NumPy array, shape `(1,)`: of scalars NumPy warns when they wrap round.

    Raises:
        ValueError: It is not whole, or does not fit: wrapped round, two seeds would be one.
    """
    if not is_whole(value) or not 0 <= value < 2**32:
        raise ValueError(f"{name} is {value!r}; expected an integer in [0, 2**32). Choose one there.")
    return np.array([int(value)], "uint32")
