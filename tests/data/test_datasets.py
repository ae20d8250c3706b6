"""CIFAR-100 and the digits."""

import pathlib

import numpy as np
import pytest

from keras_wsl.data import cifar100, digits, eval_batches, train_batches

FOLDER = pathlib.Path(__file__).resolve().parents[3] / "shared" / "tensorflow_datasets"


def test_cifar100_names_missing_directory_and_remedy(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"cifar100 must have .*download=True.*data_dir.*\.npz") as error:
        cifar100(tmp_path)
    assert str(tmp_path) in str(error.value)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "elsewhere"))
    with pytest.raises(FileNotFoundError, match="elsewhere"):
        cifar100()
    with pytest.raises(FileNotFoundError, match=r"cifar100\.npz does not exist"):
        cifar100(tmp_path / "cifar100.npz")
    # A half-made folder is not the data set.
    (tmp_path / "cifar100" / "3.0.2.incomplete").mkdir(parents=True)
    (tmp_path / "cifar100" / "3.0.2.incomplete" / "dataset_info.json").touch()
    with pytest.raises(FileNotFoundError, match="cifar100 must have"):
        cifar100(tmp_path)


@pytest.mark.skipif(not (FOLDER / "cifar100").is_dir(), reason="CIFAR-100 is not in ../shared/tensorflow_datasets")
def test_cifar100():
    tfds = pytest.importorskip("tensorflow_datasets")
    train, test = cifar100(FOLDER)
    assert train.images.shape == (50_000, 32, 32, 3) and test.images.shape == (10_000, 32, 32, 3)
    np.testing.assert_array_equal(np.bincount(train.labels), [500] * 100)
    np.testing.assert_array_equal(np.bincount(test.labels), [100] * 100)
    assert train.classes == test.classes and train.classes[:2] == ("apple", "aquarium_fish")
    np.testing.assert_array_equal(train.index, np.arange(50_000))
    mean = np.mean([chunk.mean(axis=(0, 1, 2)) for chunk in np.split(train.images, 50)], axis=0) / 255
    np.testing.assert_allclose(mean, train.mean, atol=3e-4)

    # The numbers are those of the ids, in any order of the file.
    (folder,) = (FOLDER / "cifar100").iterdir()
    read = tfds.as_numpy(tfds.builder_from_directory(folder).as_dataset(split="train[:20]"))
    ids = []
    for example in read:
        ids.append(int(example["id"].decode().removeprefix("train_")))
        np.testing.assert_array_equal(train.images[ids[-1]], example["image"])
        assert train.labels[ids[-1]] == example["label"]
    assert len(ids) == 20 and ids != sorted(ids)

    rest, held = train.stratified_split(5000)
    np.testing.assert_array_equal(np.bincount(rest.labels), [450] * 100)
    np.testing.assert_array_equal(np.bincount(held.labels), [50] * 100)

    settings = {"seed": 1, "batch_size": 64, "initial_position": (239, 780)}
    ours = train_batches(train, pipeline="numpy", **settings)
    theirs = iter(train_batches(train, pipeline="tensorflow", **settings))
    for size in (64, 16, 64):  # 782 steps, the last of 16 images.
        (images, targets), (same, same_targets) = next(ours), next(theirs)
        assert images.shape == (size, 32, 32, 3)
        assert images.tobytes() == same.numpy().tobytes()
        for name in ("labels", "index"):
            np.testing.assert_array_equal(targets[name], same_targets[name].numpy())


def test_digits():
    train, test = digits()
    assert (len(train), len(test)) == (1348, 449)
    assert train.images.shape[1:] == (8, 8, 1) and train.classes == tuple("0123456789")
    assert set(np.unique(train.images)) == {(255 * value + 8) // 16 for value in range(17)}
    assert train.images.max() == 255
    for part in (train, test):
        np.testing.assert_array_equal(part.index, np.arange(len(part)))
    whole = np.bincount(np.concatenate([train.labels, test.labels]))
    assert (np.abs(np.bincount(test.labels) - whole * 449 / 1797) <= 1).all()
    (images, _), *_ = eval_batches(train, 1348, pipeline="numpy")
    assert abs(images.mean()) < 1e-5 and abs(images.std() - 1) < 1e-5
    assert test.mean == train.mean and test.std == train.std


def test_digits_match_scikit_learn_with_reproducible_split():
    from sklearn.datasets import load_digits

    data = load_digits()
    train, test = digits(test_fraction=0.5, seed=2)

    def rows(images, labels):
        return sorted((*image.ravel().tolist(), int(label)) for image, label in zip(images, labels))

    images = np.concatenate([train.images, test.images]).astype(int)
    assert rows(np.rint(images * 16 / 255).astype(int), [*train.labels, *test.labels]) == rows(
        data.images.astype(int), data.target
    )
    again, other = digits(test_fraction=0.5, seed=2), digits(test_fraction=0.5, seed=3)
    np.testing.assert_array_equal(test.images, again.test.images)
    assert (test.images != other.test.images).any()


@pytest.mark.parametrize("fraction", [0, 1, 1.5, -0.1])
def test_digits_requires_examples_in_both_splits(fraction):
    with pytest.raises(ValueError, match="must leave examples in both splits"):
        digits(test_fraction=fraction)
