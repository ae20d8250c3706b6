"""The text of `--help`."""

import dataclasses

import pytest
from absl import flags

from keras_wsl.training import Config, ImageNetConfig, MultiNLIConfig, cli_help, config
from tests.common import TRAIN, run_script

GROUPED = {name for group in cli_help.GROUPS.values() for name in group.split()}


@pytest.mark.parametrize("config_class", [Config, ImageNetConfig, MultiNLIConfig])
def test_groups_have_all_settings(config_class):
    values = flags.FlagValues()
    config.define_flags(values, config_class)
    assert set(values) <= GROUPED and {field.name for field in dataclasses.fields(config_class)} <= GROUPED


@pytest.mark.parametrize(
    "script, method, expected",
    [
        ("cifar100.py", "wsl", ["(wsl: 4.0)", "(wsl: 2.25)", "(wsl: 1.0)"]),
        ("cifar100.py", "dkd", ["(dkd: 20)", "beta=8.0"]),
        ("imagenet.py", "wsl", ["(wsl: 2.0)", "(wsl: 2.5)"]),
        ("multinli.py", "kd", ["(kd: 5.0)", "(kd: 0.7)", "(kd: 0.3)"]),
        ("cifar100.py", "none", ["--student "]),
        ("cifar100.py", "wls", ["--student "]),
    ],
)
def test_help_shows_published_defaults(script, method, expected):
    result = run_script(script, f"--method={method}", "--help")
    assert result.returncode == 0 and not result.stderr
    assert all(text in result.stdout for text in expected), result.stdout
    titles = [line for line in result.stdout.splitlines() if line.removesuffix(":") in cli_help.GROUPS]
    assert titles == ["Network:", "Method:", "Training:", "Data:", "Output:", "Devices:"]


SCRIPTS = [path.name for path in sorted(TRAIN.glob("*.py")) if "__main__" in path.read_text()]


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_of_every_script(script):
    result = run_script(script, "--help")
    assert result.returncode == 0 and "usage: python" in result.stdout and "  --" in result.stdout, result.stderr
    assert max(map(len, result.stdout.splitlines())) <= 120
