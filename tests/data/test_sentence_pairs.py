"""Pairs of sentences: their tokens, the lengths of batches, and MultiNLI."""

import dataclasses
import itertools
import pathlib
import random

import numpy as np
import pytest

from keras_wsl.data import SentencePairs, eval_batches, multinli, sentence_pairs, tfds_builder, train_batches
from keras_wsl.data.multinli import _load_split

tf = pytest.importorskip("tensorflow")
tfds = pytest.importorskip("tensorflow_datasets")
keras_nlp = pytest.importorskip("keras_nlp")

SHARED = pathlib.Path(__file__).resolve().parents[3] / "shared"
LETTERS = "abcdefghij"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, "##b", "yes", "no"]
PAD, UNK, CLS, SEP = range(4)
CLASSES = ("entailment", "neutral", "contradiction")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("\n".join(WORDS) + "\n")
    return keras_nlp.models.BertTokenizer(str(path), lowercase=True)


def numbers(text):
    return [WORDS.index(word) for word in text.split()]


def pairs_of(*pairs, tokenizer, length=16, **settings):
    text_a, text_b = zip(*pairs)
    settings = {"labels": np.arange(len(pairs)) % 3, "classes": CLASSES, **settings}
    return SentencePairs.from_text(text_a, text_b, tokenizer=tokenizer, length=length, **settings)


def make(count=100, length=50, longest=50):
    """Return pairs of random tokens with many lengths."""
    draw = np.random.default_rng(1)
    lengths = draw.integers(3, longest + 1, count)
    inside = np.arange(length) < lengths[:, None]
    tokens = draw.integers(4, len(WORDS), (count, length)) * inside
    segments = (np.arange(length) > draw.integers(1, lengths)[:, None]) & inside
    return SentencePairs(
        tokens, segments, lengths, draw.integers(0, 3, count), CLASSES, draw.permutation(4 * count)[:count]
    )


def numpy_batches(dataset, count=None):
    """Return batches as dicts of NumPy arrays."""
    batches = itertools.islice(iter(dataset), count)
    return [{name: np.asarray(array) for name, array in {**x, **y}.items()} for x, y in batches]


def assert_same_bits(ones, others):
    assert len(ones) == len(others)
    for one, other in zip(ones, others):
        assert list(one) == list(other)
        for name in one:
            assert one[name].dtype == other[name].dtype and one[name].shape == other[name].shape
            assert one[name].tobytes() == other[name].tobytes()


def test_from_text_adds_start_and_end_tokens(tokenizer):
    pairs = pairs_of(("a b c", "d ab!"), ("a", ""), ("Q", "J I"), tokenizer=tokenizer)
    expected = ["[CLS] a b c [SEP] d a ##b [UNK] [SEP]", "[CLS] a [SEP] [SEP]", "[CLS] [UNK] [SEP] j i [SEP]"]
    for row, text in enumerate(expected):
        count = len(text.split())
        assert pairs.token_ids[row].tolist() == numbers(text) + [PAD] * (16 - count)
        first = text.split().index("[SEP]") + 1
        assert pairs.segment_ids[row].tolist() == [0] * first + [1] * (count - first) + [0] * (16 - count)
        assert pairs.lengths[row] == count
    assert pairs.truncated.tolist() == [False] * 3 and pairs.summary == {
        "examples": 3,
        "classes": 3,
        "truncated_pairs": 0,
    }
    assert pairs.input_shape == (16,) and pairs.augmentation == {}
    inputs = pairs.inputs(np.array([2, 0]))
    assert inputs["padding_mask"].tolist() == [[1] * 6 + [0] * 10, [1] * 10 + [0] * 6]
    assert {array.dtype for array in inputs.values()} == {np.dtype("int32")}


def test_from_text_truncates_the_longer_sentence(tokenizer):
    expected = {
        ("a a a a a a a a", "b"): "[CLS] a a a a a a [SEP] b [SEP]",
        ("a", "b b b b b b b b"): "[CLS] a [SEP] b b b b b b [SEP]",
        ("a b c d e f g h", "b c d e f g h i"): "[CLS] a b c d [SEP] b c d [SEP]",
        ("a b c", "d e f g"): "[CLS] a b c [SEP] d e f g [SEP]",
        ("a b c", "d e f g h"): "[CLS] a b c [SEP] d e f g [SEP]",
    }
    pairs = pairs_of(*expected, tokenizer=tokenizer, length=10)
    assert pairs.token_ids.tolist() == [numbers(text) for text in expected.values()]
    assert pairs.truncated.tolist() == [True, True, True, False, True] and pairs.lengths.tolist() == [10] * 5


def test_from_text_records_truncated_pairs_of_all_chunks(tokenizer, monkeypatch):
    monkeypatch.setattr(sentence_pairs, "_CHUNK", 7)
    draw = random.Random(0)
    texts = [tuple(" ".join(draw.choices(LETTERS, k=draw.randint(1, 12))) for _ in range(2)) for _ in range(40)]
    pairs = pairs_of(*texts, tokenizer=tokenizer, length=15, index=np.arange(40)[::-1])
    sizes = [len(f"{first} {second}".split()) + 3 for first, second in texts]
    np.testing.assert_array_equal(pairs.lengths, np.minimum(sizes, 15))
    np.testing.assert_array_equal(pairs.truncated, np.array(sizes) > 15)
    assert pairs.summary == {"examples": 40, "classes": 3, "truncated_pairs": sum(size > 15 for size in sizes)}
    np.testing.assert_array_equal(pairs.index, np.arange(40)[::-1])
    for tokens, segments, (first, second), size in zip(pairs.token_ids, pairs.segment_ids, texts, pairs.lengths):
        shown = [tokens[1:size][segments[1:size] == k][:-1].tolist() for k in range(2)]
        for found, text in zip(shown, (first, second)):
            assert found and found == numbers(text)[: len(found)]
        assert tokens[0] == CLS and (tokens[:size] == SEP).sum() == 2 and not tokens[size:].any()


@pytest.mark.parametrize("pipeline", ["numpy", "tensorflow"], ids=["numpy", "tf.data"])
def test_batches_are_trimmed_to_multiple_of_sixteen(pipeline):
    pairs = make()
    place = {number: row for row, number in enumerate(pairs.index)}
    short = make(40, length=50, longest=20)
    widths = set()
    for part, dataset in (
        (pairs, train_batches(pairs, seed=0, batch_size=3, pipeline=pipeline)),
        (short, eval_batches(short, 3, pipeline=pipeline)),
    ):
        place = {number: row for row, number in enumerate(part.index)}
        for batch in numpy_batches(dataset, 14):
            rows = [place[number] for number in batch["index"]]
            width, longest = batch["token_ids"].shape[1], part.lengths[rows].max()
            assert width == min(-(-longest // 16) * 16, 50)
            widths.add(width)
            np.testing.assert_array_equal(batch["token_ids"], part.token_ids[rows, :width])
            np.testing.assert_array_equal(batch["segment_ids"], part.segment_ids[rows, :width])
            np.testing.assert_array_equal(batch["padding_mask"].sum(1), part.lengths[rows])
            np.testing.assert_array_equal(batch["padding_mask"], batch["token_ids"] > 0)
            np.testing.assert_array_equal(batch["labels"], part.labels[rows])
            assert not part.token_ids[rows, width:].any()
    assert widths == {16, 32, 48, 50}


@pytest.mark.parametrize("start", [(0, 0), (1, 3)])
def test_pipelines_have_the_same_bits(start):
    pairs = make()
    settings = {"seed": 7, "batch_size": 16, "initial_position": start, "one_hot": start == (1, 3)}
    ours, theirs = (train_batches(pairs, pipeline=name, **settings) for name in ("numpy", "tensorflow"))
    assert_same_bits(numpy_batches(ours, 16), numpy_batches(theirs, 16))
    whole = numpy_batches(train_batches(pairs, pipeline="numpy", **{**settings, "initial_position": (0, 0)}), 20)
    skipped = 7 * start[0] + start[1]
    assert_same_bits(numpy_batches(train_batches(pairs, pipeline="numpy", **settings), 5), whole[skipped:][:5])
    for epoch in (whole[:7], whole[7:14]):
        seen = np.concatenate([batch["index"] for batch in epoch])
        np.testing.assert_array_equal(np.sort(seen), np.sort(pairs.index))
    ours, theirs = (eval_batches(pairs, 16, pipeline=name) for name in ("numpy", "tensorflow"))
    assert_same_bits(numpy_batches(ours), numpy_batches(theirs))


def test_subsets_keep_all_fields():
    pairs = dataclasses.replace(make(300), truncated=np.arange(300) % 4 == 0)
    taken = pairs.stratified_subset(60, seed=2)
    share = 60 * np.bincount(pairs.labels) / 300
    assert (np.abs(np.bincount(taken.labels) - share) <= 1).all()
    rest, held = pairs.stratified_split(60, seed=2)
    assert not set(rest.index) & set(held.index) and len(rest) == 240
    np.testing.assert_array_equal(taken.index, held.index)
    rows = [list(pairs.index).index(number) for number in held.index]
    for name in pairs.PER_EXAMPLE_FIELDS:
        np.testing.assert_array_equal(getattr(held, name), getattr(pairs, name)[rows])
    assert held.summary == {"examples": 60, "classes": 3, "truncated_pairs": int(pairs.truncated[rows].sum())}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"length": 4}, "`length` must be at least 5.* Received: length=4"),
        ({"labels": np.zeros(2, int)}, "must have the same length. Received: 1, 1 and 2"),
        ({"labels": np.array([3])}, r"in \[0, 2\], because there are 3 classes. Received: label 3 for example 0"),
    ],
)
def test_from_text_rejects_invalid_arguments(tokenizer, settings, message):
    with pytest.raises(ValueError, match=message):
        pairs_of(("a", "b"), tokenizer=tokenizer, **settings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"token_ids": np.zeros(100)}, r"must have the same shape .* Received: \(100,\)"),
        ({"segment_ids": np.zeros((100, 49))}, r"the same shape \(n, length\). Received: .* and \(100, 49\)"),
        ({"lengths": np.full(100, 51)}, "`lengths` must be 100 integers from 1 to 50"),
        ({"lengths": np.zeros(100)}, "`lengths` must be"),
        ({"lengths": np.ones(99)}, "`lengths` must be"),
        ({"truncated": np.zeros(99)}, r"`truncated` must have shape \(100,\). Received: shape \(99,\)"),
        ({"labels": np.full(100, -1)}, r"in \[0, 2\], .* Received: label -1"),
        ({"index": np.zeros(100, int)}, "a distinct integer"),
    ],
)
def test_sentence_pairs_rejects_invalid_fields(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(make(), **changes)


def test_sentences_are_not_augmented():
    for pipeline in ("numpy", "tensorflow"):
        with pytest.raises(ValueError, match=r"SentencePairs has the arguments \[\]. Received: \['flip'\]"):
            train_batches(make(), seed=0, batch_size=4, pipeline=pipeline, flip=True)


def test_bert_outputs_do_not_depend_on_trimming():
    pairs = make(8, length=40, longest=12)
    backbone = keras_nlp.models.BertBackbone(
        len(WORDS), num_layers=2, num_heads=2, hidden_dim=8, intermediate_dim=16, dropout=0.0, max_sequence_length=40
    )
    rows = np.arange(8)
    cut = pairs.inputs(rows)
    assert cut["token_ids"].shape == (8, 16)
    whole = {name: np.pad(array, [(0, 0), (0, 24)]) for name, array in cut.items()}
    np.testing.assert_array_equal(whole["token_ids"], pairs.token_ids)
    short, long = (
        {name: np.asarray(array) for name, array in backbone.predict(inputs, verbose=0).items()}
        for inputs in (cut, whole)
    )
    np.testing.assert_allclose(short["pooled_output"], long["pooled_output"], atol=1e-5)
    tokens = cut["padding_mask"] == 1
    np.testing.assert_allclose(short["sequence_output"][tokens], long["sequence_output"][:, :16][tokens], atol=1e-5)


SPLITS = {"train": 40, "validation_matched": 4, "validation_mismatched": 3}


def rows_of(split):
    """Yield premise, hypothesis and label. Every fifth pair has no label."""
    draw = random.Random(split)
    words = [[" ".join(draw.choices(LETTERS, k=draw.randint(1, 6))) for _ in range(2)] for _ in range(SPLITS[split])]
    return [(*pair, -1 if number % 5 == 1 else number % 3) for number, pair in enumerate(words)]


def build(data_dir, *, glue, names=CLASSES):
    """Write `glue/mnli`, which has official numbers, or `multi_nli`, which has none, in two files per split."""
    text, label = tfds.features.Text(), tfds.features.ClassLabel(names=names)
    features = {"premise": text, "hypothesis": text, "label": label, **({"idx": tf.int32} if glue else {})}

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = "glue" if glue else "multi_nli"
        VERSION = tfds.core.Version("2.0.0")
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="mnli", version="2.0.0")] if glue else []
        url_infos = {}  # noqa: RUF012  Otherwise TFDS looks for checksums of downloads next to the code.

        def _info(self):
            return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

        def _split_generators(self, _):
            return {split: self._generate_examples(split) for split in SPLITS}

        def _generate_examples(self, split):
            for number, (premise, hypothesis, label) in enumerate(rows_of(split)):
                example = {"premise": premise, "hypothesis": hypothesis, "label": label}
                yield number, {**example, "idx": number} if glue else example

    Builder(data_dir=data_dir).download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=2))


def shown(pairs):
    """Return the two sentences of every pair and its label, from the tokens."""
    rows = []
    for tokens, segments, size, label in zip(pairs.token_ids, pairs.segment_ids, pairs.lengths, pairs.labels):
        parts = [tokens[1:size][segments[1:size] == k][:-1] for k in range(2)]
        rows.append((*(" ".join(WORDS[token] for token in part) for part in parts), int(label)))
    return rows


def test_multinli_of_glue_keeps_numbers_and_skips_hidden_labels(tmp_path, tokenizer):
    build(tmp_path, glue=True)
    splits = multinli(tmp_path, tokenizer=tokenizer, length=20)
    for name, pairs in zip(SPLITS, splits):
        rows = rows_of(name)
        kept = [number for number, row in enumerate(rows) if row[2] >= 0]
        np.testing.assert_array_equal(pairs.index, kept)
        assert shown(pairs) == [rows[number] for number in kept]
        assert pairs.classes == CLASSES and pairs.input_shape == (20,) and pairs.summary["truncated_pairs"] == 0
    assert splits.mismatched is splits[2]


def test_multinli_numbers_pairs_by_position(tmp_path, tokenizer):
    build(tmp_path, glue=False)
    builder = tfds_builder.find_builder("multi_nli", tmp_path, advice="")
    train = _load_split(builder, "train", tokenizer, 20)
    records = itertools.chain(*(tf.data.TFRecordDataset(path) for path in builder.info.splits["train"].filepaths))
    examples = [builder.info.features.deserialize_example_np(record.numpy()) for record in records]
    rows = [(e["premise"].decode(), e["hypothesis"].decode(), int(e["label"])) for e in examples]
    assert sorted(rows) == sorted(rows_of("train"))
    kept = [number for number, row in enumerate(rows) if row[2] >= 0]
    np.testing.assert_array_equal(train.index, kept)
    assert shown(train) == [rows[number] for number in kept]


def test_multinli_rejects_other_classes(tmp_path, tokenizer):
    build(tmp_path, glue=False, names=CLASSES[::-1])
    with pytest.raises(
        ValueError, match=r"multi_nli/2.0.0 must have the classes \('entail.* Received: \('contradiction"
    ):
        multinli(tmp_path, tokenizer=tokenizer)


def test_multinli_names_remedy_for_missing_data(tmp_path, tokenizer):
    with pytest.raises(FileNotFoundError, match="glue/mnli must have .*download=True.*data_dir"):
        multinli(tmp_path, tokenizer=tokenizer)


@pytest.mark.skipif(not (SHARED / "tensorflow_datasets" / "glue").is_dir(), reason="glue/mnli is not in ../shared")
def test_multinli_loads_real_sample():
    tokenizer = keras_nlp.models.BertTokenizer(str(SHARED / "bert" / "bert_base_uncased_vocab.txt"), lowercase=True)
    builder = tfds_builder.find_builder("glue/mnli", SHARED / "tensorflow_datasets", advice="")
    pairs = _load_split(builder, "validation_mismatched", tokenizer, 48)
    assert len(pairs) == 999 and pairs.input_shape == (48,) and np.bincount(pairs.labels).tolist() == [345, 319, 335]
    assert 200 < pairs.truncated.sum() < 400
    tokens, inside = pairs.token_ids, np.arange(48) < pairs.lengths[:, None]
    assert (tokens[:, 0] == tokenizer.cls_token_id).all()
    assert ((tokens == tokenizer.sep_token_id).sum(1) == 2).all()
    assert (tokens[np.arange(999), pairs.lengths - 1] == tokenizer.sep_token_id).all()
    np.testing.assert_array_equal(tokens > 0, inside)
    assert (pairs.segment_ids.sum(1) > 1).all()  # The hypothesis is there.
    assert (tokens == tokenizer.token_to_id("[UNK]")).mean() < 0.001
