"""Published weights of methods."""

import functools
import math

import pytest

from keras_wsl import models
from keras_wsl.features import FeatureExtractor
from keras_wsl.training import config, recipes
from keras_wsl.training.build_losses import build_main_losses
from tests.common import bright_splits
from tests.training.conftest import tiny_config

pytestmark = pytest.mark.eager


# Of the comparison: RepDistiller's scripts, weight of the labels and of the method.
@pytest.mark.parametrize(
    "method, labels, weight",
    [
        ("kd", 0.1, 0.9),
        ("fitnet", 1, 100),
        ("at", 1, 1000),
        ("sp", 1, 3000),
        ("cc", 1, 0.02),
        ("vid", 1, 1),
        ("rkd", 1, 1),
        ("pkt", 1, 30000),
        ("ft", 1, 200),
        ("nst", 1, 50),
        ("crd", 1, 0.8),
        ("wsl", 1, 2.25),
        ("lskd", 0.1, 9),
        ("tf_kd", 0.05, 0.95),
    ],
)
def test_recipe_has_the_published_weights(method, labels, weight, tiny_teacher):
    recipe = recipes.METHODS[method]
    negatives = {"loss_kwargs": ("negatives=8",)} if method == "crd" else {}
    (loss,) = build_main_losses(tiny_config(tiny_teacher, method=method, **negatives), bright_splits(96).train)
    assert (recipe.student_loss_weight, loss.weight) == (labels, weight)


@pytest.mark.parametrize(
    "method, setting, expected",
    [
        ("dkd", "beta", [6, 6, 2, 2, 8]),
        ("reviewkd", "weight", [5, 5, 0.6, 1, 5]),
        ("catkd", "weight", [12, 1.5, 0.7, 1.8, 15]),
    ],
)
def test_recipe_has_the_published_values_of_pairs(method, setting, expected):
    pairs = [
        "wrn_40_2 wrn_16_2",
        "wrn_40_2 wrn_40_1",
        "resnet56 resnet20",
        "resnet110 resnet32",
        "resnet32x4 resnet8x4",
    ]
    for pair, value in zip(pairs, expected):
        own, other = pair.split()
        settings = config.Config(teacher=own, student=other, method=method)
        assert getattr(build_main_losses(settings, None)[0], setting) == value


_build = functools.cache(models.build)


# The sizes of the original modules: methods.md 3.2, 3.6 and 3.13.
@pytest.mark.parametrize(
    "method, pair, parameters",
    [
        ("fitnet", "wrn_40_2 wrn_16_2", 4288),
        ("fitnet", "wrn_40_2 wrn_40_1", 2240),
        ("fitnet", "resnet56 resnet20", 1120),
        ("fitnet", "resnet32x4 resnet8x4", 16768),
        ("vid", "wrn_40_2 wrn_40_1", 53984),
        ("vid", "resnet32x4 resnet8x4", 258496),
        ("crd", "resnet56 resnet20", 16640),
        ("crd", "wrn_40_2 wrn_40_1", 24832),
        ("crd", "wrn_40_2 wrn_16_2", 33024),
        ("crd", "resnet32x4 resnet8x4", 65792),
    ],
)
def test_recipe_adapters_have_the_size_of_the_original_code(method, pair, parameters):
    teacher, student = map(_build, pair.split())
    negatives = {"loss_kwargs": ("negatives=8",)} if method == "crd" else {}
    settings = config.Config(method=method, **negatives)
    (loss,) = build_main_losses(settings, bright_splits(96).train)
    shapes = (
        FeatureExtractor(model, names).shapes()
        for model, names in ((student, loss.student_layers), (teacher, loss.teacher_layers))
    )
    loss.build((None,), *shapes)
    assert sum(math.prod(variable.shape) for variable in loss.trainable_variables) == parameters
