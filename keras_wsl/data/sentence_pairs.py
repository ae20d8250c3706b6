"""Pairs of sentences in memory, as the numbers of their tokens."""

import dataclasses

import keras
import numpy as np

from keras_wsl.data.dataset import Dataset, fingerprint

_CHUNK = 1000  # Pairs tokenized at once.
STEP = 16  # Batches are cut to a multiple of it, so that a compiled step meets few lengths.


@dataclasses.dataclass(frozen=True, eq=False)
class SentencePairs(Dataset):
    """Pairs such as `[CLS] premise [SEP] hypothesis [SEP]`, and whether one follows from the other.

    A batch is cut behind its longest pair, at the next multiple of 16 tokens: a BERT masks what is cut anyway.

    Args:
        token_ids: Integers below 2**31, shape `(n, length)`, padded on the right.
        segment_ids: 0 for tokens of the first sentence, 1 for the second, of the same shape.
        lengths: Integers in `[1, length]`, shape `(n,)`: the tokens of each pair, without the padding.
        labels: Integers in `[0, len(classes))`, shape `(n,)`; kept as int32.
        classes: Names of the classes, a tuple of strings.
        index: Each pair's number in its whole split: integers, shape `(n,)`, no two equal. Default: 0, 1, ..., n - 1.
        truncated: Booleans, shape `(n,)`: which pairs were longer than `length`, and lost tokens. Default: none.
        tokenizer: The tokenizer of keras-nlp that the tokens are of, for `preprocessor`; `None` if it is not known.

    Raises:
        ValueError: Shapes or lengths do not fit, a label is out of range, or a number comes twice.
    """

    token_ids: np.ndarray
    segment_ids: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray
    classes: tuple
    index: np.ndarray | None = None
    truncated: np.ndarray | None = None
    tokenizer: object = None

    ROWS = ("token_ids", "segment_ids", "lengths", "labels", "index", "truncated")

    def __post_init__(self):
        tokens, segments = np.asarray(self.token_ids, "int32"), np.asarray(self.segment_ids, "uint8")
        lengths = np.asarray(self.lengths, "int32")
        if tokens.ndim != 2 or 0 in tokens.shape or segments.shape != tokens.shape:
            raise ValueError(
                f"token_ids have shape {tokens.shape} and segment_ids {segments.shape}; expected (n, length) of both."
            )
        if lengths.shape != tokens.shape[:1] or lengths.min() < 1 or lengths.max() > tokens.shape[1]:
            raise ValueError(f"lengths expected to be {len(tokens)} integers from 1 to {tokens.shape[1]}.")
        self._set_labels(len(tokens))
        truncated = np.zeros(len(tokens), bool) if self.truncated is None else np.asarray(self.truncated, bool)
        if truncated.shape != lengths.shape:
            raise ValueError(f"truncated have shape {truncated.shape}; expected ({len(tokens)},).")
        self._set(token_ids=tokens, segment_ids=segments, lengths=lengths, truncated=truncated)

    @property
    def input_shape(self):
        """`(length,)`, the longest that a batch can be."""
        return self.token_ids.shape[1:]

    @property
    def preprocessing(self):
        """Nothing beside the tokens themselves."""
        return {}

    @property
    def fingerprints(self):
        """64 bits for each pair's tokens and its label: uint64, shape `(n,)`."""
        rows = zip(self.token_ids, self.segment_ids, self.lengths, self.labels)
        return np.array([fingerprint(t[:n], s[:n], label) for t, s, n, label in rows], "uint64")

    @property
    def report(self):
        """What a run's record should say of it: `{name: count}`."""
        return {**super().report, "truncated_pairs": int(self.truncated.sum())}

    def inputs(self, rows):
        """What a BERT is fed for the pairs at some positions.

        Returns:
            Dict of int32, shape `(n, m)`: `token_ids`, `segment_ids`, `padding_mask` (1 where there is a token).
        """
        lengths = self.lengths[rows]
        longest = min(-(-int(lengths.max()) // STEP) * STEP, self.token_ids.shape[1])
        return {
            "token_ids": self.token_ids[rows, :longest],
            "segment_ids": self.segment_ids[rows, :longest].astype("int32"),
            "padding_mask": (np.arange(longest) < lengths[:, None]).astype("int32"),
        }

    def preprocessor(self):
        """Pairs of sentences to what a BERT is fed, as `from_text` and batches have it: for
        `export.export_saved_model`.

        Returns:
            `keras.Model` that maps `{"first", "second"}`, strings of shape `(batch,)`, to the dict of `inputs`.

        Raises:
            ValueError: If the tokenizer is not known, or the backend is not TensorFlow, which alone computes with
                strings.
        """
        if self.tokenizer is None:
            raise ValueError("These pairs were given as tokens. Make them by `from_text`, which knows the tokenizer.")
        if keras.backend.backend() != "tensorflow":
            raise ValueError(
                f"Strings are tokenized in a model on the TensorFlow backend, and this is {keras.backend.backend()}. "
                "Write `export.save_keras`, and export it with KERAS_BACKEND=tensorflow."
            )
        pair = {name: keras.Input((), dtype="string", name=name) for name in ("first", "second")}
        return keras.Model(pair, _Tokens(self.tokenizer, self.input_shape[0])(pair), name="preprocessor")

    @classmethod
    def from_text(cls, firsts, seconds, labels, classes, *, tokenizer, length, index=None):
        """Tokenizes pairs of sentences.

        A pair that is too long loses tokens at its ends, the longer sentence first, until both fit.

        Args:
            firsts: Strings, n of them.
            seconds: Strings, n of them.
            labels: Integers, shape `(n,)`.
            classes: Names of the classes.
            tokenizer: A tokenizer of keras-nlp, such as `keras_nlp.models.BertTokenizer`.
            length: Integer, at most so many tokens a pair, with the start's and the two ends'.
            index: The pairs' numbers; 0, 1, ..., n - 1 by default.

        Returns:
            `SentencePairs`.

        Raises:
            ValueError: If there are not as many first as second sentences and labels, or `length` leaves no token.
        """
        import tensorflow as tf

        if not len(firsts) == len(seconds) == len(labels):
            raise ValueError(
                f"Received {len(firsts)} first sentences, {len(seconds)} second ones and {len(labels)} labels. Give as "
                "many of each."
            )
        if length < 5:
            raise ValueError(
                f"length is {length}; expected at least 5: a token of each sentence, the start and two ends."
            )
        pack = _packing(tokenizer, length)
        texts = tf.data.Dataset.from_tensor_slices((list(firsts), list(seconds))).batch(_CHUNK)
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


def _packing(tokenizer, length):
    """A function of two tensors of strings, to tokens and segments, `(n, length)`, and the tokens before truncation."""
    import keras_nlp

    packer = keras_nlp.layers.MultiSegmentPacker(
        sequence_length=length,
        start_value=tokenizer.cls_token_id,
        end_value=tokenizer.sep_token_id,
        pad_value=tokenizer.pad_token_id,
        truncate="round_robin",
    )

    def pack(firsts, seconds):
        pair = tokenizer(firsts), tokenizer(seconds)
        return *packer(pair), sum(tokens.row_lengths() for tokens in pair) + 3

    return pack


class _Tokens(keras.layers.Layer):
    """The tokens of a dict of two tensors of strings. It lives in graphs of TensorFlow, and in no `.keras` file."""

    def __init__(self, tokenizer, length):
        super().__init__(name="tokens", dtype="int32")
        self.tokenizer, self.length = tokenizer, length

    def build(self, shapes):
        import tensorflow as tf

        # A function even where it is called eagerly: keras-nlp has other code there, which gives lists.
        self._pack = tf.function(_packing(self.tokenizer, self.length))

    def call(self, pair):
        import tensorflow as tf

        from keras_wsl.data.tf_data_pipeline import cut

        tokens, segments, sizes = self._pack(pair["first"], pair["second"])
        lengths = tf.minimum(tf.cast(sizes, tf.int32), self.length)
        return cut(tokens, segments, lengths, self.length)

    def compute_output_spec(self, pair):
        shape = (pair["first"].shape[0], None)
        return {name: keras.KerasTensor(shape, "int32") for name in ("token_ids", "segment_ids", "padding_mask")}
