"""What makes a run this run: its settings, and the contents of its data and files, wherever they are."""

import dataclasses
import hashlib
import json
import os
import pathlib

from keras_wsl.files import sha256
from keras_wsl.soft_labels.manifest import make_example_table

FILES = ("teacher_weights", "student_weights", "vocabulary")
FOLDERS = ("teacher", "student")  # A preset of keras-nlp may be a folder.


def contents(config, parts, *, store=None, checkpoints=None):
    """Describe the files and data of a run by their contents.

    Args:
        settings: `Config`.
        parts: Dict of data sets by the name of their part, such as `"train"`; those that are `None` are left out.
        store: `SoftLabels` of the run, or `None`.
        checkpoints: `teacher_checkpoints.Checkpoints` of the run, or `None`.

    Returns:
        Dict for JSON: the SHA-256 of each file or folder by the name of its setting, and of each part of the data
        `data.PART.examples`, `data.PART.classes`, `data.PART.preprocessing` and `data.PART.sha256`.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a path leads to something else than a file.
    """
    paths = {name: getattr(config, name, "") for name in (*FILES, *FOLDERS)}
    found = {name: sha256(paths[name]) for name in FILES if paths[name]}
    found |= {name: _folder_sha256(paths[name]) for name in FOLDERS if os.path.isdir(paths[name])}
    if store:
        found["soft_labels"] = store.manifest.sha256
    if checkpoints:
        digests = [sha256(path) for path in checkpoints.paths.values()]
        found["teacher_checkpoints"] = hashlib.sha256(" ".join(digests).encode()).hexdigest()
    for name, examples in parts.items():
        if examples is not None:
            described = {
                "examples": len(examples),
                "classes": hashlib.sha256(json.dumps(examples.classes).encode()).hexdigest()[:16],
                "preprocessing": examples.preprocessing,
                "sha256": hashlib.sha256(make_example_table(examples).tobytes()).hexdigest(),
            }
            found |= {f"data.{name}.{key}": value for key, value in described.items()}
    return json.loads(json.dumps(found))


def identity(config, contents):
    """Combine settings and contents into what has to be equal for a run to be resumed.

    Args:
        settings: `Config`.
        contents: Dict of `contents`; a file in it stands for the path in the settings.

    Returns:
        Dict of values by flag, such as `--seed`, and by part of the data, such as `data.train.sha256`.
    """
    found = {f"--{name}": value for name, value in dataclasses.asdict(config).items()}
    for name, value in contents.items():
        found |= {name: value} if name.startswith("data.") else {f"--{name}": f"SHA-256 {value}"}
    return found


def _folder_sha256(folder):
    digest = hashlib.sha256()
    for path in sorted(path for path in pathlib.Path(folder).rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(folder)} {sha256(path)}\n".encode())
    return digest.hexdigest()
