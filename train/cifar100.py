"""Trains one network on CIFAR-100: on labels alone, or with a teacher.

    python train/cifar100.py --method=none --student=wrn_40_2 --out=runs/teacher
    python train/cifar100.py --teacher=wrn_40_2 --teacher_weights=runs/teacher/student.keras \
        --student=wrn_16_2 --method=wsl --out=runs/wsl

or from a file of settings, `--flagfile=train/flags/wrn_40_2-wrn_16_2-wsl.flags`. The defaults are the paper's recipe,
240 epochs. Paper, WRN-40-2 to WRN-16-2: labels 73.26, KD 74.92, WSL 75.78 (teacher 75.61).
"""

import sys

from absl import app, flags, logging

import settings
import trainer
from keras_wsl import callbacks, data


def main(argv):
    """Runs what the flags say; an error of the user's is one line, and exit status 2."""
    if argv[1:]:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}.")
    logging.set_verbosity(logging.WARNING)  # TensorFlow tells of every function that it saves.
    try:
        wanted = settings.from_flags(flags.FLAGS)
        splits = data.cifar100(flags.FLAGS.data_dir, download=flags.FLAGS.download)
        result = trainer.run(wanted, splits, flags.FLAGS.out, resume=flags.FLAGS.resume)
    except (ValueError, FileNotFoundError, callbacks.NonFiniteLoss) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    print(f"test accuracy {result['test_accuracy']:.4f}: {flags.FLAGS.out}/result.json")
    return 0


if __name__ == "__main__":
    settings.define_flags()
    flags.DEFINE_string("data_dir", None, "A TFDS folder with CIFAR-100, or an .npz file of data.save_npz.")
    flags.DEFINE_bool("download", False, "Whether TFDS may download CIFAR-100.")
    app.run(main)
