"""ImageNet (ILSVRC 2012): Russakovsky et al., IJCV 2015, https://arxiv.org/abs/1409.0575."""

import pathlib

from keras_wsl.data import tfds_builder
from keras_wsl.data.image_arrays import Splits
from keras_wsl.data.image_files import CorruptFiles, TfdsImageDataset, image_folder


def imagenet(data_dir=None, *, image_size=224, resize=None, max_corrupt_images=100):
    """Training and validation images, from a tree of folders or from TFDS's `imagenet2012`.

    Classes are in the order of their WordNet numbers, as in published weights.

    Args:
        data_dir: A folder with `train/CLASS/*.JPEG` and `val/CLASS/*.JPEG`, of whatever classes; or a TFDS folder with
            `imagenet2012`, by default TFDS's own (`TFDS_DATA_DIR`, else `~/tensorflow_datasets`).
        image_size: Integer, height and width of what networks see.
        resize: Integer, the shorter side of a validation image before its centre is cut out; by default 256 for 224,
            and in proportion.
        max_corrupt_images: Integer: so many images that cannot be read are left out, and counted.

    Returns:
        `Splits` of `ImageFolder` or `TfdsImageDataset`.

    Raises:
        FileNotFoundError: The data set is not there.
        ValueError: It is incomplete, or a size is out of range.
    """
    settings = {
        "image_size": image_size,
        "resize": round(image_size * 256 / 224) if resize is None else resize,
        "unreadable": CorruptFiles(max_corrupt_images),
    }
    folder = None if data_dir is None else pathlib.Path(data_dir).expanduser()
    if folder is not None and (folder / "train").is_dir():
        train = image_folder(folder / "train", **settings)
        return Splits(train, image_folder(folder / "val", classes=train.classes, **settings))
    builder = tfds_builder.builder(
        "imagenet2012",
        data_dir,
        advice="TFDS builds it from the archives of image-net.org, or set data_dir to a folder with train/ and val/ "
        "that have a folder of JPEG files for each class.",
    )
    return Splits(TfdsImageDataset(builder, "train", **settings), TfdsImageDataset(builder, "validation", **settings))
