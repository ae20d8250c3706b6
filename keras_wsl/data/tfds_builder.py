"""Find data sets that TFDS has prepared, without network access."""

import os
import pathlib


def find_builder(name, data_dir=None, *, advice, download=False):
    """Return the builder of the newest version of a data set in a TFDS directory.

    Args:
        name: The name in TFDS, such as "cifar100" or "glue/mnli".
        data_dir: A TFDS directory. Default: TFDS's own (`TFDS_DATA_DIR`, else `~/tensorflow_datasets`).
        advice: A sentence for the error, on how to get the data set.
        download: Whether TFDS may download the data set. If False, the network is not used.

    Returns:
        `tfds.core.DatasetBuilder`.

    Raises:
        FileNotFoundError: If the data set is missing and may not be downloaded.
    """
    data_dir = data_dir or os.environ.get("TFDS_DATA_DIR") or os.path.join("~", "tensorflow_datasets")
    data_dir = pathlib.Path(data_dir).expanduser()
    prepared = _find_newest_version(data_dir / name)
    if not prepared and not download:
        raise FileNotFoundError(
            f"{data_dir / name} must have a directory such as 3.0.2 with dataset_info.json. It has none. {advice}"
        )
    import tensorflow_datasets as tfds

    if prepared:
        # From the directory and not by name, for which TFDS may use the network.
        return tfds.builder_from_directory(prepared)
    builder = tfds.builder(name, data_dir=data_dir)
    builder.download_and_prepare()
    return builder


def _find_newest_version(directory):
    """Return the directory of the newest version, or `None`."""
    directories = [file.parent for file in directory.glob("*.*.*/dataset_info.json") if file.is_file()]
    versions = {path: path.name.split(".") for path in directories}
    versions = {path: [*map(int, numbers)] for path, numbers in versions.items() if all(n.isdigit() for n in numbers)}
    return max(versions, key=versions.get, default=None)
