"""The identity of a run: its settings, and the contents of its data and files, independent of their paths."""

import dataclasses
import hashlib
import json
import os
import pathlib

from keras_wsl.files import sha256
from keras_wsl.soft_labels.manifest import make_example_table

FILES = ("teacher_weights", "student_weights", "vocabulary")
DIRECTORIES = ("teacher", "student")  # A keras-nlp preset may be a directory.


def contents(config, datasets, *, store=None, checkpoints=None):
    """Describe the files and data of a run by their contents.

    Args:
        config: `Config`.
        datasets: Dict of data sets by name, such as `"train"`. Those that are `None` are left out.
        store: `SoftLabels` of the run, or `None`.
        checkpoints: `teacher_checkpoints.Checkpoints` of the run, or `None`.

    Returns:
        Dict for JSON: the SHA-256 of each file or directory by the name of its setting, and for each data set
        `data.NAME.examples`, `data.NAME.classes`, `data.NAME.preprocessing` and `data.NAME.sha256`.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a path is not a regular file.
    """
    paths = {name: getattr(config, name, "") for name in (*FILES, *DIRECTORIES)}
    result = {name: sha256(paths[name]) for name in FILES if paths[name]}
    result |= {name: _directory_sha256(paths[name]) for name in DIRECTORIES if os.path.isdir(paths[name])}
    if store:
        result["soft_labels"] = store.manifest.sha256
    if checkpoints:
        digests = [sha256(path) for path in checkpoints.paths.values()]
        result["teacher_checkpoints"] = hashlib.sha256(" ".join(digests).encode()).hexdigest()
    for name, examples in datasets.items():
        if examples is not None:
            described = {
                "examples": len(examples),
                "classes": hashlib.sha256(json.dumps(examples.classes).encode()).hexdigest()[:16],
                "preprocessing": examples.preprocessing,
                "sha256": hashlib.sha256(make_example_table(examples).tobytes()).hexdigest(),
            }
            result |= {f"data.{name}.{key}": value for key, value in described.items()}
    return json.loads(json.dumps(result))


def identity(config, contents):
    """Combine settings and contents into what must be equal for a run to be resumed.

    Args:
        config: `Config`.
        contents: Dict of `contents`. The contents of a file replace its path in the settings.

    Returns:
        Dict of values by flag, such as `--seed`, and by part of the data, such as `data.train.sha256`.
    """
    result = {f"--{name}": value for name, value in dataclasses.asdict(config).items()}
    for name, value in contents.items():
        result |= {name: value} if name.startswith("data.") else {f"--{name}": f"SHA-256 {value}"}
    return result


def _directory_sha256(directory):
    digest = hashlib.sha256()
    for path in sorted(path for path in pathlib.Path(directory).rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(directory)} {sha256(path)}\n".encode())
    return digest.hexdigest()
