"""Train a network on CIFAR-100, on labels only or with a teacher.

    python train/cifar100.py --method=none --student=wrn_40_2 --output_dir=runs/teacher
    python train/cifar100.py --teacher=wrn_40_2 --teacher_weights=runs/teacher/student.keras \\
        --student=wrn_16_2 --method=wsl --output_dir=runs/wsl

or with a flagfile: --flagfile=train/configs/cifar100/wrn_40_2-wrn_16_2-wsl.flags. The defaults are the recipe of the
WSL paper, 240 epochs. Its results, WRN-40-2 (75.61) to WRN-16-2: labels 73.26, KD 74.92, WSL 75.78.
"""

import before_tensorflow  # noqa: F401
from absl import flags

from keras_wsl import data, training


def load_splits(config, values):
    """Return the `data.Splits` that the parsed flags name."""
    return data.cifar100(values.data_dir, download=values.download)


def train(config):
    """Train one network and return its results."""
    values = flags.FLAGS
    source = values.data_dir or "cifar100 of TFDS"
    splits = load_splits(config, values)
    return training.run(config, splits, values.output_dir, resume=values.resume, source=source)


if __name__ == "__main__":
    flags.DEFINE_string("data_dir", None, "TFDS directory with CIFAR-100, or an .npz file of data.save_npz.")
    flags.DEFINE_bool("download", False, "Let TFDS download CIFAR-100.")
    training.cli.main(train, training.Config)
