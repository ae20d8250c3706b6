"""What a run reads."""

import dataclasses

import numpy as np

from keras_wsl.training import inputs
from tests.training.conftest import SMALL, splits_of_90


def test_split_dataset_holds_out_validation_examples_before_the_subset():
    splits = splits_of_90()
    train, validation, test = inputs.split_dataset(splits, SMALL)
    assert (train, validation, test) == (splits.train, None, splits.test)
    settings = dataclasses.replace(SMALL, validation_examples=30, max_train_examples=45)
    train, validation, test = inputs.split_dataset(splits, settings)
    assert (len(train), len(validation), len(test)) == (45, 30, len(splits.test))
    assert not set(train.index) & set(validation.index)
    again = inputs.split_dataset(splits, settings)[0]
    np.testing.assert_array_equal(train.index, again.index)


def test_augmentation_kwargs_only_has_changes():
    assert inputs.augmentation_kwargs(SMALL) == {}
    settings = dataclasses.replace(SMALL, padding_mode="reflect")
    assert inputs.augmentation_kwargs(settings) == {"padding_mode": "reflect"}


def test_open_returns_none_without_checkpoints_and_soft_labels():
    assert inputs.open_checkpoints(SMALL) is None and inputs.open_soft_labels(SMALL) is None
