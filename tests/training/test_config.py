"""Settings as flags and as lines of `run.flags`."""

import dataclasses

import numpy as np
import pytest
from absl import flags

from keras_wsl.training import config, recipes, validation
from tests.training.conftest import SMALL


def test_from_flags_inverts_to_lines():
    values = flags.FlagValues()
    config.define_flags(values)
    settings = dataclasses.replace(SMALL, alpha=3.5, nesterov=True, deterministic=False, decay_epochs=(3, 5))
    values(["script", *config.to_lines(settings)])
    assert config.from_flags(values) == settings
    values(["script", "--decay_epochs=3,x"])
    with pytest.raises(ValueError, match="`--decay_epochs` must be integers. Received: --decay_epochs=3,x"):
        config.from_flags(values)


def test_config_classes_share_their_first_settings():
    shared = {field.name: field for field in dataclasses.fields(config.Config)}
    for kind in (config.ImageNetConfig, config.MultiNLIConfig):
        own = {field.name: field for field in dataclasses.fields(kind)}
        assert list(own)[: len(shared)] == list(shared)
        assert all(own[name].type == field.type for name, field in shared.items())
        assert set(recipes.RECIPES_BY_DATASET[kind]) <= {*recipes.METHODS, "pkd"}
        values = flags.FlagValues()
        config.define_flags(values, kind)
        assert set(own) < set(values) and {"output_dir", "resume"} <= set(values)
    assert set(recipes.RECIPES_BY_DATASET[config.ImageNetConfig]) == set(recipes.METHODS)


def test_read_refuses_unknown_flags(tmp_path):
    (tmp_path / "other.flags").write_text("--unknown=3\n")
    with pytest.raises(ValueError, match="must contain only flags of a Config. Received: Unknown"):
        config.read(tmp_path / "other.flags")


def test_without_teacher_removes_all_settings_of_a_teacher():
    settings = config.Config(teacher="resnet8", teacher_weights="x", temperature=2.0, alpha=1.0, weighting="wsl")
    alone = vars(settings) | config.WITHOUT_TEACHER
    validation.validate_config(config.Config(**alone))
    assert np.all([alone[name] == value for name, value in vars(config.Config(method="none")).items()])
