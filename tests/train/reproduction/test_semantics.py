"""CIFAR-100's superclasses against TFDS's coarse labels, and similarities in WordNet where it is installed."""

import math
import os
import pathlib
import sys

import numpy as np
import pytest

from reproduction.semantics import (
    SUPERCLASSES,
    WORDNET_SYNSETS,
    superclass_similarity,
    superclasses,
    wordnet_similarity,
)

FOLDERS = (os.environ.get("TFDS_DATA_DIR"), pathlib.Path(__file__).parents[4] / "shared" / "tensorflow_datasets")
CLASSES = sorted(" ".join(SUPERCLASSES.values()).split())


def _cifar100():
    """TFDS's builder, where the data set is prepared on this machine; else the test is skipped."""
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


def test_twenty_superclasses_of_five():
    assert len(CLASSES) == len(set(CLASSES)) == 100
    np.testing.assert_array_equal(np.bincount(superclasses(CLASSES)), np.full(20, 5))
    same = superclass_similarity(["oak_tree", "bus", "train", "pine_tree"])
    np.testing.assert_array_equal(same, [[1, 0, 0, 1], [0, 1, 1, 0], [0, 1, 1, 0], [1, 0, 0, 1]])
    with pytest.raises(ValueError, match="must be names of CIFAR-100. Received: 'dog'; 1 of 2 are not"):
        superclasses(["bus", "dog"])


def test_the_superclasses_are_those_of_the_data():
    tfds, builder = _cifar100()
    features = builder.info.features
    assert features["label"].names == CLASSES and features["coarse_label"].names == list(SUPERCLASSES)
    skipped = {"image": tfds.decode.SkipDecoding()}
    batch = next(iter(tfds.as_numpy(builder.as_dataset(split="test", batch_size=10_000, decoders=skipped))))
    np.testing.assert_array_equal(superclasses(CLASSES)[batch["label"]], batch["coarse_label"])
    assert len(set(batch["label"])) == 100


def test_similarity_in_wordnet():
    wordnet = _wordnet()
    names = ["oak_tree", "pine_tree", "bus", "beaver"]
    for measure, method in (("wup", "wup_similarity"), ("lch", "lch_similarity")):
        found = wordnet_similarity(names, measure)
        oak, beaver = wordnet.synset("oak.n.02"), wordnet.synset("beaver.n.07")
        assert found[0, 3] == found[3, 0] == pytest.approx(getattr(oak, method)(beaver))
        assert found[0, 1] > max(found[0, 3], found[0, 2])
        assert (found[0] <= found[0, 0]).all()
    assert wordnet_similarity(["bus"])[0, 0] == 1
    # An oak is a tree, a pine a conifer, a gymnospermous tree and so a tree: four edges, and nouns are 19 deep.
    assert wordnet_similarity(names, "lch")[0, 1] == pytest.approx(-math.log(5 / 38))
    with pytest.raises(ValueError, match="no noun 'wug'. Give its synset"):
        wordnet_similarity(["bus", "wug"])


def test_every_class_is_a_noun_that_is_a_thing():
    wordnet = _wordnet()
    assert set(WORDNET_SYNSETS) <= set(CLASSES)
    for name in CLASSES:
        synset = wordnet.synset(WORDNET_SYNSETS[name]) if name in WORDNET_SYNSETS else wordnet.synsets(name, "n")[0]
        above = {parent.name() for path in synset.hypernym_paths() for parent in path}
        assert "physical_entity.n.01" in above, f"{name}: {synset.definition()}"
    groups, near = superclasses(CLASSES), wordnet_similarity(CLASSES)
    same = (groups[:, None] == groups) & ~np.eye(100, dtype=bool)
    assert near[same].mean() > near[groups[:, None] != groups].mean() + 0.2


def test_what_is_missing_is_said(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="`measure` must be 'wup' or 'lch'. Received: measure='path'"):
        wordnet_similarity(["bus"], "path")
    monkeypatch.setitem(sys.modules, "nltk", None)
    monkeypatch.delitem(sys.modules, "nltk.corpus", raising=False)
    with pytest.raises(ImportError, match="pip install nltk"):
        wordnet_similarity(["bus"])


def test_missing_data_is_said(monkeypatch):
    class Absent:
        def ensure_loaded(self):
            raise LookupError("a page of text")

    corpus = pytest.importorskip("nltk.corpus")
    monkeypatch.setattr(corpus, "wordnet", Absent())  # The real one would look for its files, to be patched.
    with pytest.raises(LookupError, match="nltk.downloader wordnet"):
        wordnet_similarity(["bus"])
