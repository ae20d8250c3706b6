"""`ImageArrays`: validation, subsets and files."""

import numpy as np
import pytest

from keras_wsl.data import ImageArrays, Splits, cifar100, load_npz, save_npz


def make(count=100, classes=5, **changes):
    random = np.random.default_rng(count)
    fields = {
        "images": random.integers(0, 256, (count, 4, 6, 3), "uint8"),
        "labels": np.arange(count) % classes,
        "classes": [f"class {number}" for number in range(classes)],
        "mean": (0.5, 0.4, 0.3),
        "std": (0.2, 0.25, 0.3),
    }
    return ImageArrays(**{**fields, **changes})


def assert_equal(one, other):
    for name in ("images", "labels", "index"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        assert getattr(one, name).dtype == getattr(other, name).dtype
    assert (one.classes, one.mean, one.std) == (other.classes, other.mean, other.std)


def test_image_arrays_converts_dtypes():
    examples = make()
    assert (examples.images.dtype, examples.labels.dtype, examples.index.dtype) == (np.uint8, np.int32, np.int32)
    np.testing.assert_array_equal(examples.index, np.arange(100))
    assert examples.classes[4] == "class 4" and isinstance(examples.classes, tuple)
    assert len(examples) == 100 and examples.steps_per_epoch(64) == 2 and examples.steps_per_epoch(50) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": np.zeros((100, 4, 6, 3), "float32")}, "`images` must be uint8 .* Received: dtype float32"),
        ({"images": np.zeros((100, 4, 6), "uint8")}, r"\(n, height, width, channels\), .* shape \(100, 4, 6\)"),
        ({"images": np.zeros((0, 4, 6, 3), "uint8")}, r"shape \(0, 4, 6, 3\)"),
        (
            {"labels": np.zeros(99, int)},
            r"`labels` must be integers of shape \(100,\), .* Received: dtype int64 and shape \(99,\)",
        ),
        ({"labels": np.zeros(100)}, "Received: dtype float64"),
        ({"labels": np.eye(5, dtype=int)[np.arange(100) % 5]}, r"`labels` .* shape \(100, 5\)"),
        ({"index": np.arange(99)}, r"`index` .* shape \(99,\)"),
        ({"index": np.zeros(100, int)}, "a distinct integer"),
        ({"index": np.arange(100) - 1}, "a distinct integer"),
        ({"index": np.arange(100) + 2**31}, "a distinct integer"),
        ({"mean": (0.5,)}, r"3 values, .* Received: mean=\(0.5,\)"),
        ({"std": (0.2, 0.2, 0.0)}, "`std` positive"),
        ({"mean": (0.2, 0.2, float("nan"))}, "finite"),
    ],
)
def test_image_arrays_rejects_invalid_fields(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


@pytest.mark.parametrize("label", [5, -1, 2**32])
def test_image_arrays_names_first_label_out_of_range(label):
    labels = np.arange(100) % 5
    labels[[17, 30]] = label
    message = rf"in \[0, 4\], because there are 5 classes. .* {label} for example 17 \(index 217\). 2 of 100"
    with pytest.raises(ValueError, match=message):
        make(labels=labels, index=np.arange(200, 300))


def test_normalize_matches_formula():
    examples = make()
    pixels = examples.images.astype("float32")
    expected = (examples.images / 255 - np.array(examples.mean)) / np.array(examples.std)
    assert examples.normalize(pixels).dtype == np.float32
    np.testing.assert_allclose(examples.normalize(pixels), expected, atol=1e-6)


def test_stratified_split_is_disjoint_and_reproducible():
    random = np.random.default_rng(0)
    examples = make(
        1000, labels=random.permutation(np.repeat(np.arange(5), 200)), index=random.permutation(5000)[:1000]
    )
    rest, held = examples.stratified_split(100, seed=3)
    assert (len(rest), len(held)) == (900, 100)
    assert set(rest.index) | set(held.index) == set(examples.index) and not set(rest.index) & set(held.index)
    np.testing.assert_array_equal(np.bincount(held.labels), [20] * 5)
    for part in (rest, held):
        places = np.array([np.flatnonzero(examples.index == number)[0] for number in part.index])
        assert (np.diff(places) > 0).all()
        assert_equal(part, examples.select(places))
    assert_equal(held, examples.stratified_split(100, seed=3)[1])
    assert 5 < len(set(held.index) & set(examples.stratified_split(100, seed=4)[1].index)) < 20  # 10 by chance.


def test_stratified_split_depends_on_index_not_position():
    examples = make(1000)
    shuffled = examples.select(np.random.default_rng(0).permutation(1000))
    assert set(examples.stratified_split(100)[1].index) == set(shuffled.stratified_split(100)[1].index)


@pytest.mark.parametrize("limit", [1, 7, 50, 333, 999, 1000])
def test_stratified_subset_keeps_class_proportions(limit):
    labels = np.repeat([0, 1, 3], [600, 300, 100])  # Class 2 has none.
    examples = make(1000, labels=labels)
    taken = examples.stratified_subset(limit, seed=1)
    assert len(taken) == limit
    share = limit * np.array([0.6, 0.3, 0.0, 0.1, 0.0])
    assert (np.abs(np.bincount(taken.labels, minlength=5) - share) <= 1).all()
    assert set(taken.index) <= set(examples.stratified_subset(min(limit + 100, 1000), seed=1).index)


@pytest.mark.parametrize("count", [0, 100, 1.5, -3])
def test_stratified_split_rejects_empty_parts(count):
    with pytest.raises(ValueError, match=f"an integer from 1 to 99. Received: {count} of 100"):
        make().stratified_split(count)


def test_stratified_subset_rejects_limit_beyond_size():
    with pytest.raises(ValueError, match="Received: 101 of 100"):
        make().stratified_subset(101)


def test_npz_round_trips(tmp_path):
    train, test = make(100, index=np.arange(100)[::-1]), make(40)
    train.save(tmp_path / "new folder" / "train.npz")
    assert_equal(ImageArrays.load(tmp_path / "new folder" / "train.npz"), train)
    save_npz(Splits(train, test), tmp_path / "both.npz")
    for loaded in (load_npz(tmp_path / "both.npz"), cifar100(tmp_path / "both.npz")):
        assert_equal(loaded.train, train)
        assert_equal(loaded.test, test)
    assert {path.name for path in tmp_path.iterdir()} == {"new folder", "both.npz"}


def test_load_npz_rejects_invalid_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing\.npz does not exist"):
        load_npz(tmp_path / "missing.npz")
    with pytest.raises(ValueError, match=r"must end in '\.npz'"):
        make().save(tmp_path / "train.npy")
    make().save(tmp_path / "train.npz")
    with pytest.raises(ValueError, match=r"must have the arrays \['train.images'"):
        load_npz(tmp_path / "train.npz")
    data = (tmp_path / "train.npz").read_bytes()
    (tmp_path / "torn.npz").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"not a complete \.npz file"):
        ImageArrays.load(tmp_path / "torn.npz")


def test_load_npz_rejects_pickled_objects(tmp_path):
    fields = {name: getattr(make(), name) for name in ("images", "labels", "index", "mean", "std")}
    np.savez(tmp_path / "pickled.npz", classes=np.array(["a", "b", "c", "d", 5], object), **fields)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        ImageArrays.load(tmp_path / "pickled.npz")
