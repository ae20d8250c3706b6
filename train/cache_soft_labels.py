"""Write a teacher's soft labels, which the training scripts read by `--soft_labels`.

    python train/cache_soft_labels.py --data=cifar100 --data_dir=cifar100.npz --teacher=wrn_40_2 \
        --teacher_weights=runs/wrn_40_2/student.keras --num_views=240 --dtype=float16 --output_dir=soft_labels/wrn_40_2
    python train/cifar100.py --data_dir=cifar100.npz --soft_labels=soft_labels/wrn_40_2 --output_dir=runs/wsl

Logits are computed for `--num_views` views of each training example, which differ in crops and flips, drawn from
--seed. Epoch e of a training uses view e modulo their number, with the same pixels. With as many views as epochs and
the same seed, the training equals that with a live teacher, up to rounding. If the script is stopped, the same command
resumes it; several processes divide the files among them. Sizes are printed first: CIFAR-100 in float16 takes 10 MB per
view.
"""

import sys

import before_tensorflow  # noqa: F401
from absl import flags

from keras_wsl import soft_labels
from keras_wsl.training import cli, config, runner
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
    """Write the soft labels of the examples that a run with these settings trains on."""
    dataset = saved_runs.get_dataset(values.data)
    settings = saved_runs.override(dataset.config(), values, FLAGS)
    if not (settings.teacher and settings.teacher_weights and values.output_dir):
        raise ValueError(
            "--teacher, --teacher_weights and --output_dir are needed: a network, its file, and a directory."
        )
    train = runner.parts(dataset.load(settings, values), settings)[0]
    teacher = dataset.build(
        settings.teacher,
        classes=len(train.classes),
        weights=settings.teacher_weights,
        input_shape=train.input_shape,
        dtype=settings.dtype_policy,
        **settings.teacher_options(),
    )
    dataset.check(settings, teacher)
    return soft_labels.write(
        teacher,
        train,
        values.output_dir,
        seed=settings.seed,
        num_views=values.num_views,
        clean=values.clean,
        dtype=values.dtype,
        k=values.top_k,
        temperatures=config.numbers("temperatures", values.temperatures),
        batch_size=values.batch_size,
        teacher_file=settings.teacher_weights,
        verbose=1 if sys.stdout.isatty() else 2,
        **runner.augmentation(settings),
    )


def main():
    """Write the soft labels and print where they are."""
    store = write(flags.FLAGS)
    print(f"{store.num_views or 1} views of {len(store.examples):,} examples: --soft_labels={store.folder}")


def define_flags(values=flags.FLAGS):
    """Define the flags of this script."""
    saved_runs.define_flags(FLAGS, values)
    to = {"flag_values": values}
    flags.DEFINE_integer(
        "num_views", 1, "Number of views per example, which differ in crops and flips.", lower_bound=1, **to
    )
    flags.DEFINE_bool(
        "clean", True, "Whether to add a view without crops and flips, for counts on clean examples.", **to
    )
    flags.DEFINE_enum("dtype", "float32", soft_labels.DTYPES, "Data type of the logits.", **to)
    flags.DEFINE_integer("top_k", 0, "Store only the k highest logits; 0 for all.", lower_bound=0, **to)
    flags.DEFINE_list("temperatures", ["1", "4"], "With --top_k: the temperatures of the losses.", **to)
    flags.DEFINE_integer("batch_size", 256, "Examples per forward pass.", lower_bound=1, **to)
    flags.DEFINE_string("output_dir", "", "Directory of the soft labels; made if it is missing.", **to)


if __name__ == "__main__":
    define_flags()
    cli.start(main)
