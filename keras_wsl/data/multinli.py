"""MultiNLI: Williams et al., NAACL 2018, https://arxiv.org/abs/1704.05426."""

from typing import NamedTuple

import numpy as np

from keras_wsl.data import tfds_builder
from keras_wsl.data.sentence_pairs import SentencePairs

BUILDERS = ("multi_nli", "glue/mnli")
CLASSES = ("entailment", "neutral", "contradiction")


class MultiNLI(NamedTuple):
    """The splits of MultiNLI. `test` is the matched dev set, with the genres of train; `mismatched` has others."""

    train: SentencePairs
    test: SentencePairs
    mismatched: SentencePairs


def multinli(data_dir=None, *, tokenizer, length=128, download=False):
    """Load premises and hypotheses, labeled by whether the premise entails the hypothesis, contradicts it, or neither.

    Args:
        data_dir: A TFDS directory with `glue/mnli` or `multi_nli`. Default: TFDS's own (`TFDS_DATA_DIR`, else
            `~/tensorflow_datasets`).
        tokenizer: A tokenizer of keras-nlp with the networks' vocabulary, such as `keras_nlp.models.BertTokenizer`.
        length: Integer. Longer pairs are truncated, which `truncated` of each split records.
        download: Whether TFDS may download `glue/mnli`.

    Returns:
        `MultiNLI`. Pairs without a label are left out.

    Raises:
        FileNotFoundError: If the data set is missing and may not be downloaded.
        ValueError: If it has other classes.
    """
    advice = "Pass download=True (--download in the scripts), or set data_dir to its TFDS directory."
    try:
        builder = tfds_builder.find_builder(BUILDERS[0], data_dir, advice=advice)
    except FileNotFoundError:
        builder = tfds_builder.find_builder(BUILDERS[1], data_dir, advice=advice, download=download)
    classes = tuple(builder.info.features["label"].names)
    if classes != CLASSES:
        raise ValueError(f"{builder.info.full_name} must have the classes {CLASSES}. Received: {classes}.")
    splits = ("train", "validation_matched", "validation_mismatched")
    return MultiNLI(*(_load_split(builder, split, tokenizer, length) for split in splits))


def _load_split(builder, split, tokenizer, length):
    import tensorflow_datasets as tfds

    rows = []
    in_order = tfds.ReadConfig(interleave_cycle_length=1)
    for number, example in enumerate(tfds.as_numpy(builder.as_dataset(split=split, read_config=in_order))):
        if example["label"] >= 0:
            # GLUE has official numbers; multi_nli has only positions in its files.
            number = int(example.get("idx", number))
            rows.append((number, example["premise"].decode(), example["hypothesis"].decode(), int(example["label"])))
    index, premises, hypotheses, labels = zip(*sorted(rows))
    return SentencePairs.from_text(
        premises, hypotheses, np.array(labels), CLASSES, tokenizer=tokenizer, length=length, index=np.array(index)
    )
