"""Optimizer and learning rate."""

import dataclasses

import pytest

from keras_wsl.training import build, config


def test_build_learning_rate_divides_by_ten_after_decay_epochs():
    rate = build.build_learning_rate(config.Config(), 782, 240)
    for step, expected in (
        (0, 0.05),
        (150 * 782 - 1, 0.05),
        (150 * 782, 0.005),
        (180 * 782, 5e-4),
        (210 * 782 - 1, 5e-4),
        (210 * 782, 5e-5),
    ):
        assert float(rate(step)) == pytest.approx(expected)


def test_build_learning_rate_linear_warmup_and_decay():
    settings = config.Config(schedule="linear", learning_rate=0.4, lr_warmup_fraction=0.25)
    rate = build.build_learning_rate(settings, 4, 3)  # 12 steps, of which 3 rise.
    for step, expected in ((0, 0.4 / 3), (2, 0.4), (3, 0.4), (6, 0.4 * 6 / 9), (11, 0.4 / 9), (12, 0.0)):
        assert float(rate(step)) == pytest.approx(expected)
    flat = build.build_learning_rate(dataclasses.replace(settings, lr_warmup_fraction=0.0), 4, 3)
    assert float(flat(0)) == pytest.approx(0.4)
