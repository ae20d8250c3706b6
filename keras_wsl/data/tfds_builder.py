"""Data sets that TFDS has prepared, found without a network."""

import os
import pathlib


def builder(name, data_dir=None, *, advice, download=False):
    """The newest version of a data set in a TFDS folder.

    Args:
        name: As TFDS has it, such as "cifar100" or "glue/mnli".
        data_dir: A TFDS folder, by default TFDS's own (`TFDS_DATA_DIR`, else `~/tensorflow_datasets`).
        advice: A sentence for the error, on where to get the data set.
        download: Whether TFDS may fetch what is not there. Otherwise the network is not used.

    Returns:
        `tfds.core.DatasetBuilder`.

    Raises:
        FileNotFoundError: The data set is not there, and may not be fetched.
    """
    data_dir = data_dir or os.environ.get("TFDS_DATA_DIR") or os.path.join("~", "tensorflow_datasets")
    data_dir = pathlib.Path(data_dir).expanduser()
    prepared = _prepared(data_dir / name)
    if not prepared and not download:
        raise FileNotFoundError(
            f"No {name} in {data_dir / name}: expected a folder such as 3.0.2 with dataset_info.json there. {advice}"
        )
    import tensorflow_datasets as tfds

    if prepared:
        # From the folder, and not by name: by name, TFDS may look for the data set's description on the network.
        return tfds.builder_from_directory(prepared)
    fetched = tfds.builder(name, data_dir=data_dir)
    fetched.download_and_prepare()
    return fetched


def _prepared(folder):
    """The folder of the newest version, or None."""
    folders = [file.parent for file in folder.glob("*.*.*/dataset_info.json") if file.is_file()]
    numbered = [folder for folder in folders if all(part.isdigit() for part in folder.name.split("."))]
    return max(numbered, key=lambda folder: [int(part) for part in folder.name.split(".")], default=None)
