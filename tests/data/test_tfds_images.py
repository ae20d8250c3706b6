"""ImageNet in TFDS: record files that are read one by one and not kept in memory."""

import dataclasses
import itertools
import pathlib
import shutil

import numpy as np
import pytest

from keras_wsl.data import TfdsImageDataset, eval_batches, image_folder, imagenet, train_batches

tf = pytest.importorskip("tensorflow")
tfds = pytest.importorskip("tensorflow_datasets")
Image = pytest.importorskip("PIL.Image")

CLASSES = ("n01", "n02", "n03")
COUNTS = {"train": 150, "validation": 40}  # TFDS reads 16 of a file before it turns to the next.
SIZES = {"image_size": 12, "resize": 14}


def write(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (4, 4, 3), "uint8"))
    coarse.resize((14 + seed % 9, 16 + seed % 7), Image.Resampling.BICUBIC).save(path, "JPEG", quality=90)


def build(data_dir, images, *, shards=3, **settings):
    """Write `imagenet2012` to a TFDS directory: `images/SPLIT/CLASS/*.JPEG`."""
    with tfds.core.registered.skip_registration():

        class Imagenet2012(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("5.1.0")
            url_infos = {}  # noqa: RUF012  Otherwise TFDS looks for checksums of downloads next to the code.

            def _info(self):
                features = {
                    "image": tfds.features.Image(encoding_format="jpeg"),
                    "label": tfds.features.ClassLabel(names=CLASSES),
                    "file_name": tfds.features.Text(),
                }
                return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

            def _split_generators(self, _):
                return {split: self._generate_examples(images / split) for split in COUNTS}

            def _generate_examples(self, folder):
                for path in sorted(folder.glob("*/*.JPEG")):
                    yield path.name, {"image": path, "label": path.parent.name, "file_name": path.name}

    config = tfds.download.DownloadConfig(num_shards=shards)
    Imagenet2012(data_dir=data_dir, **settings).download_and_prepare(download_config=config)
    return data_dir


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for split, count in COUNTS.items():
        for number in range(count):
            name = CLASSES[number % 3]
            write(folder / split / name / f"{name}_{number}.JPEG", number)
    return folder


@pytest.fixture(scope="module")
def data_dir(images, tmp_path_factory):
    return build(tmp_path_factory.mktemp("tfds"), images)


@pytest.fixture
def train(data_dir):
    return dataclasses.replace(imagenet(data_dir, **SIZES).train, buffer=20)


def numpy_batches(dataset, count=None):
    """Return batches as (images, labels, index) of NumPy arrays."""
    batches = itertools.islice(iter(dataset), count)
    return [tuple(np.asarray(array) for array in (x, y["labels"], y["index"])) for x, y in batches]


def indices(batches):
    return np.concatenate([index for _, _, index in batches])


def assert_same(ones, others):
    assert len(ones) == len(others)
    for one, other in zip(ones, others):
        for array, same in zip(one, other):
            np.testing.assert_array_equal(array, same)


def names_in_files(examples):
    """Return the file names in the order of the records."""
    skip = {"image": tfds.decode.SkipDecoding()}
    records = [tf.data.TFRecordDataset(path).as_numpy_iterator() for path, _ in examples.shards]
    parsed = [
        examples.builder.info.features.deserialize_example_np(record, decoders=skip)
        for record in itertools.chain(*records)
    ]
    return [example["file_name"].decode() for example in parsed]


def test_tfds_image_dataset_fields(data_dir):
    train, test = imagenet(data_dir, **SIZES)
    assert isinstance(train, TfdsImageDataset) and train.classes == test.classes == CLASSES
    assert (len(train), len(test), train.input_shape) == (150, 40, (12, 12, 3))
    assert train.steps_per_epoch(64) == 3 and len(train.shards) == 3
    assert [number > 0 for _, number in train.shards] == [False, True, True]
    assert train.summary == {"examples": 150, "classes": 3, "unreadable_images": 0, "unreadable": []}
    assert train.get_names([7]) == ["train example 7 of imagenet2012/5.1.0"]


def test_index_and_labels_follow_file_order(train, images):
    names = names_in_files(train)
    assert len(set(names)) == 150 and names != sorted(names)
    expected = [CLASSES.index(name.partition("_")[0]) for name in names]
    np.testing.assert_array_equal(train.index, np.arange(150))
    np.testing.assert_array_equal(train.labels, expected)
    pixels, labels, index = (np.concatenate(column) for column in zip(*numpy_batches(eval_batches(train, 64))))
    np.testing.assert_array_equal(index, np.arange(150))
    np.testing.assert_array_equal(labels, expected)
    # The same files in folders: the same pixels.
    folder = image_folder(images / "train", **SIZES)
    ((others, _, _),) = numpy_batches(eval_batches(folder, 150))
    places = {pathlib.Path(name).name: row for row, name in enumerate(folder.get_names(folder.index))}
    np.testing.assert_array_equal(pixels, others[[places[name] for name in names]])

    # And the same crops, if they have the same numbers.
    rows = np.array([places[name] for name in names])
    renumbered = dataclasses.replace(folder.select(rows), index=np.arange(150))
    crops, others = (
        {
            n: x
            for images, _, index in numpy_batches(train_batches(part, seed=1, batch_size=50), 3)
            for n, x in zip(index, images)
        }
        for part in (train, renumbered)
    )
    assert all((crops[number] == others[number]).all() for number in range(150))


def test_train_batches_ignores_global_seed(train):
    batches = numpy_batches(train_batches(train, seed=3, batch_size=64), 9)
    assert [len(index) for _, _, index in batches] == [64, 64, 22] * 3
    epochs = [indices(batches[3 * epoch : 3 * epoch + 3]) for epoch in range(3)]
    labels = train.labels
    for images, found, index in batches:
        assert images.shape[1:] == (12, 12, 3) and images.dtype == np.float32
        np.testing.assert_array_equal(found, labels[index])
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(150))
        # Of all files at once, and of some neighbours in a random order.
        assert set(np.searchsorted([number for _, number in train.shards], epoch[:20], "right")) == {1, 2, 3}
    assert (epochs[0] != epochs[1]).any() and (epochs[1] != epochs[2]).any()

    tf.random.set_seed(123)
    dataset = train_batches(train, seed=3, batch_size=64)
    for _ in range(2):
        assert_same(numpy_batches(dataset, 4), batches[:4])
    # From a later start as if from the beginning.
    assert_same(numpy_batches(train_batches(train, seed=3, batch_size=64, initial_position=(1, 2)), 2), batches[5:7])
    other = indices(numpy_batches(train_batches(train, seed=4, batch_size=64), 1))
    assert (other != epochs[0][:64]).any()


def test_stratified_split_is_disjoint_and_complete(train):
    rest, held = train.stratified_split(60)
    assert (len(rest), len(held)) == (90, 60)
    np.testing.assert_array_equal(np.concatenate([rest.index, held.index]), np.arange(150))
    np.testing.assert_array_equal(np.concatenate([rest.labels, held.labels]), train.labels)
    assert len(rest.shards) == len(held.shards) == 2  # The second file is in both.
    for part in (rest, held, train.stratified_subset(5.0), rest.stratified_split(30)[1].stratified_subset(7)):
        found = indices(numpy_batches(eval_batches(part, 64)))
        np.testing.assert_array_equal(found, part.index)
        assert len(part.labels) == len(found)
    np.testing.assert_array_equal(rest.stratified_split(30)[1].stratified_subset(7).index, np.arange(60, 67))
    (batch,) = numpy_batches(train_batches(held, seed=0, batch_size=60), 1)
    np.testing.assert_array_equal(np.sort(batch[2]), held.index)
    for count in (0, 151, 1.5):
        with pytest.raises(ValueError, match=f"an integer from 1 to 150. Received: {count} of 150"):
            train.stratified_subset(count)
    with pytest.raises(ValueError, match="from 1 to 149. Received: 150 of 150"):
        train.stratified_split(150)


def test_corrupt_images_are_left_out(tmp_path, images):
    shutil.copytree(images / "validation", tmp_path / "images" / "train")
    shutil.copytree(images / "validation", tmp_path / "images" / "validation")
    (tmp_path / "images" / "train" / "n02" / "n02_4.JPEG").write_bytes(b"no image")
    train, _ = imagenet(build(tmp_path / "tfds", tmp_path / "images", shards=2), **SIZES)
    place = names_in_files(train).index("n02_4.JPEG")
    found = indices(numpy_batches(eval_batches(train, 16)))
    np.testing.assert_array_equal(found, np.delete(np.arange(40), place))
    assert sum(len(index) for _, _, index in numpy_batches(train_batches(train, seed=0, batch_size=16), 6)) == 78
    assert train.corrupt_files.names == [f"train example {place} of imagenet2012/5.1.0"]


def test_tfds_image_dataset_rejects_other_data_sets(tmp_path, train, data_dir):
    builder = train.builder
    with pytest.raises(ValueError, match=r"must be one of \['train', 'valid.*imagenet2012/5.1.0. Received: 'test'"):
        TfdsImageDataset(builder, "test")
    for low, high in ((-1, 5), (5, 5), (0, 151)):
        with pytest.raises(ValueError, match=rf"must be in \[0, 150\]. Received: low={low}, high={high}"):
            TfdsImageDataset(builder, "train", low=low, high=high)
    with pytest.raises(ValueError, match="Received: resize=10, image_size=224"):
        TfdsImageDataset(builder, "train", resize=10)
    with pytest.raises(ValueError, match=r"TfdsImageDataset has the arguments .* Received: \['padding'\]"):
        train_batches(train, seed=0, batch_size=64, padding=4)

    class Other:
        class info:
            full_name, splits, features = "mnist/3.0.1", {"train": None}, {"image": None, "digit": None}

    with pytest.raises(ValueError, match=r"mnist/3.0.1 must have the features .* Received: \['image', 'digit'\]"):
        TfdsImageDataset(Other, "train")
    Other.info.features, Other.info.file_format = {"image": 0, "label": 0}, tfds.core.FileFormat.ARRAY_RECORD
    with pytest.raises(ValueError, match="mnist/3.0.1 must be stored in tfrecord files. Received: array_record"):
        TfdsImageDataset(Other, "train")


def test_imagenet_names_remedy_for_missing_data(tmp_path, monkeypatch):
    message = r"imagenet2012 must have a directory such as .* Build it with TFDS from the archives of "
    with pytest.raises(
        FileNotFoundError, match=message + r"image-net\.org, or set data_dir to a directory with train/"
    ):
        imagenet(tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "elsewhere"))
    with pytest.raises(FileNotFoundError, match="elsewhere"):
        imagenet()
