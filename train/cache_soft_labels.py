"""Writes a teacher's soft labels, for trainings that replay them: `--soft_labels` of the other scripts.

    python train/cache_soft_labels.py --data=cifar100 --data_dir=cifar100.npz --teacher=wrn_40_2 \
        --teacher_weights=runs/wrn_40_2/student.keras --num_views=240 --dtype=float16 --output_dir=soft_labels/wrn_40_2
    python train/cifar100.py --data_dir=cifar100.npz --soft_labels=soft_labels/wrn_40_2 --output_dir=runs/wsl

The teacher sees each training example `--num_views` times, cropped and flipped anew by --seed; epoch e of a training
has view e modulo their number, and the logits of these very pixels. With as many views as epochs, and the same seed, it
is the training with the teacher at hand, to rounding. Stopped and started again it goes on; started several times at
once, the processes share out the files. Sizes are printed first: CIFAR-100 in float16 takes 10 MB a view.
"""

import sys

import before_tensorflow  # noqa: F401
from absl import flags

import students
from keras_wsl import soft_labels
from keras_wsl.training import cli, config, runner

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
    """The soft labels of what a run of these settings trains on."""
    source = students.source(values.data)
    wanted = students.with_flags(source.config(), values, FLAGS)
    if not (wanted.teacher and wanted.teacher_weights and values.output_dir):
        raise ValueError("--teacher, --teacher_weights and --output_dir are needed: a network, its file, and a folder.")
    train = runner.parts(source.splits(wanted, values), wanted)[0]
    teacher = source.build(
        wanted.teacher,
        classes=len(train.classes),
        weights=wanted.teacher_weights,
        input_shape=train.input_shape,
        dtype=wanted.dtype_policy,
        **wanted.teacher_options(),
    )
    source.check(wanted, teacher)
    return soft_labels.write_soft_labels(
        teacher,
        train,
        values.output_dir,
        seed=wanted.seed,
        num_views=values.num_views,
        include_unaugmented=values.clean,
        dtype=values.dtype,
        top_k=values.top_k,
        temperatures=config.numbers("temperatures", values.temperatures),
        batch_size=values.batch_size,
        teacher_file=wanted.teacher_weights,
        verbose=1 if sys.stdout.isatty() else 2,
        **runner.augmentation(wanted),
    )


def main():
    """Says where they are."""
    store = write(flags.FLAGS)
    print(f"{store.num_views or 1} views of {len(store.examples):,} examples: --soft_labels={store.directory}")


def define_flags(values=flags.FLAGS):
    """Defines the flags of this script."""
    students.define_flags(FLAGS, values)
    to = {"flag_values": values}
    flags.DEFINE_integer(
        "num_views", 1, "How often the teacher sees an example, cropped and flipped anew.", lower_bound=1, **to
    )
    flags.DEFINE_bool("clean", True, "Whether it also sees them as they are, for the probe of a training.", **to)
    flags.DEFINE_enum("dtype", "float32", soft_labels.DTYPES, "In which all logits are stored.", **to)
    flags.DEFINE_integer("top_k", 0, "Stores so many of a row's highest logits alone; 0 for all.", lower_bound=0, **to)
    flags.DEFINE_list("temperatures", ["1", "4"], "Of --top_k: the temperatures of the losses.", **to)
    flags.DEFINE_integer("batch_size", 256, "Examples in a forward pass.", lower_bound=1, **to)
    flags.DEFINE_string("output_dir", "", "Folder of the soft labels; made if it is missing.", **to)


if __name__ == "__main__":
    define_flags()
    cli.start(main)
