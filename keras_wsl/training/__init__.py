"""One training run: its settings, the recipes of all methods, and `run`, which trains, evaluates and writes results.

A script for other data than the repository's is a function from a `Config` to `run`, and `cli.main`, which gives it all
flags::

    def train(config):
        return training.run(config, splits, flags.FLAGS.output_dir, resume=flags.FLAGS.resume)

    training.cli.main(train, training.Config)

Modules:

- `config`: the settings of a run; flags and `run.flags`.
- `recipes`, `build_losses`: published methods, and their losses.
- `runner`: `run`, the sequence of one run, with `validation`, `inputs`, `build`, `fitting` and `evaluation`.
- `artifacts`, `epoch_log`, `fingerprint`, `plots`: what a run writes, and what is compared on resume.
- `cli`, `cli_help`: command lines.
"""

from keras_wsl.training import cli
from keras_wsl.training.config import Config, ImageNetConfig, MultiNLIConfig
from keras_wsl.training.runner import run

__all__ = ["Config", "ImageNetConfig", "MultiNLIConfig", "cli", "run"]
