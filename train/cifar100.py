"""Trains one network on CIFAR-100: on labels alone, or with a teacher.

    python train/cifar100.py --method=none --student=wrn_40_2 --output_dir=runs/teacher
    python train/cifar100.py --teacher=wrn_40_2 --teacher_weights=runs/teacher/student.keras \
        --student=wrn_16_2 --method=wsl --output_dir=runs/wsl

or from a file of settings, `--flagfile=train/configs/cifar100/wrn_40_2-wrn_16_2-wsl.flags`. The defaults are the
paper's recipe, 240 epochs. Paper, WRN-40-2 to WRN-16-2: labels 73.26, KD 74.92, WSL 75.78 (teacher 75.61).
"""

import before_tensorflow  # noqa: F401
from absl import flags

from keras_wsl import data
from keras_wsl.training import cli, config, runner


def splits(wanted, values):
    """The data of a run: `data.Splits`, from the parsed flags."""
    return data.cifar100(values.data_dir, download=values.download)


def train(wanted):
    """One run, and what is said of it at the end."""
    values = flags.FLAGS
    source = values.data_dir or "cifar100 of TFDS"
    return runner.run(wanted, splits(wanted, values), values.output_dir, resume=values.resume, source=source)


if __name__ == "__main__":
    flags.DEFINE_string("data_dir", None, "A TFDS folder with CIFAR-100, or an .npz file of data.save_npz.")
    flags.DEFINE_bool("download", False, "Whether TFDS may download CIFAR-100.")
    cli.main(train, config.Config)
