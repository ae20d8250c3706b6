"""Figure 4 and the contact sheet of a run that is really trained: against the networks themselves."""

import dataclasses
import types

import keras
import numpy as np
import pytest

from keras_wsl import data, models, ops, weighting
from keras_wsl.analysis.class_affinity import class_affinity
from keras_wsl.training import artifacts, runner
from reproduction import contact_sheet, figure4, launcher
from tests.common import bright_splits
from tests.train.reproduction.test_bias_variance import SMALL

pytestmark = pytest.mark.eager


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a KD run at temperature 3 on 40 of 60 examples, and the file of its data."""
    folder = tmp_path_factory.mktemp("resemblance")
    data.save_npz(bright_splits(60), folder / "images.npz")
    teacher = models.build("tiny", 3, input_shape=(8, 8, 3))
    models.save_weights(teacher, folder / "teacher.weights.h5")
    taught = {"teacher_weights": str(folder / "teacher.weights.h5"), "method": "kd", "temperature": 3.0}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner.export, "export_saved_model", lambda *args, **kwargs: None)
        wanted = dataclasses.replace(SMALL, max_train_examples=40, **taught)
        runner.run(wanted, bright_splits(60), folder / "kd", verbose=0)
        alone = dataclasses.replace(SMALL, teacher="", max_train_examples=0)
        runner.run(alone, bright_splits(60), folder / "none", verbose=0)
    return folder


def _values(run, out, **changes):
    return types.SimpleNamespace(
        **{
            "data_dir": str(run / "images.npz"),
            "output_dir": str(out),
            "split": "train",
            "temperature": None,
            "count": 5,
            **changes,
        }
    )


def _both(run, examples):
    inputs = examples.inputs(np.arange(len(examples)))
    student = keras.saving.load_model(run / "kd" / "student.keras", compile=False)
    teacher = models.build("tiny", 3, input_shape=(8, 8, 3), weights=str(run / "teacher.weights.h5"))
    networks = {"student_logits": student, "teacher_logits": teacher}
    return {name: keras.ops.convert_to_numpy(model(inputs, training=False)) for name, model in networks.items()}


def test_the_matrix_is_of_the_runs_examples_and_temperature(run, tmp_path):
    figure4.run(run / "kd", _values(run, tmp_path / "out"))
    train = bright_splits(60).train.stratified_subset(40, seed=0)
    expected = class_affinity(train.labels, **_both(run, train), temperature=3.0)
    rows = artifacts.read_texts(tmp_path / "out" / "resemblance.csv")
    assert [row["class"] for row in rows] == ["dark", "grey", "light"]
    found = [[float(row[name]) for name in ("dark", "grey", "light")] for row in rows]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    text = (tmp_path / "out" / "resemblance.md").read_text()
    assert "over 40 examples" in text and "temperature 3:" in text and "not CIFAR-100's" in text
    off = np.where(np.eye(3, dtype=bool), np.inf, expected)
    c, k = np.unravel_index(off.argmin(), off.shape)
    names = train.classes
    assert text.index(f"| {names[c]} | {names[k]} |") == min(text.index(f"| {a} | ") for a in names)
    assert (tmp_path / "out" / "resemblance.png").read_bytes()[:4] == b"\x89PNG"


def test_the_test_set_at_another_temperature(run, tmp_path):
    figure4.run(run / "kd", _values(run, tmp_path, split="test", temperature=1.5))
    test = bright_splits(60).test
    expected = class_affinity(test.labels, **_both(run, test), temperature=1.5)
    row = artifacts.read_texts(tmp_path / "resemblance.csv")[1]
    np.testing.assert_allclose([float(row[name]) for name in test.classes], expected[1], atol=1e-5)


@pytest.mark.parametrize("error", [ImportError, LookupError, OSError])
def test_superclasses_are_compared_and_wordnet_if_it_is_there(error, monkeypatch):
    classes = ("bee", "beetle", "bus", "train")
    order, groups = figure4.order_by_superclass(classes)
    assert list(order) == [0, 1, 2, 3] and groups[0] == groups[1] != groups[2]
    matrix = np.where(groups[:, None] == groups, -1.0, 0.0) - 0.01 * np.arange(16).reshape(4, 4)

    def absent(*args):
        raise error("nltk has no WordNet here: do this.")

    monkeypatch.setattr(figure4.semantics, "wordnet_similarity", absent)
    rows, missing = figure4.compare_similarities(matrix, classes, groups)
    assert [row["similarity"] for row in rows] == ["same superclass"] and float(rows[0]["Spearman"]) < -0.5
    assert len(missing) == 2 and "WordNet, LCH, was not compared. nltk has no WordNet here: do this." in missing
    monkeypatch.setattr(figure4.semantics, "wordnet_similarity", lambda names, measure: -matrix)
    rows, missing = figure4.compare_similarities(matrix, classes, groups)
    assert [row["Spearman"] for row in rows[1:]] == ["-1.000"] * 2 and not missing


def test_the_sheet_has_the_ends_of_the_weights(run, tmp_path):
    contact_sheet.run(run / "kd", _values(run, tmp_path))
    train = bright_splits(60).train.stratified_subset(40, seed=0)
    student, teacher = _both(run, train).values()
    weights = keras.ops.convert_to_numpy(weighting.wsl(train.labels, student, teacher))
    rows = artifacts.read_texts(tmp_path / "contact_sheet.csv")
    found = {end: [float(row["weight"]) for row in rows if row["end"] == end] for end in ("highest", "lowest")}
    np.testing.assert_allclose(found["highest"], np.sort(weights)[::-1][:5], rtol=1e-4)
    np.testing.assert_allclose(found["lowest"], np.sort(weights)[:5], rtol=1e-4)
    row = rows[-1]
    i = int(row["position"])
    assert int(row["index"]) == train.index[i] and row["class"] == train.classes[train.labels[i]]
    entropies = [float(keras.ops.convert_to_numpy(ops.cross_entropy(train.labels, z))[i]) for z in (student, teacher)]
    shown = [float(row[f"{whose}_cross_entropy"]) for whose in ("student", "teacher")]
    np.testing.assert_allclose(shown, entropies, rtol=1e-4)
    assert (tmp_path / "contact_sheet.png").read_bytes()[:4] == b"\x89PNG"


def test_what_cannot_be_judged_is_refused(run, tmp_path):
    for script in (figure4, contact_sheet):
        with pytest.raises(ValueError, match="none has no teacher: --method=none"):
            script.run(run / "none", _values(run, tmp_path))
        with pytest.raises(FileNotFoundError, match="holds no finished run"):
            script.run(run, _values(run, tmp_path))
        with pytest.raises(ValueError, match="--output_dir is missing"):
            script.run(run / "kd", _values(run, ""))
    pair = launcher.load_logits(run / "kd", bright_splits(60))
    maps = pair._replace(config=dataclasses.replace(pair.config, method="at", temperature=None))
    with pytest.raises(ValueError, match="--method=at has no temperature. Pass --temperature"):
        figure4.get_temperature(maps, "run", None)
    assert figure4.get_temperature(pair, "run", None) == 3.0
