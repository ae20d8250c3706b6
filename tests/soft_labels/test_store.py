"""Writing and reading soft labels: rows, interruptions, several writers, and invalid files."""

import dataclasses
import errno
import hashlib
import itertools
import json
import os
import pathlib
import shutil
import threading
import tracemalloc

import keras
import numpy as np
import pytest

from keras_wsl import data, soft_labels
from keras_wsl.file_lock import file_lock
from keras_wsl.soft_labels import reader as store_module
from keras_wsl.soft_labels import writer
from tests.common import bright_splits, image_network, network

SETTINGS = {"seed": 3, "num_views": 2, "batch_size": 16, "verbose": 0}

AUGMENTATION = {"padding": 4, "padding_mode": "constant", "flip": True}


def _teacher(seed=0):
    keras.utils.set_random_seed(seed)
    return image_network("teacher", classes=3)


def _train():
    return bright_splits(40).train


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("soft") / "labels"
    teacher = _teacher()
    return teacher, soft_labels.write_soft_labels(teacher, _train(), folder, **SETTINGS)


def _copy(store, folder):
    return shutil.copytree(store.directory, folder / "copy")


def _expected(teacher, view):
    train = _train()
    if view is None:
        batches = data.eval_batches(train, 40, pipeline="numpy")
    else:
        batches = data.augmented_batches(train, 40, seed=3, view=view, pipeline="numpy")
    ((inputs, _),) = batches
    return teacher.predict(inputs, verbose=0)


@pytest.mark.parametrize("view", [None, 0, 1])
def test_lookup_matches_teacher_logits(made, view):
    teacher, store = made
    numbers = np.random.default_rng(0).permutation(40)[:25]
    rows = store.lookup(view, numbers)
    assert rows.dtype == np.float32 and rows.shape == (25, 3)
    np.testing.assert_allclose(rows, _expected(teacher, view)[numbers], atol=1e-5)


def test_views_differ(made):
    _, store = made
    assert store.num_views == 2 and store.seed == 3
    everything = [store.lookup(view, np.arange(40)) for view in (None, 0, 1)]
    assert all(np.abs(a - b).max() > 1e-3 for a, b in itertools.pairwise(everything))


def test_float16_is_precise_near_the_highest_logit(made, tmp_path):
    teacher, store = made
    half = soft_labels.write_soft_labels(teacher, _train(), tmp_path, dtype="float16", **SETTINGS)
    exact = store.lookup(0, np.arange(40))
    exact = exact - exact.max(axis=1, keepdims=True)
    assert (np.abs(half.lookup(0, np.arange(40)) - exact) <= np.abs(exact) * 2**-11 + 1e-7).all()
    assert half.manifest.bytes_per_view == 40 * 3 * 2


def test_rows_per_file_splits_views(made, tmp_path):
    teacher, store = made
    parted = soft_labels.write_soft_labels(teacher, _train(), tmp_path, rows_per_file=7, **SETTINGS)
    assert len(list(tmp_path.glob("view-00001.shard-*.npy"))) == 6
    numbers = np.random.default_rng(1).permutation(40)
    np.testing.assert_allclose(parted.lookup(1, numbers), store.lookup(1, numbers), atol=1e-5)
    parted.verify()


def test_check_dataset_accepts_subset(made):
    _, store = made
    part = _train().stratified_subset(9, seed=5)
    store.check_dataset(part, AUGMENTATION)
    with pytest.raises(ValueError, match="no soft labels of 1 of 2 examples, the first is number 40. It has 40"):
        store.lookup(0, [3, 40])


def test_sentence_pairs_have_no_views(tmp_path):
    tokens = np.random.default_rng(0).integers(1, 9, (6, 16))
    pairs = data.SentencePairs(tokens, tokens * 0, np.arange(6) + 8, np.arange(6) % 3, ("a", "b", "c"))
    inputs = {name: keras.Input((None,), dtype="int32", name=name) for name in pairs.inputs(slice(0, 6))}
    embedded = keras.layers.Embedding(9, 4)(inputs["token_ids"])
    logits = keras.layers.Dense(3)(keras.layers.GlobalAveragePooling1D()(embedded))
    teacher = keras.Model(inputs, logits)
    store = soft_labels.write_soft_labels(teacher, pairs, tmp_path, num_views=5, batch_size=4, verbose=0)
    assert store.num_views is None and not list(tmp_path.glob("view-*"))
    np.testing.assert_array_equal(store.lookup(7, np.arange(6)), store.lookup(None, np.arange(6)))
    changed = dataclasses.replace(pairs, token_ids=np.where(np.arange(16) == 0, 8, tokens))
    with pytest.raises(ValueError, match="of other data"):
        store.check_dataset(changed, {})


class _Stops(Exception):
    pass


def test_write_resumes_after_interruption(made, tmp_path, monkeypatch):
    teacher, store = made
    calls, forward = [], writer.predict_batch

    def counted(model, inputs):
        calls.append(len(inputs))
        if len(calls) == 5:
            raise _Stops
        return forward(model, inputs)

    monkeypatch.setattr(writer, "predict_batch", counted)
    with pytest.raises(_Stops):
        soft_labels.write_soft_labels(teacher, _train(), tmp_path, **SETTINGS)
    assert sorted(p.name for p in tmp_path.glob("*.npy")) == ["examples.npy", "unaugmented.npy"]
    with pytest.raises(ValueError, match="must have 3 files. 2 are missing, the first is view-00000.npy"):
        soft_labels.SoftLabels(tmp_path)
    again = soft_labels.write_soft_labels(teacher, _train(), tmp_path, **SETTINGS)
    assert len(calls) == 5 + 6  # Three batches a view, and one view was finished.
    for view in (None, 0, 1):
        np.testing.assert_array_equal(again.lookup(view, np.arange(40)), store.lookup(view, np.arange(40)))
    soft_labels.write_soft_labels(teacher, _train(), tmp_path, **SETTINGS)
    assert len(calls) == 11


def test_write_adds_views(made, tmp_path):
    teacher, store = made
    folder = _copy(store, tmp_path)
    times = {p.name: p.stat().st_mtime_ns for p in folder.glob("*.npy.sha256")}
    more = soft_labels.write_soft_labels(teacher, _train(), folder, **{**SETTINGS, "num_views": 3})
    assert more.num_views == 3 and {n: (folder / n).stat().st_mtime_ns for n in times} == times
    with pytest.raises(ValueError, match="`num_views` must be at least .*, 3. Received: num_views=2"):
        soft_labels.write_soft_labels(teacher, _train(), folder, **SETTINGS)


def test_writers_share_files(made, tmp_path, monkeypatch):
    """A writer waits for the file that another process is writing."""
    teacher, store = made
    monkeypatch.setattr(writer, "_WAIT", 0.01)
    done = []
    work = threading.Thread(
        target=lambda: done.append(soft_labels.write_soft_labels(teacher, _train(), tmp_path, **SETTINGS))
    )
    for name in ("manifest.json", "examples.npy"):
        shutil.copy(store.directory / name, tmp_path)
    with file_lock(tmp_path / "unaugmented.npy.lock") as mine:  # Another writer.
        assert mine
        work.start()
        for _ in range(1000):
            if len(list(tmp_path.glob("view-*.sha256"))) == 2:
                break
            work.join(0.05)
        assert not done and not (tmp_path / "unaugmented.npy").exists()
    work.join(60)
    (found,) = done
    np.testing.assert_allclose(found.lookup(None, np.arange(40)), store.lookup(None, np.arange(40)), atol=1e-5)
    assert not list(tmp_path.glob("*.lock"))


def test_write_ignores_unfinished_start_of_another_writer(made, tmp_path):
    """Or was killed before it wrote the manifest."""
    shutil.copy(made[1].directory / "examples.npy", tmp_path)
    for name in ("manifest.json.123.writing", "view-00000.npy.0123456789abcdef.writing"):
        (tmp_path / name).write_text("{")
    soft_labels.write_soft_labels(made[0], _train(), tmp_path, **SETTINGS).verify()
    assert not list(tmp_path.glob("*.writing"))


def test_file_lock_is_exclusive(tmp_path):
    with file_lock(tmp_path / "lock") as first, file_lock(tmp_path / "lock") as second:
        assert first and not second
    with file_lock(tmp_path / "lock") as again:
        assert again


def _other_labels():
    train = _train()
    return dataclasses.replace(train, labels=(train.labels + 1) % 3)


def _other_pixel():
    images = _train().images.copy()
    images[7, 0, 0, 0] ^= 1
    return dataclasses.replace(_train(), images=images)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"teacher": 1}, r"The teacher \(SHA-256 of its weights\) must be that"),
        ({"examples": _other_labels}, "The data set .* must be that"),
        ({"examples": lambda: _train().stratified_subset(30)}, "The number of examples must be .*, 40. Received: 30"),
        ({"seed": 4}, "The seed must be .*, 3. Received: 4"),
        ({"padding": 2}, "The augmentation must be that"),
        ({"dtype": "float16"}, "The dtype must be that"),
        ({"include_unaugmented": False}, "The include_unaugmented must be that"),
        ({"rows_per_file": 5}, "The rows_per_file must be that"),
        ({"dtype": "bfloat16"}, "`dtype` must be one of .* Received: dtype='bfloat16'"),
        ({"top_k": 4}, "`top_k` must be at most the number of classes, 3, .* Received: top_k=4"),
        ({"top_k": 2, "temperatures": [-1.0]}, "temperature"),
        ({"num_views": 0}, "num_views"),
        ({"batch_size": 0}, "batch_size"),
        ({"seed": -1}, "`seed` must be .* Received: seed=-1"),
        ({"scale": (0.1, 1)}, "augmentation of ImageArrays has the arguments .* Received: .'scale'."),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_write_rejects_other_arguments(made, changes, message):
    teacher, store = made
    changes = dict(changes)
    teacher = _teacher(changes.pop("teacher")) if "teacher" in changes else teacher
    train = changes.pop("examples", _train)()
    with pytest.raises(ValueError, match=message):
        soft_labels.write_soft_labels(teacher, train, store.directory, **{**SETTINGS, **changes})


def test_write_rejects_directory_with_other_files(made, tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="must be empty or have soft labels"):
        soft_labels.write_soft_labels(made[0], _train(), tmp_path, **SETTINGS)
    with pytest.raises(FileNotFoundError, match="has no soft labels"):
        soft_labels.SoftLabels(tmp_path)


@pytest.mark.parametrize(
    "teacher, message",
    [
        (lambda: image_network("teacher", classes=4), r"must have shape \(16, 3\), .* Received: shape \(16, 4\)"),
        (lambda: keras.Sequential([image_network("inner", classes=3), keras.layers.Softmax()]), "must return logits"),
        (lambda: "teacher", "must be a keras.Model"),
        (lambda: _with_nan(_teacher()), "must be finite. They are not for example number 0"),
    ],
    ids=["classes", "probabilities", "no_model", "nan"],
)
def test_write_rejects_invalid_teacher(teacher, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        soft_labels.write_soft_labels(teacher(), _train(), tmp_path, **SETTINGS)


def _with_nan(model):
    model.get_layer("logits").bias.assign([np.nan, 0, 0])
    return model


def _flip(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def test_lookup_detects_damaged_file(made, tmp_path):
    folder = _copy(made[1], tmp_path)
    _flip(folder / "view-00001.npy")
    store = soft_labels.SoftLabels(folder)
    store.lookup(0, [1])
    for read in (lambda: store.lookup(1, [1]), store.verify):
        with pytest.raises(ValueError, match="view-00001.npy is damaged: its SHA-256 .* Remove it"):
            read()
    for name in ("view-00001.npy", "view-00001.npy.sha256"):  # As the error recommends.
        (folder / name).unlink()
    again = soft_labels.write_soft_labels(made[0], _train(), folder, **SETTINGS)
    again.verify()
    np.testing.assert_array_equal(again.lookup(1, np.arange(40)), made[1].lookup(1, np.arange(40)))


@pytest.mark.parametrize(
    "damage, message",
    [
        (
            lambda f: (f / "view-00000.npy").write_bytes((f / "view-00000.npy").read_bytes()[:-9]),
            "is not a complete file",
        ),
        (
            lambda f: np.save(f / "view-00000.npy", np.zeros((40, 4), "float32")),
            r"must be .* Received: float32 of shape \(40, 4\)",
        ),
        (lambda f: (f / "view-00000.npy").unlink(), "3 files. 1 are missing, the first is view-00000.npy"),
        (lambda f: (f / "view-00001.npy.sha256").unlink(), "3 files. 1 are missing, the first is view-00001.npy"),
        (lambda f: _flip(f / "examples.npy"), "examples.npy is damaged"),
        (lambda f: (f / "examples.npy").unlink(), "examples.npy is not a complete file"),
        (lambda f: (f / "manifest.json").write_text("{"), "is not a manifest .*JSON"),
        (lambda f: (f / "manifest.json").write_text(json.dumps({"format": "other/2"})), "`format` must be one of"),
    ],
    ids=["truncated", "shape", "missing", "no_digest", "examples_flipped", "no_examples", "manifest", "version"],
)
def test_reader_rejects_incomplete_directory(made, tmp_path, damage, message):
    folder = _copy(made[1], tmp_path)
    damage(folder)
    with pytest.raises(ValueError, match=message):
        soft_labels.SoftLabels(folder)


@pytest.mark.parametrize(
    "examples, augmentation, message",
    [
        (
            _other_pixel,
            AUGMENTATION,
            "1 of 40 examples have other contents .* number 7",
        ),
        (_other_labels, AUGMENTATION, "40 of 40 examples"),
        (_train, {"padding": 4, "flip": False}, "The augmentation must be that"),
        (lambda: dataclasses.replace(_train(), std=(0.3,) * 3), AUGMENTATION, "The preprocessing must be that"),
        (lambda: data.digits().train, {"padding": 1, "flip": False}, "The number of classes must be that"),
    ],
    ids=["pixel", "labels", "augmentation", "preprocessing", "data"],
)
def test_check_dataset_rejects_other_data(made, examples, augmentation, message):
    with pytest.raises(ValueError, match=message):
        made[1].check_dataset(examples(), augmentation)


def test_reader_without_unaugmented_rows(made, tmp_path):
    store = soft_labels.write_soft_labels(made[0], _train(), tmp_path, include_unaugmented=False, **SETTINGS)
    with pytest.raises(ValueError, match="include_unaugmented=True"):
        store.check_dataset(_train())
    with pytest.raises(ValueError, match="no view 2: num_views=2, include_unaugmented=False"):
        store.lookup(2, [0])


def test_write_reports_full_disk_and_keeps_complete_files(made, tmp_path, monkeypatch):
    teacher = made[0]
    with monkeypatch.context() as patch:
        patch.setattr(writer.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 100))
        with pytest.raises(OSError, match="do not fit") as error:
            soft_labels.write_soft_labels(teacher, _train(), tmp_path, **SETTINGS)
        assert error.value.errno == errno.ENOSPC
    save = np.save

    def full(file, array):
        if "view-00001" in file.name:
            file.write(b"half of it")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(file, array)

    with monkeypatch.context() as patch:
        patch.setattr(writer.np, "save", full)
        with pytest.raises(OSError, match="The disk is full: view-00001.npy needs .* complete files are kept"):
            soft_labels.write_soft_labels(teacher, _train(), tmp_path, **SETTINGS)
    assert not list(tmp_path.glob("*.writing")) and not (tmp_path / "view-00001.npy").exists()
    assert (tmp_path / "view-00000.npy.sha256").exists()
    soft_labels.write_soft_labels(teacher, _train(), tmp_path, **SETTINGS).verify()


def test_write_prints_sizes_and_rate(made, tmp_path, capsys):
    soft_labels.write_soft_labels(made[0], _train(), tmp_path, **{**SETTINGS, "verbose": 2})
    printed = capsys.readouterr().out
    assert "3 views of 40 examples, 3 logits in float32: 0.0 MiB per view; 3 files" in printed
    assert "/example" in printed


def test_reader_keeps_two_views_open(made):
    store = soft_labels.SoftLabels(made[1].directory)
    for view in (None, 0, 1):
        store.lookup(view, [0])
    assert len(store._open) == store_module._OPEN_VIEWS


def test_write_accepts_teacher_with_dict_output(tmp_path):
    plain = network("plain", classes=3, inputs=192)
    x = keras.Input((8, 8, 3))
    teacher = keras.Model(x, {"logits": plain(keras.layers.Flatten()(x))})
    store = soft_labels.write_soft_labels(teacher, _train(), tmp_path, **SETTINGS)
    assert store.lookup(0, [0]).shape == (1, 3)


ABSENT = object()


def _manifest(folder, **changes):
    """Change fields of a manifest. `ABSENT` removes one."""
    path = folder / "manifest.json"
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in values.items() if value is not ABSENT}))


def _nested(depth):
    value = {}
    for _ in range(depth):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_views": ABSENT}, "`num_views` is missing"),
        ({"teacher": ABSENT}, "`teacher` is missing"),
        ({"more": 1}, "field 'more' is unknown"),
        ({"teacher": 3}, "`teacher` must be text"),
        ({"weights_sha256": "ab"}, "`weights_sha256` must be a SHA-256"),
        ({"file_sha256": False}, "`file_sha256` must be a SHA-256 .*, or null"),
        ({"examples": True}, "`examples` must be an integer"),
        ({"examples": 40.0}, "`examples` must be an integer"),
        ({"examples": "40"}, "`examples` must be an integer"),
        ({"examples": 0}, "`examples` must be an integer"),
        ({"examples": 10**12}, "`examples` must be an integer"),
        ({"examples": 10**9}, "examples.npy must be .* of shape .1000000000,. .*Received"),
        ({"examples": 10**9, "rows_per_file": 1}, "examples.npy must be"),
        ({"classes": -3}, "`classes` must be an integer"),
        ({"classes": 10**30}, "`classes` must be an integer"),
        ({"classes": 10**7}, "Received: float32 of shape .40, 3."),
        ({"preprocessing": [1]}, "`preprocessing` must be an object"),
        ({"preprocessing": {"mean": float("nan")}}, "a number that is not finite"),
        ({"preprocessing": _nested(500)}, "at most 100 deep"),
        ({"augmentation": "flip"}, "`augmentation` must be an object"),
        ({"augmentation": {}}, "`num_views` must be positive if there is an augmentation"),
        ({"seed": 2**32}, "`seed` must be an integer"),
        ({"num_views": -1}, "`num_views` must be an integer"),
        ({"num_views": 2**31}, "2147483649 files. 2147483646 are missing, the first is view-00002.npy"),
        (
            {"num_views": 2**31, "rows_per_file": 1},
            "85899345960 files. 85899345960 are missing, the first is unaugmented.shard-00000",
        ),
        (
            {"num_views": 0, "include_unaugmented": False, "augmentation": {}},
            "and else 0 with include_unaugmented=true",
        ),
        ({"include_unaugmented": 1}, "`include_unaugmented` must be true or false"),
        ({"dtype": "object"}, "`dtype` must be one of"),
        ({"dtype": ["float32"]}, "`dtype` must be one of"),
        ({"dtype": ""}, "`dtype` must be empty and"),
        ({"dtype": "float16"}, "must be float16 .*Received: float32"),
        ({"top_k": 2}, "`dtype` must be empty and"),
        ({"top_k": 4, "dtype": "", "temperatures": [1.0]}, "`top_k` must be at most the number of classes, 3"),
        ({"top_k": 2, "dtype": "", "temperatures": [4.0]}, "`temperatures` must be a list"),
        ({"top_k": 2, "dtype": "", "temperatures": [4.0, 1.0]}, "`temperatures` must be a list"),
        ({"top_k": 2, "dtype": "", "temperatures": [1.0, 1.0000000001]}, "`temperatures` must be a list"),
        ({"top_k": 2, "dtype": "", "temperatures": [0, 1.0]}, "`temperatures` must be a list"),
        ({"top_k": 2, "dtype": "", "temperatures": [1.0, "4"]}, "`temperatures` must be a list"),
        ({"top_k": 2, "dtype": "", "temperatures": [float("inf"), 1.0]}, "a number that is not finite"),
        ({"top_k": 2, "dtype": "", "temperatures": [1.0]}, "must be .*Received: float32"),
        ({"temperatures": 4.0}, "`temperatures` must be a list"),
        ({"temperatures": [1.0]}, "`dtype` must be empty and"),
        ({"rows_per_file": 0}, "`rows_per_file` must be an integer"),
        ({"rows_per_file": 41}, "`rows_per_file` must be at most the number of examples, 40"),
        ({"rows_per_file": 39}, "6 files. 6 are missing, the first is unaugmented.shard-00000.npy"),
        ({"format": "keras_wsl.soft_labels/2"}, "`format` must be one of"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_manifest_errors_are_one_line(made, tmp_path, changes, message):
    """The check is before memory is allocated for its values. The writer also checks it."""
    folder = _copy(made[1], tmp_path)
    _manifest(folder, **changes)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=message) as caught:
            soft_labels.SoftLabels(folder)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value) and len(str(caught.value)) < 1000
    with pytest.raises((ValueError, OSError)):
        soft_labels.write_soft_labels(made[0], _train(), folder, **SETTINGS)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"[" * 10_000 + b"]" * 10_000, "at most 100 deep"),
        (b'{"a":' * 10_000 + b"{}" + b"}" * 10_000, "at most 100 deep"),
        (b"\xff\xfe\x00", "JSON in UTF-8"),
        (b"\xef\xbb\xbf{}", "JSON in UTF-8"),
        (b"[]", "must be an object"),
        (b'{"format": 1, "format": 2}', "twice in one object"),
        (b" " * 2**21, "at most 1,048,576 bytes"),
    ],
    ids=range(7),
)
def test_manifest_rejects_other_content(made, tmp_path, content, message):
    folder = _copy(made[1], tmp_path)
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        soft_labels.SoftLabels(folder)
    assert "\n" not in str(caught.value) and "manifest.json" in str(caught.value)


@pytest.mark.parametrize("name", ["manifest.json", "examples.npy", "view-00001.npy", "view-00001.npy.sha256"])
@pytest.mark.parametrize(
    "make",
    [os.mkfifo, pathlib.Path.mkdir, lambda path: path.symlink_to("missing")],
    ids=["fifo", "directory", "dangling_link"],
)
def test_reader_rejects_irregular_files(made, tmp_path, name, make):
    folder = _copy(made[1], tmp_path)
    (folder / name).unlink()
    make(folder / name)
    with pytest.raises((ValueError, FileNotFoundError), match=name) as caught:
        soft_labels.SoftLabels(folder).lookup(1, [0])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "digest", [b"", b"0" * 64, b"\xff" * 64, b"a" * 10**6], ids=["empty", "other", "bytes", "long"]
)
def test_lookup_rejects_invalid_digest(made, tmp_path, digest):
    folder = _copy(made[1], tmp_path)
    (folder / "view-00001.npy.sha256").write_bytes(digest)
    with pytest.raises(ValueError, match="view-00001.npy.*Remove it and its .sha256"):
        soft_labels.SoftLabels(folder).lookup(1, [0])


@pytest.mark.parametrize("change", ["negative", "repeated"])
def test_reader_rejects_invalid_example_numbers(made, tmp_path, change):
    folder = _copy(made[1], tmp_path)
    table = np.load(folder / "examples.npy")
    table["index"][3] = -1 if change == "negative" else 7
    np.save(folder / "examples.npy", table)
    _manifest(folder, examples_sha256=hashlib.sha256(table.tobytes()).hexdigest())
    with pytest.raises(ValueError, match="examples.npy has a negative or repeated example number"):
        soft_labels.SoftLabels(folder)


def test_write_rejects_views_beyond_disk_without_allocating(made, tmp_path):
    with pytest.raises(OSError, match="do not fit"):
        soft_labels.write_soft_labels(made[0], _train(), tmp_path, **{**SETTINGS, "num_views": 2**31 - 1})


def test_write_replaces_file_without_digest(made, tmp_path):
    folder = _copy(made[1], tmp_path)
    (folder / "view-00000.npy").unlink()
    (folder / "view-00001.npy.sha256").unlink()
    store = soft_labels.write_soft_labels(made[0], _train(), folder, **SETTINGS)
    np.testing.assert_array_equal(store.lookup(0, np.arange(40)), made[1].lookup(0, np.arange(40)))


# What is hashed when.


@pytest.fixture
def hashed(made, tmp_path, monkeypatch):
    """Return a copy of the directory, and the names of the files that are hashed."""
    names, sha256 = [], store_module.sha256
    monkeypatch.setattr(store_module, "sha256", lambda path: names.append(path.name) or sha256(path))
    folder = _copy(made[1], tmp_path)
    for note in folder.glob("*.verified"):
        note.unlink()
    return folder, names


def test_file_is_hashed_only_at_first_use(hashed):
    folder, names = hashed
    store = soft_labels.SoftLabels(folder)
    assert names == []
    for view in (0, 1, None, 0, 1, None):  # Of which two stay open.
        store.lookup(view, [0])
    assert names == ["view-00000.npy", "view-00001.npy", "unaugmented.npy"]
    soft_labels.SoftLabels(folder).lookup(0, [0])  # As a new process.
    assert len(names) == 3


def test_files_of_a_view_are_hashed_separately(made, tmp_path, monkeypatch):
    store = soft_labels.write_soft_labels(made[0], _train(), tmp_path, rows_per_file=7, **SETTINGS)
    names, sha256 = [], store_module.sha256
    monkeypatch.setattr(store_module, "sha256", lambda path: names.append(path.name) or sha256(path))
    store.lookup(0, [15, 20])
    assert names == ["view-00000.shard-00002.npy"]
    _flip(tmp_path / "view-00000.shard-00003.npy")
    store.lookup(0, [15, 0])
    assert names[1:] == ["view-00000.shard-00000.npy"]
    with pytest.raises(ValueError, match="view-00000.shard-00003.npy is damaged"):
        store.lookup(0, [15, 25])


def test_verify_hashes_all_files(hashed, capsys):
    folder, names = hashed
    store = soft_labels.SoftLabels(folder)
    store.verify(verbose=0)
    store.verify(verbose=0)
    assert len(names) == 6 and not capsys.readouterr().out
    store.verify()
    assert "3/3" in capsys.readouterr().out
    store.lookup(0, [0])
    assert len(names) == 9


@pytest.mark.parametrize("change", ["time", "inode", "note", "long_note", "note_of_a_link"])
def test_changed_file_is_hashed_again(hashed, change):
    folder, names = hashed
    path, note = folder / "view-00000.npy", folder / "view-00000.npy.verified"
    soft_labels.SoftLabels(folder).lookup(0, [0])
    if change == "time":
        os.utime(path, ns=(0, 12345))
    elif change == "inode":
        shutil.copy2(path, folder / "other")
        os.replace(folder / "other", path)
    elif change == "note":
        note.write_bytes(b"\xff{")
    elif change == "long_note":
        note.write_bytes(note.read_bytes() + b" " * 10_000)
    else:
        note.unlink()
        note.symlink_to("/dev/zero")
    soft_labels.SoftLabels(folder).lookup(0, [0])
    assert names == ["view-00000.npy"] * 2
    soft_labels.SoftLabels(folder).lookup(0, [0])
    assert len(names) == 2 and not note.is_symlink()


def test_verify_detects_change_with_same_size_and_time(hashed):
    folder, _ = hashed
    path = folder / "view-00000.npy"
    store = soft_labels.SoftLabels(folder)
    store.lookup(0, [0])
    before = path.stat()
    _flip(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    soft_labels.SoftLabels(folder).lookup(0, [0])  # As documented.
    with pytest.raises(ValueError, match="view-00000.npy is damaged"):
        store.verify(verbose=0)
    with pytest.raises(ValueError, match="view-00000.npy is damaged"):  # The note is gone.
        soft_labels.SoftLabels(folder).lookup(0, [0])


def test_read_only_directory_is_readable(hashed, monkeypatch):
    folder, names = hashed

    def read_only(*args, **kwargs):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(store_module, "atomic_write", read_only)
    store = soft_labels.SoftLabels(folder)
    for view in (0, 1, None, 0):
        store.lookup(view, [0])
    assert len(names) == 3 and not list(folder.glob("*.verified"))
    soft_labels.SoftLabels(folder).lookup(0, [0])
    assert len(names) == 4


# Values.


def _replace_row(folder, name, row, value):
    """Replace a row of a file and update its digest."""
    array = np.load(folder / name)
    array[row] = value
    np.save(folder / name, array)
    (folder / f"{name}.sha256").write_text(hashlib.sha256((folder / name).read_bytes()).hexdigest())


@pytest.mark.parametrize("value", [np.inf, -np.inf, [np.inf, 0, 0], [np.nan, 0, 0]], ids=str)
def test_lookup_rejects_nonfinite_values(made, tmp_path, value):
    folder = _copy(made[1], tmp_path)
    _replace_row(folder, "view-00000.npy", 5, value)
    store = soft_labels.SoftLabels(folder)
    store.lookup(0, [4, 6])
    with pytest.raises(ValueError, match="label of example 5 in .* not finite"):
        store.lookup(0, [4, 5])
    _replace_row(folder, "view-00000.npy", 5, np.nan)
    with pytest.raises(ValueError, match="label of example 5 in .* is missing"):
        soft_labels.SoftLabels(folder).lookup(0, [4, 5])


@pytest.mark.parametrize("field, value", [("logits", np.inf), ("label", np.nan), ("rest", -np.inf), ("classes", 3)])
def test_lookup_rejects_invalid_top_k_values(made, tmp_path, field, value):
    soft_labels.write_soft_labels(made[0], _train(), tmp_path, top_k=2, **SETTINGS)
    row = np.load(tmp_path / "view-00000.npy")[5].copy()
    row[field] = value
    _replace_row(tmp_path, "view-00000.npy", 5, row)
    with pytest.raises(ValueError, match="label of example 5 in .* not finite, or classes that do not exist"):
        soft_labels.SoftLabels(tmp_path).lookup(0, [5])


@pytest.mark.parametrize("storage", [{"dtype": "float16"}, {"top_k": 3}], ids=["float16", "top_k"])
@pytest.mark.parametrize("scale", [1e5, 1e38])
def test_logits_beyond_float16_are_clipped(tmp_path, storage, scale):
    x = keras.Input((8, 8, 3))
    y = keras.layers.Dense(3, kernel_initializer="zeros", name="logits")(keras.layers.Flatten()(x))
    teacher = keras.Model(x, y)
    teacher.get_layer("logits").bias.assign([scale, 0, -3 * scale])
    store = soft_labels.write_soft_labels(teacher, _train(), tmp_path, **storage, **SETTINGS)
    rows = store.lookup(0, np.arange(40))
    values = rows["logits"] if "top_k" in storage else rows
    np.testing.assert_array_equal(values, [[0, np.finfo("float16").min, np.finfo("float16").min]] * 40)
    if "top_k" in storage:
        assert np.isfinite(rows["label"]).all() and all(np.isfinite(mass).all() for mass in rows["rest"].values())


def test_logits_beyond_float32_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "predict_batch", lambda model, inputs: np.full((len(inputs), 3), [1e300, 0.0, 0.0]))
    with pytest.raises(ValueError, match="must be finite. They are not for example number 0"):
        soft_labels.write_soft_labels(_teacher(), _train(), tmp_path, **SETTINGS)
