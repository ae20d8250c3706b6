"""CIFAR-100's superclasses against TFDS's coarse labels, and WordNet similarities if it is installed."""

import math
import os
import pathlib
import sys

import numpy as np
import pytest

from keras_wsl.analysis.semantics import (
    SUPERCLASSES,
    WORDNET_SYNSETS,
    superclass_similarity,
    superclasses,
    wordnet_similarity,
)

FOLDERS = (os.environ.get("TFDS_DATA_DIR"), pathlib.Path(__file__).parents[3] / "shared" / "tensorflow_datasets")
CLASSES = sorted(" ".join(SUPERCLASSES.values()).split())


def _cifar100():
    """Return TFDS's builder, or skip the test if the data set is not prepared on this machine."""
    tfds = pytest.importorskip("tensorflow_datasets")
    for folder in filter(None, FOLDERS):
        if (pathlib.Path(folder) / "cifar100").is_dir():
            return tfds, tfds.builder("cifar100", data_dir=str(folder))
    return pytest.skip("CIFAR-100 is in no TFDS folder here")


def _wordnet():
    pytest.importorskip("nltk")
    from nltk.corpus import wordnet

    try:
        wordnet.ensure_loaded()
    except LookupError:
        pytest.skip("nltk has no WordNet here")
    return wordnet


def test_superclasses_has_twenty_groups_of_five():
    assert len(CLASSES) == len(set(CLASSES)) == 100
    np.testing.assert_array_equal(np.bincount(superclasses(CLASSES)), np.full(20, 5))
    same = superclass_similarity(["oak_tree", "bus", "train", "pine_tree"])
    np.testing.assert_array_equal(same, [[1, 0, 0, 1], [0, 1, 1, 0], [0, 1, 1, 0], [1, 0, 0, 1]])
    with pytest.raises(ValueError, match="of CIFAR-100. Received: 'dog'; 1 of 2 are not"):
        superclasses(["bus", "dog"])


def test_superclasses_match_the_dataset():
    tfds, builder = _cifar100()
    features = builder.info.features
    assert features["label"].names == CLASSES and features["coarse_label"].names == list(SUPERCLASSES)
    skipped = {"image": tfds.decode.SkipDecoding()}
    batch = next(iter(tfds.as_numpy(builder.as_dataset(split="test", batch_size=10_000, decoders=skipped))))
    np.testing.assert_array_equal(superclasses(CLASSES)[batch["label"]], batch["coarse_label"])
    assert len(set(batch["label"])) == 100


def test_wordnet_similarity_of_known_nouns():
    wordnet = _wordnet()
    names = ["oak_tree", "pine_tree", "bus", "beaver"]
    for measure, method in (("wup", "wup_similarity"), ("lch", "lch_similarity")):
        result = wordnet_similarity(names, measure)
        oak, beaver = wordnet.synset("oak.n.02"), wordnet.synset("beaver.n.07")
        assert result[0, 3] == result[3, 0] == pytest.approx(getattr(oak, method)(beaver))
        assert result[0, 1] > max(result[0, 3], result[0, 2])
        assert (result[0] <= result[0, 0]).all()
    assert wordnet_similarity(["bus"])[0, 0] == 1
    # An oak is a tree; a pine is a conifer, a gymnospermous tree and thus a tree: four edges. The depth of nouns is 19.
    assert wordnet_similarity(names, "lch")[0, 1] == pytest.approx(-math.log(5 / 38))
    with pytest.raises(ValueError, match="Received: 'wug'. Pass its synset"):
        wordnet_similarity(["bus", "wug"])


def test_wordnet_synsets_of_all_classes_are_physical_objects():
    wordnet = _wordnet()
    assert set(WORDNET_SYNSETS) <= set(CLASSES)
    for name in CLASSES:
        synset = wordnet.synset(WORDNET_SYNSETS[name]) if name in WORDNET_SYNSETS else wordnet.synsets(name, "n")[0]
        above = {parent.name() for path in synset.hypernym_paths() for parent in path}
        assert "physical_entity.n.01" in above, f"{name}: {synset.definition()}"
    groups, near = superclasses(CLASSES), wordnet_similarity(CLASSES)
    same = (groups[:, None] == groups) & ~np.eye(100, dtype=bool)
    assert near[same].mean() > near[groups[:, None] != groups].mean() + 0.2


def test_wordnet_similarity_refuses_unknown_measure_and_missing_package(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="must be 'wup' or 'lch'. Received: measure='path'"):
        wordnet_similarity(["bus"], "path")
    monkeypatch.setitem(sys.modules, "nltk", None)
    monkeypatch.delitem(sys.modules, "nltk.corpus", raising=False)
    with pytest.raises(ImportError, match="pip install nltk"):
        wordnet_similarity(["bus"])


def test_wordnet_similarity_reports_missing_data(monkeypatch):
    class Absent:
        def ensure_loaded(self):
            raise LookupError("a page of text")

    corpus = pytest.importorskip("nltk.corpus")
    monkeypatch.setattr(corpus, "wordnet", Absent())  # The real one would look for its files, to be patched.
    with pytest.raises(LookupError, match="nltk.downloader wordnet"):
        wordnet_similarity(["bus"])
