"""Trains one network on ImageNet, or on any tree of JPEG files: on labels alone, or with a teacher.

    python train/imagenet.py --data_dir=imagenet --teacher=imagenet_resnet34 --teacher_weights=resnet34.weights.h5 \
        --student=imagenet_resnet18 --method=wsl --output_dir=runs/resnet18-wsl

`--data_dir` has `train/CLASS/*.JPEG` and `val/CLASS/*.JPEG`, or TFDS's `imagenet2012`. The defaults are the recipe of
the WSL paper: 100 epochs (its code runs 101) of batches of 256, days on one GPU. `--teacher_batch_statistics` gives the
teacher the batch's statistics, as that code does. `convert_weights.py` makes a teacher's file of torchvision's. Paper,
top-1: ResNet-34 (73.31) to ResNet-18, labels 69.75, KD 70.67, WSL 72.04; ResNet-50 (76.16) to MobileNet-v1, labels
68.87, KD 70.49, WSL 71.52.
"""

import before_tensorflow  # noqa: F401
from absl import flags

from keras_wsl import data
from keras_wsl.training import cli, config, runner


def splits(wanted, values):
    """The data of a run: `data.Splits`, from its settings and the parsed flags."""
    return data.imagenet(
        values.data_dir,
        image_size=wanted.image_size,
        resize=wanted.resize or None,
        max_corrupt_images=wanted.max_corrupt_images,
    )


def train(wanted):
    """One run, and what is said of it at the end."""
    values = flags.FLAGS
    images, source = splits(wanted, values), values.data_dir or "imagenet2012 of TFDS"
    top_5 = len(images.train.classes) > 5
    return runner.run(wanted, images, values.output_dir, top_5=top_5, resume=values.resume, source=source)


if __name__ == "__main__":
    flags.DEFINE_string("data_dir", None, "A folder with train/ and val/, or a TFDS folder with imagenet2012.")
    cli.main(train, config.ImageNet)
