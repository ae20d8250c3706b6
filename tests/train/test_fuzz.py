"""Property-based fuzz with a fixed budget: no traceback reaches a user, and nothing outside a run's folder changes.

Examples are derived from the tests, so that every run tries the same ones.
"""

import contextlib
import dataclasses
import functools
import io
import json
import pathlib
import random
import shutil
import tracemalloc
import warnings

import hypothesis
import numpy as np
import pytest
from absl import flags
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from benchmarks.faults import disks, fault, hostile_files, inputs, material
from benchmarks.faults.fault import is_user_error, snapshot
from keras_wsl import callbacks, data, models
from keras_wsl.training import cli, config, runner
from tests.train.test_bad_inputs_of_scripts import train

pytestmark = pytest.mark.slow


def fuzz(examples):
    """Return the settings of a test with this number of examples."""
    return hypothesis.settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )


# Flags.


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory):
    """A folder with what a command line may name: data, a teacher, damaged files, another user's files."""
    folder = tmp_path_factory.mktemp("sandbox")
    data.save_npz(material.images(20), folder / "images.npz")
    network = models.build("resnet8", 3, input_shape=(8, 8, 3))
    network.save(folder / "teacher.keras")
    models.save_weights(network, folder / "teacher.weights.h5")
    (folder / "torn.weights.h5").write_bytes((folder / "teacher.weights.h5").read_bytes()[:900])
    (folder / "garbage.keras").write_bytes(bytes(range(256)))
    (folder / "thesis").mkdir()
    (folder / "thesis" / "thesis.tex").write_text("years of work")
    (folder / "link").symlink_to(folder / "thesis")
    (folder / "dangling").symlink_to(folder / "absent")
    material.store(folder / "store")
    return folder


NAMES = ("images.npz", "teacher.keras", "teacher.weights.h5", "torn.weights.h5", "garbage.keras", "thesis", "link")
PATHS = st.sampled_from([f"HERE/{name}" for name in (*NAMES, "dangling", "store", "absent", "thesis/thesis.tex", "")])
NUMBERS = st.one_of(
    st.sampled_from(
        ["0", "-1", "1", "2", "nan", "inf", "-inf", "1e308", "1e-320", "0.5", "1e999", str(2**31), str(2**63)]
    ),
    st.integers(-(2**70), 2**70).map(str),
    st.floats().map(repr),
)
TEXTS = st.one_of(
    st.text(max_size=12), st.sampled_from(["", "--", "../..", "%s", "{}", "\0", "a\nb", "x" * 5000, "[" * 5000])
)
CHOICES = {
    "method": ["none", "kd", "wsl", "dkd", "at", "fitnet", "crd", "ab", "mlkd", "tf_kd"],
    "student": ["resnet8", "wrn_16_1"],
    "teacher": ["", "resnet8", "resnet14"],
    "optimizer": ["sgd", "bert_adamw"],
    "schedule": ["steps", "linear"],
    "padding_mode": ["constant", "reflect"],
    "dtype_policy": ["float32", "mixed_float16", "mixed_bfloat16"],
    "strategy": ["none", "mirrored"],
    "weighting": ["", "wsl", "wsl*teacher_correct", "exclude_regularization_samples"],
    "extra_losses": ["", "wsl", "kd,at", "wsl,wsl"],
    "loss_kwargs": ["", "beta=8", "standardize=True", "beta", "beta=None", "temperature=2", f"beta={'[' * 3000}"],
    "decay_epochs": ["", "1", "1,2", "2,1", "-1", "x"],
}
BOOLEANS = [field.name for field in dataclasses.fields(config.Config) if field.type in (bool, "bool")]


def _values(name):
    if name in ("teacher_weights", "student_weights", "soft_labels", "teacher_checkpoints", "data_dir"):
        return st.one_of(PATHS, TEXTS)
    if name in BOOLEANS:
        return st.sampled_from(["true", "false", "maybe"])
    if name in CHOICES:
        return st.one_of(st.sampled_from(CHOICES[name]), TEXTS)
    return st.one_of(NUMBERS, TEXTS)


FLAGS = (*(field.name for field in dataclasses.fields(config.Config)), "data_dir")
CHANGES = st.lists(st.sampled_from(FLAGS).flatmap(lambda name: st.tuples(st.just(name), _values(name))), max_size=3)
BASES = st.sampled_from(
    [
        {"method": "none"},
        {"method": "wsl", "teacher": "resnet8", "teacher_weights": "HERE/teacher.keras"},
        {"method": "kd", "soft_labels": "HERE/store"},
    ]
)
OUT = st.one_of(st.just("HERE/out"), st.sampled_from([f"HERE/{name}" for name in (*NAMES, "dangling", "dangling/x")]))


def _stub_fit(model, wanted, train, table, backups, **kwargs):
    """Stand in for the training: everything before it was checked and built."""
    raise _Trained


class _Trained(Exception):
    """A command line was accepted."""


@fuzz(300)
@hypothesis.given(base=BASES, changes=CHANGES, out=OUT, resume=st.booleans())
def test_trainer_refuses_or_accepts_any_flags(sandbox, base, changes, out, resume):
    chosen = {
        "student": "resnet8",
        "epochs": "1",
        "decay_epochs": "",
        "data_dir": "HERE/images.npz",
        **base,
        "output_dir": out,
    }
    lines = [f"--{name}={value}" for name, value in {**chosen, **dict(changes)}.items()]
    arguments = [line.replace("HERE", str(sandbox)) for line in [*lines, *(["--resume"] if resume else [])]]
    before = snapshot(sandbox)
    errors = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(errors), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr(runner, "fit", _stub_fit)
        try:
            status = cli.status(lambda: train(arguments))
        except flags.Error:  # absl ends the script with its usage message.
            status = 1
        except _Trained:
            status = 0
    after = snapshot(sandbox)
    run = pathlib.Path(out.replace("HERE", str(sandbox)))
    shutil.rmtree(sandbox / "out", ignore_errors=True)
    changed = fault.changes(before, after, [hostile_files.VERIFIED])
    assert all(sandbox / name == run or run in (sandbox / name).parents for name in changed), changed
    if status == 2:
        assert len(errors.getvalue().strip().splitlines()) == 1, errors.getvalue()
    if out != "HERE/out":
        assert not changed, changed


# Manifests.

JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(10**30), 10**30),
        st.floats(),
        st.text(max_size=8),
        st.sampled_from([0, -1, 1, 2, 3, 8, 20, 10**12, 2**31, 2**63, 1e308, "float16", "<f4", "O", "../x"]),
    ),
    lambda children: st.one_of(
        st.lists(children, max_size=3), st.dictionaries(st.text(max_size=4), children, max_size=3)
    ),
    max_leaves=4,
)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return hostile_files.Copies(tmp_path_factory.mktemp("stores"))


@functools.cache
def _fields(store):
    return json.loads((store.original / "manifest.json").read_text())


@fuzz(500)
@hypothesis.given(data=st.data())
def test_store_refuses_or_reads_any_manifest(store, data):
    fields = dict(_fields(store))
    for name in data.draw(st.lists(st.sampled_from([*fields, "unknown"]), min_size=1, max_size=3)):
        if data.draw(st.booleans()):
            fields[name] = data.draw(JSON)
        else:
            fields.pop(name, None)
    text = json.dumps(fields)
    depth = data.draw(st.sampled_from([0, 0, 0, 3, 2000, 100_000]))
    attempt = store.attempt(lambda copy: (copy / "manifest.json").write_text("[" * depth + text + "]" * depth))
    assert attempt.state == "survived", (attempt.note, text[:500])


def _mutate(content, seed):
    """Return bytes in which some are changed, removed, repeated or added."""
    generator, content = random.Random(seed), bytearray(content)
    for _ in range(generator.randint(1, 4)):
        at = generator.randrange(len(content)) if content else 0
        length = generator.choice((1, 2, 8, 64, 1024))
        change = generator.randrange(4)
        if change == 0:
            del content[at : at + length]
        elif change == 1:
            content[at:at] = generator.randbytes(length)
        elif change == 2:
            content[at : at + length] = generator.randbytes(len(content[at : at + length]))
        else:
            content[at:at] = content[at : at + length]
    return bytes(content)


@fuzz(200)
@hypothesis.given(
    file=st.sampled_from(["manifest.json", "examples.npy", "view-00000.shard-00000.npy"]), seed=st.integers(0)
)
def test_store_refuses_or_reads_any_bytes(store, file, seed):
    def change(copy):
        path = copy / file
        path.write_bytes(_mutate(path.read_bytes(), seed))

    attempt = store.attempt(change)
    assert attempt.state == "survived", attempt.note


# Backups.


@pytest.fixture(scope="module")
def backup(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backup")
    return folder, disks.backup(folder / "whole")


def _read(folder, content):
    """Return the position of a `ExactBackupAndRestore` in a folder with these bytes and a whole one before them."""
    place = folder / "place"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    (place / "000000-00000000.backup").write_bytes((folder / "first").read_bytes())
    (place / "000001-00000000.backup").write_bytes(content)
    before = snapshot(place)
    tracemalloc.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return callbacks.ExactBackupAndRestore(place, 2).initial_position
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert snapshot(place) == before and peak < hostile_files.LIMIT_MIB * 2**20


def _is_right(folder, content, *, position=(0, 0)):
    """Return whether the changed backup is skipped, refused in a line, or read at a position that it now has."""
    try:
        return _read(folder, content) in ([0, 0], position)
    except Exception as error:
        return is_user_error(error)


@fuzz(300)
@hypothesis.given(seed=st.integers(0))
def test_backup_skips_any_damaged_bytes(backup, seed):
    folder, content = backup
    (folder / "first").write_bytes(content)
    changed = _mutate(content, seed)
    hypothesis.assume(changed != content)
    assert _is_right(folder, changed)


@fuzz(400)
@hypothesis.given(data=st.data())
def test_backup_skips_or_refuses_any_signed_description(backup, data):
    folder, content = backup
    (folder / "first").write_bytes(content)
    run = hostile_files.description(content)
    name = data.draw(st.sampled_from([*run, "unknown"]))
    value = data.draw(JSON)
    hypothesis.assume(name != "unknown" and run[name] != value)
    changed = hostile_files.with_description(content, json.dumps({**run, name: value}))
    assert _is_right(folder, changed, position=value if name == "position" else None), (name, value)


# Labels and weights.

X, Y = material.examples(inputs.ROWS)
DTYPES = st.one_of(
    arrays_of.integer_dtypes(),
    arrays_of.unsigned_integer_dtypes(),
    arrays_of.floating_dtypes(sizes=(16, 32, 64)),
    arrays_of.boolean_dtypes(),
    arrays_of.complex_number_dtypes(),
    arrays_of.datetime64_dtypes(),
    arrays_of.byte_string_dtypes(max_len=2),
)
ROWS = inputs.ROWS
SHAPES = st.sampled_from([(ROWS,), (ROWS,), (ROWS, 1), (ROWS, material.CLASSES), (ROWS - 1,), (ROWS, 2, 2), (), (0,)])


def _valid_labels(labels, one_hot):
    """Return whether an array is labels of the fuzzed Distiller, by the definition of its documentation."""
    if labels.shape[:1] != (ROWS,) or labels.dtype.kind not in "biuf":
        return False
    values = labels.astype("float64")
    if one_hot:
        return labels.shape == (ROWS, material.CLASSES) and bool((np.isfinite(values) & (values >= 0)).all())
    in_range = (values >= 0) & (values < material.CLASSES) & (values == np.floor(values))
    return labels.shape in ((ROWS,), (ROWS, 1)) and bool(in_range.all())


@functools.cache
def _distiller(one_hot, rank):
    """Return a Distiller for arrays of one rank: TensorFlow forgets the rank that steps of two ranks have in common."""
    return material.distiller(one_hot)


def _check(rank, y, valid, one_hot=False, **kwargs):
    """Assert that `fit` refuses what is not valid, in a line, and trains on what is to finite losses."""
    distiller = _distiller(one_hot, rank)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        finite, error = inputs.fit_outcome(distiller, X, y, **kwargs)
    assert error is None or inputs.is_refusal(error), error
    assert bool(finite) == valid, error or f"trained, finite={finite}"


@fuzz(300)
@hypothesis.given(data=st.data(), one_hot=st.booleans())
def test_fit_refuses_or_trains_on_any_labels(data, one_hot):
    elements = None
    if data.draw(st.booleans()):  # Near the range, in a dtype that has such numbers.
        dtype = data.draw(st.sampled_from(["int8", "int64", "uint64", "float32", "float64"]))
        elements = st.integers(0, material.CLASSES) if "u" in dtype else st.integers(-1, material.CLASSES)
    else:
        dtype = data.draw(DTYPES)
    labels = data.draw(arrays_of.arrays(dtype, data.draw(SHAPES), elements=elements))
    valid = _valid_labels(labels, one_hot)
    hypothesis.assume(not (one_hot and valid) or labels.astype("float64").max() < 1e6)
    _check(labels.ndim, labels, valid, one_hot)


@fuzz(200)
@hypothesis.given(data=st.data())
def test_fit_refuses_or_trains_with_any_sample_weight(data):
    weight = data.draw(arrays_of.arrays(data.draw(DTYPES), data.draw(SHAPES)))
    hypothesis.assume(weight.dtype.kind not in "iuf" or not np.abs(weight.astype("float64")).max(initial=0) > 1e6)
    number = weight.dtype.kind in "iufb" and weight.shape in ((ROWS,), (ROWS, 1))
    valid = number and bool((np.isfinite(weight.astype("float64")) & (weight.astype("float64") >= 0)).all())
    _check(weight.ndim, Y, valid, sample_weight=weight)


KEYS = st.one_of(st.integers(-2, 8), st.floats(), st.text(max_size=2), st.none(), st.booleans())
WEIGHTS = st.one_of(st.floats(), st.floats(0, 10), st.integers(0, 5), st.text(max_size=2), st.none())


@fuzz(200)
@hypothesis.given(weights=st.one_of(st.dictionaries(KEYS, WEIGHTS, max_size=4), JSON))
def test_fit_refuses_or_trains_with_any_class_weight(weights):
    if isinstance(weights, dict):
        hypothesis.assume(not any(isinstance(value, float) and abs(value) > 1e6 for value in weights.values()))
    _check(1, Y, _valid_class_weight(weights), class_weight=weights)


def _valid_class_weight(weights):
    def is_weight(key, value):
        of_a_class = type(key) is int and 0 <= key < material.CLASSES
        return of_a_class and type(value) in (int, float) and 0 <= value < np.inf

    return weights is None or (isinstance(weights, dict) and all(is_weight(*item) for item in weights.items()))
