"""Image files in directories: their order, their crops, and files that cannot be read."""

import itertools
import logging
import math
import os
import pathlib
import socket

import numpy as np
import pytest

from keras_wsl.data import (
    TooManyCorruptImagesError,
    eval_batches,
    image_folder,
    imagenet,
    stateless_random,
    train_batches,
)

tf = pytest.importorskip("tensorflow")
Image = pytest.importorskip("PIL.Image")
decoding = pytest.importorskip("keras_wsl.data.image_decoding")

SHARED = pathlib.Path(__file__).resolve().parents[3] / "shared"
SIZES = {"image_size": 16, "resize": 20}
DEFAULTS = {"scale": (0.08, 1.0), "ratio": (3 / 4, 4 / 3)}


def picture(seed, height, width):
    """Return an image of smooth colors, which JPEG compresses with little loss."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), "uint8")
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def make(folder, classes=("n03", "n01", "n02"), count=8):
    """Create a tree with train/ and val/, with images of many shapes."""
    for split in ("train", "val"):
        for number, name in enumerate(classes):
            (folder / split / name).mkdir(parents=True)
            for k in range(count):
                seed = 100 * number + k
                image = picture(seed, 24 + 7 * k % 40, 22 + 11 * (seed % 5))
                image.save(folder / split / name / f"{name}_{k}.JPEG", quality=90)
    return folder


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return make(tmp_path_factory.mktemp("tree"))


@pytest.fixture(scope="module")
def three_epochs(tree):
    return numpy_batches(train_batches(imagenet(tree, **SIZES).train, seed=5, batch_size=10), 9)


def numpy_batches(dataset, count=None):
    """Return batches as (images, labels, index) of NumPy arrays."""
    batches = itertools.islice(iter(dataset), count)
    return [tuple(np.asarray(array) for array in (x, y["labels"], y["index"])) for x, y in batches]


def by_number(batches):
    return {number: image for images, _, index in batches for number, image in zip(index, images)}


def assert_same(ones, others):
    assert len(ones) == len(others)
    for one, other in zip(ones, others):
        for array, same in zip(one, other):
            assert array.dtype == same.dtype
            np.testing.assert_array_equal(array, same)


def levels(examples, images):
    """Convert normalized images to pixels from 0 to 255."""
    return (images * np.array(examples.std) + np.array(examples.mean)) * 255


def resized(image, height, width):
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR)).astype(int)


def slow_centre(path, resize, size):
    """Apply torchvision's Resize(resize) and CenterCrop(size) with Pillow."""
    image = Image.open(path).convert("RGB")
    shorter = min(image.size)
    width, height = (int(resize * side / shorter) for side in image.size)
    top, left = (round((side - size) / 2) for side in (height, width))
    return resized(image, height, width)[top : top + size, left : left + size]


def slow_window(number, height, width, *, seed, view, scale, ratio):
    """Compute torchvision's RandomResizedCrop.get_params line by line, with numbers of `stateless_random`."""

    def uniform(choice, attempt, low=0.0, high=1.0):
        key = np.array([(10 * number + attempt) % 2**32], "uint32")
        bits = stateless_random.random_uint32(
            choice, stateless_random.as_uint32("seed", seed), stateless_random.as_uint32("view", view), key
        )[0]
        return low + (high - low) * (int(bits) / 2**32)

    for attempt in range(10):
        area = height * width * uniform("area", attempt, *scale)
        shape = math.exp(uniform("ratio", attempt, math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < w <= width and 0 < h <= height:
            top = math.floor(uniform("top", attempt) * (height - h + 1))
            return top, math.floor(uniform("left", attempt) * (width - w + 1)), h, w
    if width / height < min(ratio):
        w, h = width, round(width / min(ratio))
    elif width / height > max(ratio):
        w, h = round(height * max(ratio)), height
    else:
        w, h = width, height
    return (height - h) // 2, (width - w) // 2, h, w


def windows(numbers, heights, widths, *, seed=3, view=0, **settings):
    """Return `random_window` of many images: int array, shape `(n, 4)`."""
    seed, view = (
        tf.constant(stateless_random.as_uint32("seed", seed)),
        tf.constant(stateless_random.as_uint32("view", view)),
    )
    sizes = [np.broadcast_to(np.asarray(side, "int32"), np.shape(numbers)) for side in (heights, widths)]
    found = tf.data.Dataset.from_tensor_slices((np.asarray(numbers, "uint32"), *sizes)).map(
        lambda *image: tf.stack(decoding.random_window(*image, seed=seed, view=view, **{**DEFAULTS, **settings}))
    )
    return next(found.batch(len(numbers)).as_numpy_iterator())


def slow_crop(path, number, size, *, seed, view, **settings):
    image = Image.open(path).convert("RGB")
    top, left, height, width = slow_window(
        int(number), image.height, image.width, seed=seed, view=view, **{**DEFAULTS, **settings}
    )
    crop = resized(image.crop((left, top, left + width, top + height)), size, size)
    flip = (
        stateless_random.random_uint32("flip", *(np.array([value], "uint32") for value in (seed, view, number)))[0]
        >= 2**31
    )
    return crop[:, ::-1] if flip else crop


def test_imagenet_sorts_classes_and_files(tree):
    train, test = imagenet(tree, **SIZES)
    assert train.classes == test.classes == ("n01", "n02", "n03")
    np.testing.assert_array_equal(train.labels, np.repeat([0, 1, 2], 8))
    np.testing.assert_array_equal(train.index, np.arange(24))
    assert [pathlib.Path(name).name for name in train.get_names([0, 9, 23])] == [
        "n01_0.JPEG",
        "n02_1.JPEG",
        "n03_7.JPEG",
    ]
    assert (len(train), len(test), train.input_shape) == (24, 24, (16, 16, 3))
    assert train.summary == {"examples": 24, "classes": 3, "unreadable_images": 0, "unreadable": []}
    assert train.corrupt_files is test.corrupt_files
    assert imagenet(tree).train.resize == 256 and imagenet(tree, image_size=112).train.resize == 128


def test_imagenet_expands_home(tree, monkeypatch):
    monkeypatch.setenv("HOME", str(tree.parent))
    assert len(imagenet(f"~/{tree.name}").train) == 24


def test_image_folder_ignores_other_files(tmp_path):
    (tmp_path / "a").mkdir()
    for name in ("b.PNG", "c.jpg", "A.Jpeg"):
        picture(0, 20, 20).save(tmp_path / "a" / name)
    (tmp_path / "a" / "notes.txt").write_text("none")
    (tmp_path / "classes.txt").write_text("a")
    examples = image_folder(tmp_path)
    assert [pathlib.Path(name).name for name in examples.get_names(range(3))] == ["A.Jpeg", "b.PNG", "c.jpg"]


def test_image_folder_ignores_hidden_entries(tmp_path):
    plain, hidden = make(tmp_path / "plain", ["a", "b"], 2), make(tmp_path / "hidden", ["a", "b"], 2)
    for name in (".thumbs", ".ipynb_checkpoints", "__MACOSX", "@eaDir", "$RECYCLE.BIN", "lost+found"):
        (hidden / "train" / name).mkdir()
        picture(1, 24, 24).save(hidden / "train" / name / "1.jpg")
    for name in (".DS_Store", "._a_0.JPEG", ".hidden.png", "Thumbs.db"):
        (hidden / "train" / "a" / name).write_bytes(b"\0")
    train, same = imagenet(hidden, **SIZES).train, imagenet(plain, **SIZES).train
    assert train.classes == ("a", "b") and not train.corrupt_files.names
    np.testing.assert_array_equal(train.fingerprints, same.fingerprints)


def test_image_folder_leaves_out_irregular_files(tmp_path, caplog):
    """Reading a named pipe would wait forever."""
    folder = make(tmp_path, ["a", "b"], 3) / "train" / "a"
    os.mkfifo(folder / "pipe.jpg")
    (folder / "device.png").symlink_to("/dev/zero")
    (folder / "dangling.jpeg").symlink_to("nowhere")
    (folder / "folder.jpg").mkdir()
    (folder / "linked.jpg").symlink_to(folder / "a_0.JPEG")
    with socket.socket(socket.AF_UNIX) as bound:
        (tmp_path / "s").mkdir()
        bound.bind(str(tmp_path / "s" / "x"))
        os.rename(tmp_path / "s" / "x", folder / "socket.JPG")
        with caplog.at_level(logging.WARNING):
            train = imagenet(tmp_path, **SIZES).train
    left_out = [pathlib.Path(name).name for name in train.corrupt_files.names]
    assert left_out == ["dangling.jpeg", "device.png", "folder.jpg", "pipe.jpg", "socket.JPG"]
    assert len(train) == 3 + 1 + 3 and len(train.fingerprints) == 7 and "pipe.jpg cannot be read" in caplog.text
    assert sum(len(labels) for _, labels, _ in numpy_batches(eval_batches(train, 4))) == 7
    with pytest.raises(TooManyCorruptImagesError, match="At most 4 images may be unreadable. Received: 5"):
        imagenet(tmp_path, **SIZES, max_corrupt_images=4)


def test_train_batches_permutes_and_crops_per_epoch(tree, three_epochs):
    train = imagenet(tree, **SIZES).train
    assert [len(images) for images, _, _ in three_epochs] == [10, 10, 4] * 3
    for epoch in range(3):
        index = np.concatenate([index for _, _, index in three_epochs[3 * epoch : 3 * epoch + 3]])
        np.testing.assert_array_equal(index, stateless_random.epoch_permutation(5, epoch, train.index))
    for images, labels, index in three_epochs:
        assert images.dtype == np.float32 and images.shape[1:] == (16, 16, 3)
        assert labels.dtype == index.dtype == np.int32
        np.testing.assert_array_equal(labels, train.labels[index])
    first, second = by_number(three_epochs[:3]), by_number(three_epochs[3:6])
    assert all((first[number] != second[number]).any() for number in first)
    other = numpy_batches(train_batches(train, seed=6, batch_size=10), 3)
    assert all((first[number] != image).any() for number, image in by_number(other).items())


def test_train_batches_repeats_views_in_new_order(tree, three_epochs):
    train = imagenet(tree, **SIZES).train
    repeated = numpy_batches(train_batches(train, seed=5, batch_size=10, num_views=2, one_hot=True), 9)
    assert [images.tobytes() for images, _, _ in repeated[:6]] == [
        images.tobytes() for images, _, _ in three_epochs[:6]
    ]
    first, third = by_number(repeated[:3]), by_number(repeated[6:])
    assert all((first[number] == third[number]).all() for number in first)
    assert (repeated[6][2] != repeated[0][2]).any()
    for _, labels, index in repeated:
        assert labels.dtype == np.float32
        np.testing.assert_array_equal(labels, np.eye(3)[train.labels[index]])


@pytest.mark.parametrize("start", [(0, 2), (2, 0)])
def test_train_batches_resumes_at_initial_position(tree, three_epochs, start):
    resumed = train_batches(imagenet(tree, **SIZES).train, seed=5, batch_size=10, initial_position=start)
    skipped = 3 * start[0] + start[1]
    assert_same(numpy_batches(resumed, 3), three_epochs[skipped : skipped + 3])


def test_stratified_split_keeps_crops(tree, three_epochs):
    whole = by_number(three_epochs[:3])
    rest, held = imagenet(tree, **SIZES).train.stratified_split(6)
    assert not set(rest.index) & set(held.index) and len(rest) == 18
    np.testing.assert_array_equal(np.bincount(held.labels), [2, 2, 2])
    ((images, _, index),) = numpy_batches(train_batches(held, seed=5, batch_size=6), 1)
    np.testing.assert_array_equal(images, [whole[number] for number in index])


@pytest.mark.parametrize("sizes", [SIZES, {"image_size": 16, "resize": 16}, {"image_size": 33, "resize": 90}])
def test_center_crop_matches_torchvision(tree, sizes):
    test = imagenet(tree, **sizes).test
    dataset = eval_batches(test, 10, pipeline="numpy")  # TensorFlow reads files with any backend.
    for _ in range(2):
        images, labels, index = (np.concatenate(arrays) for arrays in zip(*numpy_batches(dataset)))
        np.testing.assert_array_equal(index, test.index)
        np.testing.assert_array_equal(labels, test.labels)
    expected = [slow_centre(path, sizes["resize"], sizes["image_size"]) for path in test.get_names(test.index)]
    difference = np.abs(levels(test, images) - expected)
    # Pillow rounds between its two passes.
    assert difference.max() < 1.01 and difference.mean() < 0.2


@pytest.mark.parametrize(
    "settings", [{}, {"scale": (0.5, 0.6)}, {"ratio": (0.2, 5.0)}, {"scale": (1.0, 1.0), "ratio": (1.0, 1.0)}]
)
def test_random_window_matches_reference(settings):
    random = np.random.default_rng(0)
    numbers = random.integers(0, 2**31, 200)
    heights, widths = random.integers(1, 300, (2, 200))
    found = windows(numbers, heights, widths, view=7, **settings)
    settings = {**DEFAULTS, **settings}
    expected = [slow_window(*map(int, i), seed=3, view=7, **settings) for i in zip(numbers, heights, widths)]
    np.testing.assert_array_equal(found, expected)
    top, left, height, width = found.T
    assert (np.minimum(top, left) >= 0).all() and (np.minimum(height, width) >= 1).all()
    assert (top + height <= heights).all() and (left + width <= widths).all()


def assert_uniform(values, low, high):
    """Kolmogorov-Smirnov test at 0.1 %. The seed is fixed, so the result is deterministic."""
    values, count = np.sort((values - low) / (high - low)), len(values)
    assert np.abs(values - (np.arange(count) + 0.5) / count).max() < 1.95 / math.sqrt(count)


def test_random_window_is_uniform():
    # Areas that always fit: else the large and narrow ones are drawn again, and are rarer.
    top, left, height, width = windows(np.arange(3000), 2000, 3000, scale=(0.08, 0.45)).T
    assert_uniform(height * width / 6e6, 0.08, 0.45)
    assert_uniform(np.log(width / height), math.log(3 / 4), math.log(4 / 3))
    assert_uniform((top + 0.5) / (2001 - height), 0, 1)
    assert_uniform((left + 0.5) / (3001 - width), 0, 1)
    # The four are drawn apart from each other.
    drawn = np.array([height * width, width / height, top / (2001 - height), left / (3001 - width)])
    assert np.abs(np.corrcoef(drawn) - np.eye(4)).max() < 0.08
    _, _, height, width = windows(np.arange(1000), 1000, 1000).T
    assert 0.079 < (height * width / 1e6).min() < 0.09 and 0.9 < (height * width / 1e6).max() <= 1
    assert 0.745 < (width / height).min() and (width / height).max() < 1.34


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(10, 200, (0, 93, 10, 13)), (200, 10, (93, 0, 13, 10)), (1, 1, (0, 0, 1, 1))],
)
def test_random_window_falls_back_to_center(height, width, expected):
    found = windows(np.arange(20), height, width, scale=(1.0, 1.0), ratio=(3 / 4, 4 / 3))
    if height == width:
        found = windows(np.arange(20), height, width)
    np.testing.assert_array_equal(found, [expected] * 20)


@pytest.mark.parametrize("settings", [{}, {"scale": (0.3, 0.5), "ratio": (0.5, 2.0)}])
def test_random_crop_matches_slice_of_whole_image(tmp_path, settings):
    (tmp_path / "a").mkdir()
    for k in range(24):
        # No chroma is left out: else the decoder of a part guesses that of its edges otherwise.
        picture(k, 150 - 3 * k, 70 + 4 * k).save(tmp_path / "a" / f"{k:02}.jpg", quality=90, subsampling=k % 3 // 2)
    examples = image_folder(tmp_path, **SIZES)
    paths = examples.get_names(examples.index)
    for images, _, index in numpy_batches(train_batches(examples, seed=8, batch_size=24, **settings), 2)[1:]:
        expected = [slow_crop(paths[number], number, 16, seed=8, view=1, **settings) for number in index]
        difference = np.abs(levels(examples, images) - expected).max(axis=(1, 2, 3))
        assert difference[index % 3 != 2].max() < 1.01 and difference.max() < 4


def test_random_crop_flips_half_of_images(tmp_path):
    (tmp_path / "a").mkdir()
    for k in range(100):
        Image.fromarray(np.repeat([[0] * 4 + [255] * 4], 8, 0).astype("uint8")).save(tmp_path / "a" / f"{k}.png")
    examples = image_folder(tmp_path, image_size=8, resize=8)
    settings = {"seed": 1, "batch_size": 100, "scale": (1.0, 1.0), "ratio": (1.0, 1.0)}
    flips = []
    for images, _, index in numpy_batches(train_batches(examples, **settings), 2):
        flipped = images[:, 0, 0, 0] > 0
        flips.append(flipped[np.argsort(index)])
        np.testing.assert_array_equal(images[:, 0, -1, 0] > 0, ~flipped)
    assert all(35 < flipped.sum() < 65 for flipped in flips) and (flips[0] != flips[1]).any()
    ((images, _, _),) = numpy_batches(train_batches(examples, flip=False, **settings), 1)
    assert (images[:, 0, 0, 0] < 0).all()


def test_decoding_returns_three_channels(tmp_path):
    (tmp_path / "a").mkdir()
    kinds = [("L", "JPEG"), ("CMYK", "JPEG"), ("RGB", "PNG"), ("L", "PNG"), ("RGBA", "PNG"), ("P", "PNG")]
    for mode, kind in kinds:
        # ImageNet has a PNG of this name too.
        picture(1, 40, 53).convert(mode).save(tmp_path / "a" / f"{mode}_{kind}.JPEG", kind)
    examples = image_folder(tmp_path, **SIZES)
    paths = examples.get_names(examples.index)
    ((images, _, _),) = numpy_batches(eval_batches(examples, 6))
    assert np.abs(levels(examples, images) - [slow_centre(path, 20, 16) for path in paths]).max() < 1.01
    ((images, _, index),) = numpy_batches(train_batches(examples, seed=2, batch_size=6), 1)
    expected = [slow_crop(paths[number], number, 16, seed=2, view=0) for number in index]
    assert np.abs(levels(examples, images) - expected).max() < 1.01
    assert examples.corrupt_files.names == []


def damage(folder):
    """Damage four files of train and return their numbers."""
    paths = sorted((folder / "train" / "n02").iterdir())
    paths[0].write_bytes(paths[0].read_bytes()[:300])
    paths[2].write_bytes(b"")
    paths[5].write_text("Not found: 404\n" * 50)
    paths[7].unlink()
    return {8: paths[0], 10: paths[2], 13: paths[5], 15: paths[7]}


def test_corrupt_files_are_left_out_and_logged_once(tmp_path, caplog):
    train = imagenet(make(tmp_path), **SIZES).train
    settings = {"seed": 2, "batch_size": 10}
    whole = numpy_batches(train_batches(train, **settings), 6)  # Two epochs.
    plain = numpy_batches(eval_batches(train, 10))
    damaged = damage(tmp_path)
    with caplog.at_level(logging.WARNING):
        for before, after in (
            (whole, numpy_batches(train_batches(train, **settings), 6)),
            (plain, numpy_batches(eval_batches(train, 10))),
        ):
            kept = [np.isin(index, list(damaged), invert=True) for _, _, index in before]
            assert_same(after, [tuple(array[rows] for array in batch) for batch, rows in zip(before, kept)])
    assert sorted(train.corrupt_files.names) == sorted(map(str, damaged.values()))
    assert train.summary["unreadable_images"] == 4 and train.summary["unreadable"] == train.corrupt_files.names
    warned = [record.getMessage() for record in caplog.records if record.name == "keras_wsl.data.image_files"]
    assert sorted(warned) == [f"{path} cannot be read as an image and is left out." for path in damaged.values()]
    train.corrupt_files.check_limit()


def test_random_crop_reads_truncated_file_above_the_cut(tmp_path):
    make(tmp_path)
    path = tmp_path / "train" / "n01" / "n01_0.JPEG"
    path.write_bytes(path.read_bytes()[:-40])
    train = imagenet(tmp_path, **SIZES).train
    shown = [len(images) for images, _, _ in numpy_batches(train_batches(train, seed=0, batch_size=24), 6)]
    assert set(shown) == {23, 24}
    assert sum(len(images) for images, _, _ in numpy_batches(eval_batches(train, 24))) == 23
    assert train.corrupt_files.names == [str(path)]


def test_corrupt_files_beyond_limit_raise(tmp_path):
    train, test = imagenet(make(tmp_path), max_corrupt_images=3, **SIZES)
    damaged = damage(tmp_path)
    message = "At most 3 images .* Received: 4, the first is '.*n02_.*'. Download these files again"
    for dataset in (train_batches(train, seed=0, batch_size=24), eval_batches(train, 24)):
        with pytest.raises(tf.errors.OpError, match=message):
            numpy_batches(dataset, 3)
    with pytest.raises(TooManyCorruptImagesError, match=message):
        test.corrupt_files.check_limit()
    assert len(train.corrupt_files.names) == len(damaged)
    with pytest.raises(tf.errors.OpError, match="At most 0 images may be unreadable. Received: 3"):
        numpy_batches(eval_batches(imagenet(tmp_path, max_corrupt_images=0, **SIZES).train, 8))


def test_batch_without_readable_image_raises(tmp_path):
    (tmp_path / "a").mkdir()
    for k in range(3):
        (tmp_path / "a" / f"{k}.jpg").write_bytes(b"")
    with pytest.raises(tf.errors.OpError, match="None of the 3 images of a batch can be read"):
        numpy_batches(eval_batches(image_folder(tmp_path), 3))


def test_image_folder_rejects_other_directories(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing' must be a directory with a subdirectory per class"):
        image_folder(tmp_path / "missing")
    (tmp_path / "only_files").mkdir()
    (tmp_path / "only_files" / "a.jpg").touch()
    with pytest.raises(ValueError, match="only_files' must have a subdirectory"):
        image_folder(tmp_path / "only_files")
    with pytest.raises(FileNotFoundError, match=r"imagenet2012 must have .*image-net\.org.* train/ and val/"):
        imagenet(tmp_path)
    make(tmp_path / "tree", count=1)
    (tmp_path / "tree" / "val" / "n04").mkdir()
    with pytest.raises(ValueError, match=r"val' must have the same classes .* Missing: \[\]. Unknown: \['n04'\]"):
        imagenet(tmp_path / "tree")
    with pytest.raises(ValueError, match="n04' must have files that end in .jpeg, .jpg, .png"):
        image_folder(tmp_path / "tree" / "val")
    (tmp_path / "tree" / "val" / "n04").rename(tmp_path / "tree" / "train" / "n04")
    picture(0, 20, 20).save(tmp_path / "tree" / "train" / "n04" / "a.jpg")
    with pytest.raises(ValueError, match=r"val' must have the same classes .* Missing: \['n04'\]. Unknown: \[\]"):
        imagenet(tmp_path / "tree")
    (tmp_path / "tree" / "val").rename(tmp_path / "tree" / "validation")
    with pytest.raises(FileNotFoundError, match="val' must be a directory"):
        imagenet(tmp_path / "tree")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 32, "resize": 31}, "`resize` must be .* Received: resize=31, image_size=32"),
        ({"image_size": 0}, "`image_size` must be .* Received: image_size=0"),
        ({"resize": 256.5}, "`resize` must be .* Received: resize=256.5"),
    ],
)
def test_imagenet_rejects_invalid_sizes(tree, settings, message):
    with pytest.raises(ValueError, match=message):
        imagenet(tree, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"padding": 4}, r"ImageFolder has the arguments \['flip', 'ratio', 'scale'\]. Received: \['padding'\]"),
        ({"scale": (0.5, 1.1)}, r"0 < low <= high <= 1. Received: scale=\(0.5, 1.1\)"),
        ({"scale": (0.5, 0.4)}, "`scale` must be"),
        ({"ratio": (0, 1)}, r"0 < low <= high\. Received: ratio=\(0, 1\)"),
        ({"initial_position": (0, 3)}, "a step from 0 to 2, .* step 3"),
        ({"batch_size": 0}, "`batch_size` must be"),
    ],
)
def test_train_batches_validates_arguments_at_call(tree, settings, message):
    with pytest.raises(ValueError, match=message):
        train_batches(imagenet(tree, **SIZES).train, **{"seed": 0, "batch_size": 10, **settings})


@pytest.mark.skipif(not (SHARED / "imagenet_sample").is_dir(), reason="../shared/imagenet_sample is not there")
def test_imagenet_sample():
    train, test = imagenet(SHARED / "imagenet_sample")
    assert (len(train), len(test), len(train.classes)) == (1000, 500, 10)
    np.testing.assert_array_equal(np.bincount(train.labels), [100] * 10)
    np.testing.assert_array_equal(np.bincount(test.labels), [50] * 10)
    assert train.classes[0] == "n01440764" and train.classes == tuple(sorted(train.classes))
    names = train.get_names(train.index)
    grey = [number for number, name in enumerate(names) if Image.open(name).mode == "L"]
    assert grey
    some = train.select(np.array(grey + [0, 500, 999]))
    ((images, labels, _),) = numpy_batches(eval_batches(some, 64))
    assert images.shape == (len(grey) + 3, 224, 224, 3)
    np.testing.assert_array_equal(labels, some.labels)
    expected = [slow_centre(name, 256, 224) for name in some.get_names(some.index)]
    assert np.abs(levels(train, images) - expected).max() < 1.01
    ((images, _, _),) = numpy_batches(train_batches(some, seed=0, batch_size=64), 1)
    assert images.shape == (len(grey) + 3, 224, 224, 3) and np.isfinite(images).all()
    assert train.corrupt_files.names == []


@pytest.mark.skipif(not (SHARED / "imagenet_sample_natural").is_dir(), reason="imagenet_sample_natural is not there")
def test_decoding_of_natural_image_sizes():
    examples = image_folder(SHARED / "imagenet_sample_natural" / "val")
    assert (len(examples), len(examples.classes)) == (98, 98)
    paths = examples.get_names(examples.index)
    for images, _, index in numpy_batches(eval_batches(examples, 33)):
        for image, number in zip(images, index):
            assert np.abs(levels(examples, image) - slow_centre(paths[number], 256, 224)).max() < 1.01
    for images, _, index in numpy_batches(train_batches(examples, seed=0, batch_size=33), 3):
        for image, number in zip(images, index):
            difference = np.abs(levels(examples, image) - slow_crop(paths[number], number, 224, seed=0, view=0))
            # At its edges, a part's chroma is another.
            assert np.quantile(difference, 0.9) < 1.01 and difference.mean() < 0.5
    assert examples.corrupt_files.names == []
