"""The hash: its bits, its quality, and the crops that depend on it."""

import warnings

import numpy as np
import pytest

from keras_wsl.data import stateless_random

COUNT = 50_000

# Made with Python's integers, shifts and masks, and not with the code under test.
FINALIZED = {0: 0x0, 1: 0x514E28B7, 2: 0x30F4C306, 0xDEADBEEF: 0x0DE5C6A9, 0xFFFFFFFF: 0x81F16F39}
DRAWN = [
    ("order", 0, 0, 0, 0x66D5B5F2),
    ("order", 0, 0, 1, 0x91FEDFF0),
    ("order", 1, 0, 0, 0x6553033E),
    ("order", 7, 239, 49999, 0x4857C3F8),
    ("order", 4294967295, 4294967295, 4294967295, 0xF4B4349C),
    ("top", 0, 0, 0, 0x3515C973),
    ("top", 7, 239, 49999, 0xC8733EFD),
    ("left", 0, 0, 0, 0xF3677070),
    ("left", 7, 239, 49999, 0xC23EB9A3),
    ("flip", 0, 0, 0, 0x0DAFC91D),
    ("flip", 7, 239, 49999, 0xB7281BE7),
    ("subset", 0, 0, 0, 0xB50F57A3),
    ("subset", 7, 239, 49999, 0x228DDBB6),
]


def u32(*values):
    return np.array(values, "uint32")


def indices():
    return np.arange(COUNT, dtype="uint32")


def test_murmur3_finalizer_matches_golden_values():
    np.testing.assert_array_equal(stateless_random.murmur3_finalizer(u32(*FINALIZED)), u32(*FINALIZED.values()))


@pytest.mark.parametrize(("choice", "seed", "epoch", "index", "expected"), DRAWN)
def test_random_uint32_matches_golden_bits(choice, seed, epoch, index, expected):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # NumPy would warn of scalars that wrap round.
        drawn = stateless_random.random_uint32(choice, u32(seed), u32(epoch), u32(index))
    assert drawn.dtype == np.uint32
    assert drawn.tolist() == [expected]


@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (11, 239), (2**32 - 1, 2**31)])
def test_random_uint32_has_the_same_bits_in_tensorflow(seed, epoch):
    tf = pytest.importorskip("tensorflow")

    @tf.function
    def everything(seed, epoch, index):
        return [
            stateless_random.random_uint32("order", seed, epoch, index),
            *stateless_random.crop_offsets(seed, epoch, index, 4),
        ]

    arguments = u32(seed), u32(epoch), indices()
    for ours, theirs in zip(everything.python_function(*arguments), everything(*map(tf.constant, arguments))):
        assert theirs.dtype == tf.uint32
        np.testing.assert_array_equal(ours, theirs.numpy())


@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (11, 239), (2**32 - 1, 2**31)])
def test_random_uint32_has_the_same_bits_in_jax(seed, epoch):
    jax = pytest.importorskip("jax")

    def everything(seed, epoch, index):
        return [
            stateless_random.random_uint32("order", seed, epoch, index),
            *stateless_random.crop_offsets(seed, epoch, index, 4),
        ]

    arguments = u32(seed), u32(epoch), indices()
    for ours, theirs in zip(everything(*arguments), jax.jit(everything)(*map(jax.numpy.asarray, arguments))):
        assert theirs.dtype == np.uint32
        np.testing.assert_array_equal(ours, np.asarray(theirs))


def test_epoch_permutation_differs_per_epoch():
    orders = [
        stateless_random.epoch_permutation(seed, epoch, np.arange(COUNT)) for seed, epoch in [(0, 0), (0, 1), (1, 0)]
    ]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(COUNT))
    for one, other in [(0, 1), (0, 2), (1, 2)]:
        # Two random permutations share one place on average; 8 or more come once in 100,000 times.
        assert (orders[one] == orders[other]).sum() < 8
        assert abs(np.corrcoef(np.argsort(orders[one]), np.argsort(orders[other]))[0, 1]) < 0.02


def test_epoch_permutation_depends_on_index_not_position():
    numbers = np.random.default_rng(0).permutation(1000)
    np.testing.assert_array_equal(
        numbers[stateless_random.epoch_permutation(5, 2, numbers)],
        stateless_random.epoch_permutation(5, 2, np.arange(1000)),
    )


@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (0, 1), (3, 239)])
def test_crop_offsets_are_uniform(seed, epoch):
    top, left, flip = stateless_random.crop_offsets(u32(seed), u32(epoch), indices(), 4)
    assert top.max() == left.max() == 8 and flip.max() == 1
    cells = np.bincount(top * 18 + left * 2 + flip, minlength=162)
    expected = COUNT / 162
    chi_square = ((cells - expected) ** 2 / expected).sum()
    # 161 degrees of freedom: mean 161, standard deviation 17.9.
    assert 161 - 4 * 17.9 < chi_square < 161 + 4 * 17.9


def test_flips_over_epochs_are_independent():
    flips = np.stack(
        [stateless_random.crop_offsets(u32(0), u32(epoch), indices()[:5000], 4)[2] for epoch in range(240)]
    )
    assert abs(flips.mean() - 0.5) < 0.003
    assert abs(flips.sum(axis=0).std() - np.sqrt(240 / 4)) < 0.4


def test_random_uint32_is_not_correlated_across_keys():
    uniform = lambda *key: stateless_random.random_uint32(key[0], u32(key[1]), u32(key[2]), indices()) / 2**32  # noqa: E731
    base = uniform("top", 0, 0)
    assert abs(base.mean() - 0.5) < 0.006
    others = [uniform("left", 0, 0), uniform("top", 1, 0), uniform("top", 0, 1), np.roll(base, 1)]
    for other in others:
        assert abs(np.corrcoef(base, other)[0, 1]) < 0.02


@pytest.mark.parametrize("value", [-1, 2**32, 0.5])
def test_as_uint32_rejects_overflow(value):
    with pytest.raises(ValueError, match=r"`seed` must be an integer in \[0, 2\*\*32\). Received: seed="):
        stateless_random.as_uint32("seed", value)


def test_crop_indices_address_flattened_padded_batch():
    # Two images of 1 x 2, padding 1: each 3 x 4 when padded. The second is flipped.
    rows, top, left, flip = (np.array(values, "int32") for values in ([0, 1], [0, 2], [2, 1], [0, 1]))
    places = stateless_random.crop_indices(rows, top, left, flip, height=1, width=2, padding=1)
    np.testing.assert_array_equal(places, [[[2, 3]], [[12 + 8 + 2, 12 + 8 + 1]]])
