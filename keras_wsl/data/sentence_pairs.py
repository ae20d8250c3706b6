"""Pairs of sentences in memory, as token ids."""

import dataclasses

import keras
import numpy as np

from keras_wsl.data.dataset import Dataset, fingerprint

_CHUNK = 1000  # Number of pairs tokenized at once.
PAD_TO_MULTIPLE_OF = 16  # Lengths of batches are multiples of it, so that a compiled step sees few shapes.


@dataclasses.dataclass(frozen=True, eq=False)
class SentencePairs(Dataset):
    """Pairs such as `[CLS] premise [SEP] hypothesis [SEP]`, each with a label.

    A batch is trimmed to its longest pair, rounded up to a multiple of 16 tokens. A BERT masks what is trimmed.

    Args:
        token_ids: Integers below 2**31, shape `(n, length)`, padded on the right.
        segment_ids: 0 for tokens of the first sentence, 1 for the second, of the same shape.
        lengths: Integers in `[1, length]`, shape `(n,)`: the number of tokens of each pair, without the padding.
        labels: Integers in `[0, len(classes))`, shape `(n,)`. Stored as int32.
        classes: Names of the classes, a tuple of strings.
        index: Each pair's number in its whole split: distinct integers, shape `(n,)`. Default: 0, 1, ..., n - 1.
        truncated: Booleans, shape `(n,)`: whether a pair was longer than `length` and lost tokens. Default: none.
        tokenizer: The keras-nlp tokenizer that made the tokens, for `preprocessor`. `None` if it is not known.

    Raises:
        ValueError: If shapes or lengths do not match, a label is out of range, or a number repeats.
    """

    token_ids: np.ndarray
    segment_ids: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray
    classes: tuple
    index: np.ndarray | None = None
    truncated: np.ndarray | None = None
    tokenizer: object = None

    PER_EXAMPLE_FIELDS = ("token_ids", "segment_ids", "lengths", "labels", "index", "truncated")

    def __post_init__(self):
        tokens, segments = np.asarray(self.token_ids, "int32"), np.asarray(self.segment_ids, "uint8")
        lengths = np.asarray(self.lengths, "int32")
        if tokens.ndim != 2 or 0 in tokens.shape or segments.shape != tokens.shape:
            raise ValueError(
                "`token_ids` and `segment_ids` must have the same shape (n, length). "
                f"Received: {tokens.shape} and {segments.shape}."
            )
        if lengths.shape != tokens.shape[:1] or lengths.min() < 1 or lengths.max() > tokens.shape[1]:
            raise ValueError(f"`lengths` must be {len(tokens)} integers from 1 to {tokens.shape[1]}.")
        self._set_labels(len(tokens))
        truncated = np.zeros(len(tokens), bool) if self.truncated is None else np.asarray(self.truncated, bool)
        if truncated.shape != lengths.shape:
            raise ValueError(f"`truncated` must have shape ({len(tokens)},). Received: shape {truncated.shape}.")
        self._set(token_ids=tokens, segment_ids=segments, lengths=lengths, truncated=truncated)

    @property
    def input_shape(self):
        """`(length,)`, the maximum length of a batch."""
        return self.token_ids.shape[1:]

    @property
    def preprocessing(self):
        """Empty, because the fingerprints cover the tokens."""
        return {}

    @property
    def fingerprints(self):
        """64-bit hash of each pair's tokens and label: uint64, shape `(n,)`."""
        rows = zip(self.token_ids, self.segment_ids, self.lengths, self.labels)
        return np.array([fingerprint(t[:n], s[:n], label) for t, s, n, label in rows], "uint64")

    @property
    def summary(self):
        """Counts for the record of a run: `{name: count}`."""
        return {**super().summary, "truncated_pairs": int(self.truncated.sum())}

    def inputs(self, rows):
        """Return a BERT's inputs for the pairs at some positions.

        Returns:
            Dict of int32, shape `(n, m)`: `token_ids`, `segment_ids`, `padding_mask` (1 for tokens).
        """
        lengths = self.lengths[rows]
        longest = min(_round_up(int(lengths.max())), self.token_ids.shape[1])
        return {
            "token_ids": self.token_ids[rows, :longest],
            "segment_ids": self.segment_ids[rows, :longest].astype("int32"),
            "padding_mask": (np.arange(longest) < lengths[:, None]).astype("int32"),
        }

    def preprocessor(self):
        """Return a model that maps pairs of sentences to the inputs of a BERT, for `export.export_saved_model`.

        Returns:
            `keras.Model` that maps `{"first", "second"}`, strings of shape `(batch,)`, to the dict of `inputs`.

        Raises:
            ValueError: If the tokenizer is not known, or the backend is not TensorFlow, because the others have no
                strings.
        """
        if self.tokenizer is None:
            raise ValueError("The tokenizer of these pairs is not known. Make the data set with `from_text`.")
        if keras.backend.backend() != "tensorflow":
            raise ValueError(
                "A model that tokenizes strings requires the TensorFlow backend. Received: "
                f"{keras.backend.backend()}. Write `export.save_keras`, and export it with KERAS_BACKEND=tensorflow."
            )
        pair = {name: keras.Input((), dtype="string", name=name) for name in ("first", "second")}
        return keras.Model(pair, _Tokens(self.tokenizer, self.input_shape[0])(pair), name="preprocessor")

    @classmethod
    def from_text(cls, text_a, text_b, labels, classes, *, tokenizer, length, index=None):
        """Tokenize pairs of sentences.

        A pair that is too long loses tokens at the sentences' ends, the longer sentence first, until both fit.

        Args:
            text_a: First sentences, n strings.
            text_b: Second sentences, n strings.
            labels: Integers, shape `(n,)`.
            classes: Names of the classes.
            tokenizer: A tokenizer of keras-nlp, such as `keras_nlp.models.BertTokenizer`.
            length: Integer, the maximum number of tokens per pair, including the start and two end tokens.
            index: The pairs' numbers. Default: 0, 1, ..., n - 1.

        Returns:
            `SentencePairs`.

        Raises:
            ValueError: If the numbers of sentences and labels differ, or `length` leaves no token.
        """
        import tensorflow as tf

        if not len(text_a) == len(text_b) == len(labels):
            raise ValueError(
                "`text_a`, `text_b` and `labels` must have the same length. "
                f"Received: {len(text_a)}, {len(text_b)} and {len(labels)}."
            )
        if length < 5:
            raise ValueError(
                "`length` must be at least 5: one token of each sentence, the start token and two end tokens. "
                f"Received: length={length}."
            )
        pack = _make_packer(tokenizer, length)
        texts = tf.data.Dataset.from_tensor_slices((list(text_a), list(text_b))).batch(_CHUNK)
        chunks = texts.map(pack, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).as_numpy_iterator()
        tokens, segments, sizes = (np.concatenate(column) for column in zip(*chunks))
        return cls(
            tokens,
            segments,
            np.minimum(sizes, length),
            np.asarray(labels),
            tuple(classes),
            index,
            truncated=sizes > length,
            tokenizer=tokenizer,
        )


def trim_to_longest(token_ids, segment_ids, lengths, maximum):
    """Return a BERT's inputs, trimmed to the longest pair: `SentencePairs.inputs` for tensors of TensorFlow.

    Args:
        token_ids: Integers, shape `(n, length)`.
        segment_ids: Integers, shape `(n, length)`.
        lengths: int32, shape `(n,)`.
        maximum: Integer, the maximum length of a batch.

    Returns:
        Dict of int32, shape `(n, m)`: `token_ids`, `segment_ids`, `padding_mask`.
    """
    import tensorflow as tf

    longest = tf.minimum(_round_up(tf.reduce_max(lengths)), maximum)
    return {
        "token_ids": token_ids[:, :longest],
        "segment_ids": tf.cast(segment_ids[:, :longest], tf.int32),
        "padding_mask": tf.sequence_mask(lengths, longest, tf.int32),
    }


def _round_up(length):
    return -(-length // PAD_TO_MULTIPLE_OF) * PAD_TO_MULTIPLE_OF


def _make_packer(tokenizer, length):
    """Return a function of two string tensors to tokens and segments, `(n, length)`, and lengths before truncation."""
    import keras_nlp

    packer = keras_nlp.layers.MultiSegmentPacker(
        sequence_length=length,
        start_value=tokenizer.cls_token_id,
        end_value=tokenizer.sep_token_id,
        pad_value=tokenizer.pad_token_id,
        truncate="round_robin",
    )

    def pack(text_a, text_b):
        pair = tokenizer(text_a), tokenizer(text_b)
        return *packer(pair), sum(tokens.row_lengths() for tokens in pair) + 3

    return pack


class _Tokens(keras.layers.Layer):
    """A layer that tokenizes a dict of two string tensors in graphs of TensorFlow. No `.keras` file can store it."""

    def __init__(self, tokenizer, length):
        super().__init__(name="tokens", dtype="int32")
        self.tokenizer, self.length = tokenizer, length

    def build(self, shapes):
        import tensorflow as tf

        # A function even in eager mode, in which keras-nlp has other code, which returns lists.
        self._pack = tf.function(_make_packer(self.tokenizer, self.length))

    def call(self, pair):
        import tensorflow as tf

        tokens, segments, sizes = self._pack(pair["first"], pair["second"])
        lengths = tf.minimum(tf.cast(sizes, tf.int32), self.length)
        return trim_to_longest(tokens, segments, lengths, self.length)

    def compute_output_spec(self, pair):
        shape = (pair["first"].shape[0], None)
        return {name: keras.KerasTensor(shape, "int32") for name in ("token_ids", "segment_ids", "padding_mask")}
