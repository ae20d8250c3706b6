"""Train a network on ImageNet or on any directory of JPEG files, on labels only or with a teacher.

    python train/imagenet.py --data_dir=imagenet --teacher=imagenet_resnet34 --teacher_weights=resnet34.weights.h5 \\
        --student=imagenet_resnet18 --method=wsl --output_dir=runs/resnet18-wsl

--data_dir has train/CLASS/*.JPEG and val/CLASS/*.JPEG, or TFDS's imagenet2012. Convert torchvision's teacher weights
with convert_weights.py. The defaults are the recipe of the WSL paper: 100 epochs (its code runs 101) of batches of 256,
days on one GPU. Pass --teacher_batch_statistics to run the teacher's batch normalization on batch statistics, as its
code does. Top-1 accuracy in the paper:

    ResNet-34 (73.31) to ResNet-18:     labels 69.75, KD 70.67, WSL 72.04
    ResNet-50 (76.16) to MobileNet-v1:  labels 68.87, KD 70.49, WSL 71.52
"""

import before_tensorflow  # noqa: F401
from absl import flags

from keras_wsl import data, training


def load_splits(config, values):
    """Return the `data.Splits` that the settings and the parsed flags name."""
    return data.imagenet(
        values.data_dir,
        image_size=config.image_size,
        resize=config.resize or None,
        max_corrupt_images=config.max_corrupt_images,
    )


def train(config):
    """Train one network and return its results."""
    values = flags.FLAGS
    source = values.data_dir or "imagenet2012 of TFDS"
    splits = load_splits(config, values)
    top_5 = len(splits.train.classes) > 5
    return training.run(config, splits, values.output_dir, top_5=top_5, resume=values.resume, source=source)


if __name__ == "__main__":
    flags.DEFINE_string("data_dir", None, "Directory with train/ and val/, or TFDS directory with imagenet2012.")
    training.cli.main(train, training.ImageNetConfig)
