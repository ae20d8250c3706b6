"""MultiNLI: Williams et al., NAACL 2018, https://arxiv.org/abs/1704.05426."""

from typing import NamedTuple

import numpy as np

from keras_wsl.data import tfds_builder
from keras_wsl.data.sentence_pairs import SentencePairs

NAMES = ("glue/mnli", "multi_nli")
CLASSES = ("entailment", "neutral", "contradiction")


class MultiNLI(NamedTuple):
    """The pairs of MultiNLI: `test` is the matched part of dev, of the genres of train, `mismatched` of others."""

    train: SentencePairs
    test: SentencePairs
    mismatched: SentencePairs


def multinli(data_dir=None, *, tokenizer, length=128, download=False):
    """Premises and hypotheses: does the second follow from the first, contradict it, or neither?

    Args:
        data_dir: A TFDS folder with `glue/mnli` or `multi_nli`, by default TFDS's own (`TFDS_DATA_DIR`, else
            `~/tensorflow_datasets`).
        tokenizer: A tokenizer of keras-nlp, such as `keras_nlp.models.BertTokenizer`, of the networks' vocabulary.
        length: Integer: longer pairs are truncated, and `truncated` of each split says which.
        download: Whether TFDS may fetch `glue/mnli`.

    Returns:
        `MultiNLI`. Pairs without a label, as of hidden ones, are left out.

    Raises:
        FileNotFoundError: The data set is not there, and may not be fetched.
        ValueError: Its classes are others.
    """
    advice = "Ask for download=True (--download in the scripts), or set data_dir to the TFDS folder that holds it."
    try:
        builder = tfds_builder.builder(NAMES[1], data_dir, advice=advice)
    except FileNotFoundError:
        builder = tfds_builder.builder(
            NAMES[0], data_dir, advice=f"{advice} {NAMES[1]} will do too.", download=download
        )
    classes = tuple(builder.info.features["label"].names)
    if classes != CLASSES:
        raise ValueError(f"{builder.info.full_name} has the classes {classes}; expected {CLASSES}.")
    splits = ("train", "validation_matched", "validation_mismatched")
    return MultiNLI(*(_pairs(builder, split, tokenizer, length) for split in splits))


def _pairs(builder, split, tokenizer, length):
    import tensorflow_datasets as tfds

    rows = []
    in_order = tfds.ReadConfig(interleave_cycle_length=1)
    for number, example in enumerate(tfds.as_numpy(builder.as_dataset(split=split, read_config=in_order))):
        if example["label"] >= 0:
            # Of GLUE, the official numbers; of multi_nli the place in its files.
            number = int(example.get("idx", number))
            rows.append((number, example["premise"].decode(), example["hypothesis"].decode(), int(example["label"])))
    index, premises, hypotheses, labels = zip(*sorted(rows))
    return SentencePairs.from_text(
        premises, hypotheses, np.array(labels), CLASSES, tokenizer=tokenizer, length=length, index=np.array(index)
    )
