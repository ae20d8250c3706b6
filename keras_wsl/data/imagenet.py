"""ImageNet (ILSVRC 2012): Russakovsky et al., IJCV 2015, https://arxiv.org/abs/1409.0575."""

import pathlib

from keras_wsl.data import tfds_builder
from keras_wsl.data.image_arrays import Splits
from keras_wsl.data.image_files import CorruptFiles, TfdsImageDataset, image_folder


def imagenet(data_dir=None, *, image_size=224, resize=None, max_corrupt_images=100):
    """Load training and validation images from a tree of directories or from TFDS's `imagenet2012`.

    Classes are in the order of their WordNet ids, as in published weights.

    Args:
        data_dir: A directory with `train/CLASS/*.JPEG` and `val/CLASS/*.JPEG`, of any classes; or a TFDS directory
            with `imagenet2012`. Default: TFDS's own (`TFDS_DATA_DIR`, else `~/tensorflow_datasets`).
        image_size: Integer, height and width of a network's inputs.
        resize: Integer, the shorter side of a validation image before its center is cropped. Default:
            `image_size * 256 / 224`, rounded.
        max_corrupt_images: Integer, the maximum number of unreadable images, which are left out and counted.

    Returns:
        `Splits` of `ImageFolder` or `TfdsImageDataset`.

    Raises:
        FileNotFoundError: If the data set is missing.
        ValueError: If it is incomplete, or a size is out of range.
    """
    kwargs = {
        "image_size": image_size,
        "resize": round(image_size * 256 / 224) if resize is None else resize,
        "corrupt_files": CorruptFiles(max_corrupt_images),
    }
    directory = None if data_dir is None else pathlib.Path(data_dir).expanduser()
    if directory is not None and (directory / "train").is_dir():
        train = image_folder(directory / "train", **kwargs)
        return Splits(train, image_folder(directory / "val", classes=train.classes, **kwargs))
    builder = tfds_builder.find_builder(
        "imagenet2012",
        data_dir,
        advice="Build it with TFDS from the archives of image-net.org, or set data_dir to a directory with train/ and "
        "val/ that have a directory of JPEG files per class.",
    )
    return Splits(TfdsImageDataset(builder, "train", **kwargs), TfdsImageDataset(builder, "validation", **kwargs))
