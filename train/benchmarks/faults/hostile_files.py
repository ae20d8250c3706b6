"""Files from elsewhere that are incomplete, damaged, or made to harm: manifests, arrays, networks, flags, images."""

import hashlib
import io
import json
import os
import pathlib
import shutil
import tracemalloc
import zipfile

import keras
import numpy as np

from benchmarks.faults import child, disks, material
from benchmarks.faults.fault import accepted, classify, fault, refused, refused_or_right, snapshot, unchanged
from keras_wsl import callbacks, data, soft_labels
from keras_wsl.models import weights
from keras_wsl.training import build_losses, config

VERIFIED = ".verified"  # The ending of what a store notes about shards that were read.
LIMIT_MIB = 256  # Memory that reading a small hostile file may take.
DEEP = "[" * 100_000 + "]" * 100_000
# What stands in place of each field of a manifest. `1e999` is infinity to Python's JSON.
VALUES = {
    "missing": None,
    "null": "null",
    "a deep list": DEEP,
    "an object": '{"a": 1}',
    "negative": "-1",
    "10**12": str(10**12),
    "10**400": str(10**400),
    "a fraction": "0.5",
    "infinite": "1e999",
    "text": '"../../etc/passwd"',
}
REQUIRED = ("classes", "dtype", "examples", "examples_sha256", "top_k", "rows_per_file", "temperatures", "num_views")


def _memory_limited(work):
    """Return a function that raises `AssertionError` if `work` takes more than `LIMIT_MIB` of memory."""

    def limited():
        tracemalloc.start()
        try:
            return work()
        finally:
            peak = tracemalloc.get_traced_memory()[1] / 2**20
            tracemalloc.stop()
            if peak > LIMIT_MIB:
                raise AssertionError(f"reading took {peak:.0f} MiB")

    return limited


def _open(folder):
    """Return what a store holds: its manifest, and the rows of every view, after it was verified."""
    store = soft_labels.SoftLabels(folder)
    store.verify()
    index = np.arange(len(store.examples))
    return {str(view): store.lookup(view, index).tobytes() for view in store.manifest.all_views}


class Copies:
    """Copies of one valid store, in which something is changed.

    Args:
        folder: Path of a new folder.
    """

    def __init__(self, folder):
        self.folder, self.original = folder, material.store(folder / "store").directory
        self.content, self.number = _open(self.original), 0

    def attempt(self, change, *words):
        """Change a copy and open it: refused, or the same rows, with bounded memory, and no file changed.

        Args:
            change: Function of the copy's path.
            *words: Words of the error.
        """
        self.number += 1
        copy = self.folder / f"copy-{self.number}"
        shutil.copytree(self.original, copy)
        change(copy)
        before = snapshot(copy)
        attempt = refused_or_right(_memory_limited(lambda: _open(copy)), lambda rows: rows == self.content, *words)
        attempt = unchanged(attempt, copy, before, [VERIFIED])
        shutil.rmtree(copy)
        return attempt


def with_field(text, name, value):
    """Return a manifest's text in which a field has a value, JSON's text, or is missing if the value is `None`."""
    fields = {key: json.dumps(content) for key, content in json.loads(text).items()}
    if value is None:
        del fields[name]
    else:
        fields[name] = value
    return "{" + ", ".join(f'"{key}": {content}' for key, content in fields.items()) + "}"


@fault(
    "one field of a store's manifest is missing, or of another type, size or depth",
    "refused in a line, or the same rows",
)
def manifest_fields(bench):
    """Change each field that decides what is read, to each of the hostile values."""
    copies = Copies(bench.new_folder())
    text = (copies.original / "manifest.json").read_text()
    for name in REQUIRED:
        for value in VALUES.values():
            changed = with_field(text, name, value)
            yield copies.attempt(lambda copy, changed=changed: (copy / "manifest.json").write_text(changed))


@fault("a store's manifest as a whole is something else", "refused in a line; no hang, no memory")
def manifest_files(bench):
    """Replace the file."""
    copies = Copies(bench.new_folder())
    text = (copies.original / "manifest.json").read_bytes()
    for content in (
        b"",
        b"null",
        b"[]",
        b"{",
        DEEP.encode(),
        b"\xff\xfe\x00garbage",
        text[: len(text) // 2],
        text + text,
        text.replace(b"soft_labels/1", b"soft_labels/99"),
        b'{"format": "keras_wsl.soft_labels/1"}',
        b" " * (64 << 20),
        b"9" * 100_000,
    ):
        yield copies.attempt(lambda copy, content=content: (copy / "manifest.json").write_bytes(content), "manifest")
    for make in (os.mkdir, os.mkfifo, lambda path: os.symlink("/dev/zero", path), lambda path: os.symlink(path, path)):

        def replace(copy, make=make):
            (copy / "manifest.json").unlink()
            make(copy / "manifest.json")

        yield copies.attempt(replace)


def _header(shape, dtype="<f4"):
    """Return the header of a `.npy` file that claims an array."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue()


def _pickled():
    file = io.BytesIO()
    np.save(file, np.array([{"a": 1}], dtype=object))
    return file.getvalue()


@fault("a store's array claims other sizes, is damaged, or holds infinity or objects", "refused in a line")
def arrays(bench):
    """Replace the table of examples, a shard, and its checksum."""
    copies = Copies(bench.new_folder())
    contents = (b"", b"garbage", _header((10**12, 3)), _header((10**12,), "<i4"), _header((-1, 3)), _pickled())
    for name in ("examples.npy", "view-00000.shard-00000.npy"):
        for content in contents:
            yield copies.attempt(lambda copy, name=name, content=content: (copy / name).write_bytes(content), name)
        yield copies.attempt(lambda copy, name=name: (copy / name).unlink(), name)
    checksum = "view-00000.shard-00000.npy.sha256"
    for content in (b"", b"\xff\xfe", b"0" * 64):
        yield copies.attempt(lambda copy, content=content: (copy / checksum).write_bytes(content))
    for value in (np.inf, -np.inf):
        yield copies.attempt(lambda copy, value=value: _replace_value(copy, value))


def _replace_value(copy, value):
    """Put a number into a shard, and make the checksums right, as who made the store may have done."""
    path = copy / "view-00000.shard-00000.npy"
    array = np.load(path, allow_pickle=False)
    array[1, 1] = value
    np.save(path, array)
    for sums in copy.glob(f"{path.name}.*"):
        sums.write_text(soft_labels.reader.sha256(path))


@fault("the header, the description or the payload of a backup is changed", "named as damaged, or refused in a line")
def backups(bench):
    """Change a backup with its checksum made right, as for a file of somebody else."""
    folder = bench.new_folder()
    content = disks.backup(folder / "whole")
    for number, changed in enumerate(hostile_backups(content)):
        place = folder / str(number)
        place.mkdir()
        (place / "000000-00000000.backup").write_bytes(changed)
        before = snapshot(place)
        work = _memory_limited(lambda place=place: callbacks.ExactBackupAndRestore(place, 2).initial_position)
        yield unchanged(refused_or_right(work, lambda position: position == [0, 0]), place, before)


def _signed(header, payload):
    """Return a backup's bytes with the checksum of its payload."""
    return header + b"\n" + hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload


def _unpacked(content):
    """Return the header of a backup, and its arrays by name; `run` is its description, JSON's bytes."""
    header, _, rest = content.partition(b"\n")
    with np.load(io.BytesIO(rest[65:]), allow_pickle=False) as arrays:
        return header, dict(arrays)


def description(content):
    """Return the description of a run in a backup's bytes, a dict."""
    return json.loads(_unpacked(content)[1]["run"].tobytes())


def with_description(content, text):
    """Return a backup's bytes with another description, JSON's text, and the checksum made right."""
    header, arrays = _unpacked(content)
    file = io.BytesIO()
    np.savez(file, **{**arrays, "run": np.frombuffer(text.encode(), "uint8")})
    return _signed(header, file.getvalue())


def hostile_backups(content):
    """Yield versions of a backup's bytes whose checksum is right and whose content is not."""
    header, _, rest = content.partition(b"\n")
    yield from (b"", header, header + b"\n", b"another 1\n" + rest)
    yield from (_signed(header, payload) for payload in (b"", b"garbage", rest[65:164]))
    run = description(content)
    for name in run:
        others = {key: value for key, value in run.items() if key != name}
        for changed in (others, *({**others, name: value} for value in (10**400, "text", [], {}))):
            yield with_description(content, json.dumps(changed))
    yield from (with_description(content, text) for text in (DEEP, "null", "\0"))


def _keras_file(path, config):
    """Write a `.keras` file of this configuration, without weights."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("config.json", config)
        file.writestr("metadata.json", json.dumps({"keras_version": keras.version(), "date_saved": ""}))
        file.writestr("model.weights.h5", b"")


@fault("a .keras file of 10**12 weights, deep, cut, or of other things", "refused in a line before anything is built")
def networks(bench):
    """Read networks of strangers."""
    folder = bench.new_folder()
    config = keras.saving.serialize_keras_object(material.network("student"))

    def wide(units):
        changed = json.loads(json.dumps(config))
        for layer in changed["config"]["layers"]:
            if layer["class_name"] == "Dense":
                layer["config"]["units"] = units
        return json.dumps(changed)

    for number, text in enumerate(
        (wide(10**12), wide(10**6), wide(-1), wide("8"), DEEP, "", "null", json.dumps({"class_name": "Nothing"}))
    ):
        path = folder / f"{number}.keras"
        _keras_file(path, text)
        yield refused(_memory_limited(lambda path=path: weights.read_network(path)), path.name)
    for name, content in {"empty": b"", "text": b"text", "zip": b"PK\x05\x06" + bytes(18)}.items():
        path = folder / f"{name}.keras"
        path.write_bytes(content)
        yield refused(lambda path=path: weights.read_network(path), path.name)


@fault(
    "run.flags holds garbage, unknown flags or other values, then --resume",
    "refused in a line that names the file or flag",
)
def run_flags(bench):
    """Edit the flags of a finished run by hand."""
    folder = bench.new_folder() / "run"
    material.run(folder)
    path = folder / "run.flags"
    lines = path.read_text()
    for content in (
        b"\xff\xfe\x00\x01" * 100,
        b"",
        b"not flags at all\n",
        b"--no_such_flag=1\n",
        lines.replace("--seed=0", "--seed=1").encode(),
        lines.replace("--epochs=1", "--epochs=x").encode(),
        lines.replace("--batch_size=16", "--batch_size=-16").encode(),
        lines.encode() + b"--flagfile=" + os.fsencode(path) + b"\n",
        lines.encode() + b"--help\n",
        ("--student=" + "x" * 10**6).encode(),
    ):
        path.write_bytes(content)
        before = snapshot(folder)
        yield unchanged(refused(lambda: material.run(folder, resume=True)), folder, before)
    path.write_text(lines)
    yield accepted(lambda: material.run(folder, resume=True), "the original")


@fault("--loss_kwargs nests 10**5 deep, names code, or is no setting", "refused in a line")
def loss_kwargs(bench):
    """Pass settings that a literal parser could choke on."""
    for value in (
        f"beta={DEEP}",
        f"beta={'-' * 100_000}1",
        f"beta={'(' * 5000}",
        "beta=__import__('os').system('false')",
        "beta=1e999",
        "beta=" + "9" * 5000,
        "beta",
        "=",
        "beta=\0",
        "beta={1: [}",
    ):
        chosen = config.Config(method="dkd", teacher="resnet8", teacher_weights="x", loss_kwargs=(value,))
        yield refused(lambda chosen=chosen: build_losses.build_main_losses(chosen, material.images().train, *_pair()))


def _pair():
    return material.image_network("teacher"), material.image_network("student")


def read_images(folder):
    """List a folder's images, read all, and return the classes and how many were read."""
    found = data.image_folder(pathlib.Path(folder), image_size=8, resize=8)
    count = sum(len(np.asarray(targets["labels"])) for _, targets in data.eval_batches(found, 4))
    return [list(found.classes), count]


@fault(
    "a FIFO, a device, a folder or a link is named like an image; hidden folders",
    "left out or refused; no hang, no class",
)
def image_folders(bench):
    """Read folders in which one entry is no image, in a process of its own."""
    folder = bench.new_folder()
    makers = {
        "fifo": os.mkfifo,
        "device": lambda path: path.symlink_to("/dev/zero"),
        "folder": os.mkdir,
        "dangling": lambda path: path.symlink_to(folder / "absent"),
        "loop": lambda path: path.symlink_to(path),
        "empty": pathlib.Path.touch,
        "text": lambda path: path.write_text("text"),
    }
    started = {}
    for name, make in makers.items():
        tree = _tree(folder / name)
        make(tree / "a" / "x.jpg")
        started[name] = child.start(read_images, tree)
    for hidden in (".thumbs", ".git"):
        tree = _tree(folder / hidden)
        shutil.copytree(tree / "a", tree / hidden)
        started[hidden] = child.start(read_images, tree)
    for name, process in started.items():
        yield _read(name, process)


def _read(name, process):
    try:
        classes, count = child.answer(process, 300)
    except Exception as error:
        line = str(error).splitlines()[-1]
        return classify(f"{name}: {line}"[:200], a_line=line.startswith(("ValueError", "OSError", "FileNotFoundError")))
    return classify(f"{name}: {classes}, {count} images", two_classes=classes == ["a", "b"], four_images=count == 4)


def _tree(folder):
    """Make a folder of two classes of two images each, and return it."""
    generator = np.random.default_rng(0)
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for i in range(2):
            pixels = generator.integers(0, 256, (8, 8, 3)).astype("uint8")
            keras.utils.save_img(folder / name / f"{i}.jpg", pixels, scale=False)
    return folder
