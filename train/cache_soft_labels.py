"""Cache a teacher's logits for training without the teacher: `--soft_labels` of the training scripts.

    python train/cache_soft_labels.py --data=cifar100 --data_dir=cifar100.npz --teacher=wrn_40_2 \\
        --teacher_weights=runs/wrn_40_2/student.keras --num_views=240 --dtype=float16 --output_dir=soft_labels/wrn_40_2
    python train/cifar100.py --data_dir=cifar100.npz --soft_labels=soft_labels/wrn_40_2 --output_dir=runs/wsl

The teacher sees each training example --num_views times, with different crops and flips (--seed). Epoch e of training
replays view e modulo the number of views, with the logits of exactly these pixels. With as many views as epochs and the
same seed, the result is that of training with the teacher, up to rounding. An interrupted command resumes. Several
processes with the same command share the work. Sizes are printed first: CIFAR-100 in float16 takes 10 MB per view.
"""

import sys

import before_tensorflow  # noqa: F401
from absl import flags

from keras_wsl import soft_labels
from keras_wsl.training import cli, config, inputs
from reproduction import saved_runs

FLAGS = (
    "teacher",
    "teacher_weights",
    "teacher_layers",
    "seed",
    "max_train_examples",
    "validation_examples",
    "dtype_policy",
    "padding_mode",
    "image_size",
    "resize",
    "max_corrupt_images",
    "student",
    "vocabulary",
    "lowercase",
    "sequence_length",
)


def write(values):
    """Write the soft labels of the training set that the parsed flags name, and return the `SoftLabels`."""
    source = saved_runs.get_dataset(values.data)
    settings = saved_runs.override(source.config(), values, FLAGS)
    if not (settings.teacher and settings.teacher_weights and values.output_dir):
        raise ValueError("--teacher, --teacher_weights and --output_dir are required.")
    train = inputs.split_dataset(source.load(settings, values), settings)[0]
    teacher = source.build(
        settings.teacher,
        classes=len(train.classes),
        weights=settings.teacher_weights,
        input_shape=train.input_shape,
        dtype=settings.dtype_policy,
        **settings.teacher_options(),
    )
    source.check(settings, teacher)
    return soft_labels.write_soft_labels(
        teacher,
        train,
        values.output_dir,
        seed=settings.seed,
        num_views=values.num_views,
        include_unaugmented=values.clean,
        dtype=values.dtype,
        top_k=values.top_k,
        temperatures=config.parse_floats("temperatures", values.temperatures),
        batch_size=values.batch_size,
        teacher_file=settings.teacher_weights,
        verbose=1 if sys.stdout.isatty() else 2,
        **inputs.augmentation_kwargs(settings),
    )


def main():
    """Write the soft labels and print where they are."""
    store = write(flags.FLAGS)
    print(f"{store.num_views or 1} views of {len(store.examples):,} examples: --soft_labels={store.directory}")


def define_flags(values=flags.FLAGS):
    """Define the flags of this script."""
    saved_runs.define_flags(FLAGS, values)
    options = {"flag_values": values}
    flags.DEFINE_integer("num_views", 1, "Number of augmented views per example.", lower_bound=1, **options)
    flags.DEFINE_bool("clean", True, "Also cache logits of the unaugmented examples.", **options)
    flags.DEFINE_enum("dtype", "float32", soft_labels.DTYPES, "Storage format of the logits.", **options)
    flags.DEFINE_integer(
        "top_k", 0, "Store only the k highest logits per example; 0 for all.", lower_bound=0, **options
    )
    flags.DEFINE_list("temperatures", ["1", "4"], "Temperatures of the losses, with --top_k.", **options)
    flags.DEFINE_integer("batch_size", 256, "Examples per forward pass.", lower_bound=1, **options)
    flags.DEFINE_string("output_dir", "", "Directory of the soft labels; created if it is missing.", **options)


if __name__ == "__main__":
    define_flags()
    cli.start(main)
