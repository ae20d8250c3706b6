"""Batches as `tf.data`: those of `arrays.py` bit for bit, where the hash and the crop act on whole batches, and JPEGs.

Crops of 32 x 32 cost 1.5 times what no augmentation at all does; example by example it would be ten times.
"""

import functools

import keras
import numpy as np
import tensorflow as tf

from keras_wsl.data import stateless_random
from keras_wsl.data.image_arrays import ImageArrays
from keras_wsl.data.image_decoding import centre, random_crop, readable
from keras_wsl.data.image_files import ImageFolder, TfdsImageDataset
from keras_wsl.data.numpy_pipeline import check_batches, check_settings, replayed, view_of
from keras_wsl.data.sentence_pairs import STEP, SentencePairs

FILES_AT_ONCE = 16


def train_batches(
    examples, *, seed, batch_size, start=(0, 0), one_hot=False, num_views=None, soft_labels=None, **augmentation
):
    """Endless `tf.data.Dataset` of the batches that `pipeline.train_batches` describes.

    Args:
        examples: A data set; what it holds is kept in host memory.
        seed: Integer in `[0, 2**32)`.
        batch_size: Integer.
        start: Epoch, and step in that epoch, of the first batch.
        one_hot: Whether labels are float32 `(n, classes)`.
        num_views: Integer, or None.
        soft_labels: `soft_labels.SoftLabels`, or None.
        **augmentation: As of the data set.

    Returns:
        `tf.data.Dataset` of `(inputs, {"labels", "index"})`; give `fit` the `steps_per_epoch`.

    Raises:
        ValueError: A setting is out of its range.
    """
    augmentation = check_settings(examples, seed, batch_size, start, num_views, augmentation)
    view_seed, num_views = replayed(examples, soft_labels, seed, num_views, augmentation)
    first_epoch, first_step = (int(value) for value in start)
    # Left to itself, TensorFlow would put the images into the accelerator's memory, and fetch every batch from there.
    with tf.device("CPU:0"):
        source = _source(examples)
        seed, view_seed = (tf.constant(stateless_random.key("seed", value)) for value in (seed, view_seed))
        logits_of = _reader(soft_labels)

        def batches_of(epoch):
            return source.shuffled(seed, epoch, batch_size).map(lambda *found: (epoch, found))

        def batch(epoch, found):
            view = view_of(epoch, num_views)
            now = tf.cast(view, tf.uint32)[None]
            inputs, labels, index = source.varied(*found, seed=view_seed, view=now, **augmentation)
            return inputs, _targets(labels, index, one_hot, examples) | logits_of(index, view)

        return _prepared(tf.data.Dataset.range(first_epoch, 2**32).flat_map(batches_of).skip(first_step), batch)


def augmented_batches(examples, batch_size, *, seed, view, **augmentation):
    """All examples once, in order, as a view shows them: a finite `tf.data.Dataset` of such batches."""
    augmentation = check_settings(examples, seed, batch_size, (view, 0), None, augmentation)
    with tf.device("CPU:0"):
        source = _source(examples)
        keys = {
            "seed": tf.constant(stateless_random.key("seed", seed)),
            "view": tf.constant(stateless_random.key("view", view)),
        }

        def batch(*found):
            inputs, labels, index = source.varied(*found, **keys, **augmentation)
            return inputs, _targets(labels, index, False, examples)

        return _prepared(source.in_order(batch_size), batch)


def eval_batches(examples, batch_size, *, one_hot=False, soft_labels=None):
    """All examples once, in order and as they are: the batches of `arrays.eval_batches`.

    Args:
        examples: A data set; what it holds is kept in host memory.
        batch_size: Integer; the last batch may be smaller.
        one_hot: Whether labels are float32 `(n, classes)`.
        soft_labels: `soft_labels.SoftLabels`, or None.

    Returns:
        Finite `tf.data.Dataset` of `(inputs, {"labels", "index"})`.
    """
    check_batches(examples, batch_size)
    if soft_labels is not None:
        soft_labels.check(examples)
    with tf.device("CPU:0"):
        source, logits_of = _source(examples), _reader(soft_labels)

        def batch(*found):
            inputs, labels, index = source.plain(*found)
            return inputs, _targets(labels, index, one_hot, examples) | logits_of(index)

        return _prepared(source.in_order(batch_size), batch)


class _Rows:
    """What is read by position: a batch is found as its rows, and an epoch's order is a permutation."""

    columns = ()

    def __init__(self, examples):
        self.examples = examples
        self.arrays = {name: tf.constant(getattr(examples, name)) for name in (*self.columns, "labels", "index")}
        self.numbers = tf.constant(examples.index.astype("uint32"))

    def shuffled(self, seed, epoch, batch_size):
        keys = stateless_random.draw("order", seed, tf.cast(epoch, tf.uint32)[None], self.numbers)
        return self._batches(tf.argsort(keys, stable=True), batch_size)

    def in_order(self, batch_size):
        return self._batches(np.arange(len(self.examples), dtype="int32"), batch_size)

    def _batches(self, order, batch_size):
        # Nothing is dropped: it says that all are of one size, which XLA has to know.
        all_alike = len(self.examples) % batch_size == 0
        return tf.data.Dataset.from_tensor_slices(order).batch(batch_size, drop_remainder=all_alike)

    def at(self, rows, name):
        return tf.gather(self.arrays[name], rows)

    def labels_and_index(self, rows):
        return self.at(rows, "labels"), self.at(rows, "index")


class _Images(_Rows):
    columns = ("images",)

    def plain(self, rows):
        images = tf.cast(self.at(rows, "images"), tf.float32)
        return self.examples.normalize(images), *self.labels_and_index(rows)

    def varied(self, rows, *, seed, view, padding, padding_mode, flip):
        height, width, channels = self.examples.input_shape
        drawn = stateless_random.windows(seed, view, tf.gather(self.numbers, rows), padding)
        top, left, flips = (tf.cast(values, tf.int32) for values in drawn)
        places = stateless_random.pixels(
            tf.range(tf.size(rows)), top, left, flips * int(flip), height=height, width=width, padding=padding
        )
        sides = [[0, 0], [padding, padding], [padding, padding], [0, 0]]
        padded = tf.pad(self.at(rows, "images"), sides, mode=padding_mode.upper())
        cropped = tf.gather(tf.reshape(padded, [-1, channels]), places)
        return self.examples.normalize(tf.cast(cropped, tf.float32)), *self.labels_and_index(rows)


class _Sentences(_Rows):
    columns = ("token_ids", "segment_ids", "lengths")

    def plain(self, rows):
        arrays = (self.at(rows, name) for name in self.columns)
        inputs = cut(*arrays, self.examples.input_shape[0])
        return inputs, *self.labels_and_index(rows)

    def varied(self, rows, *, seed, view):
        return self.plain(rows)


class _Folder(_Rows):
    columns = ("paths",)

    def plain(self, rows):
        return self._read(rows, centre)

    def varied(self, rows, **how):
        return self._read(rows, functools.partial(random_crop, **how))

    def _read(self, rows, decode):
        return readable(
            self.examples,
            self.at(rows, "paths"),
            *self.labels_and_index(rows),
            lambda path, number: decode(tf.io.read_file(path), number, self.examples),
        )


class _Records:
    """What is read file after file: a batch is found as its encoded images, labels and numbers."""

    def __init__(self, examples):
        import tensorflow_datasets as tfds

        self.examples = examples
        self.features = examples.builder.info.features
        self.skip_decoding = {"image": tfds.decode.SkipDecoding()}
        paths, firsts = zip(*examples.shards)
        self.paths, self.firsts = tf.constant(paths), tf.constant(firsts, tf.int64)

    def shuffled(self, seed, epoch, batch_size):
        epoch = tf.cast(epoch, tf.uint32)[None]
        files = stateless_random.draw("order", seed, epoch, np.arange(len(self.paths), dtype="uint32"))
        order = tf.argsort(files, stable=True)
        found = tf.data.Dataset.from_tensor_slices(order).interleave(
            self._file, cycle_length=FILES_AT_ONCE, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
        )
        # Else the order would depend on tf.random.set_seed as well, and with its 0 there would be none.
        tf.compat.v1.get_default_graph().seed = 1
        buffer_seed = tf.cast(stateless_random.draw("buffer", seed, epoch, tf.zeros([1], tf.uint32))[0], tf.int64)
        return found.shuffle(min(self.examples.buffer, len(self.examples)), seed=buffer_seed).batch(batch_size)

    def in_order(self, batch_size):
        return tf.data.Dataset.range(len(self.paths)).flat_map(self._file).batch(batch_size)

    def _file(self, number):
        """The examples of a file: `(image, label, index)`."""
        records = tf.data.TFRecordDataset(self.paths[number], buffer_size=2**23).enumerate(self.firsts[number])
        records = records.filter(lambda index, _: (self.examples.low <= index) & (index < self.examples.high))
        return records.map(self._parsed)

    def _parsed(self, index, record):
        example = self.features.deserialize_example(record, decoders=self.skip_decoding)
        return example["image"], tf.cast(example["label"], tf.int32), tf.cast(index, tf.int32)

    def plain(self, contents, labels, index):
        return self._read(contents, labels, index, centre)

    def varied(self, contents, labels, index, **how):
        return self._read(contents, labels, index, functools.partial(random_crop, **how))

    def _read(self, contents, labels, index, decode):
        return readable(
            self.examples, contents, labels, index, lambda content, number: decode(content, number, self.examples)
        )


def cut(token_ids, segment_ids, lengths, longest):
    """What a BERT is fed, cut behind the longest pair: in TensorFlow what `SentencePairs.inputs` is in NumPy.

    Args:
        token_ids: Integers, shape `(n, length)`.
        segment_ids: Integers, shape `(n, length)`.
        lengths: int32, shape `(n,)`.
        longest: Integer, the longest that a batch can be.

    Returns:
        Dict of int32, shape `(n, m)`: `token_ids`, `segment_ids`, `padding_mask`.
    """
    longest = tf.minimum(-(-tf.reduce_max(lengths) // STEP) * STEP, longest)
    return {
        "token_ids": token_ids[:, :longest],
        "segment_ids": tf.cast(segment_ids[:, :longest], tf.int32),
        "padding_mask": tf.sequence_mask(lengths, longest, tf.int32),
    }


_SOURCES = {ImageArrays: _Images, SentencePairs: _Sentences, ImageFolder: _Folder, TfdsImageDataset: _Records}


def _source(examples):
    if type(examples) not in _SOURCES:
        raise ValueError(
            f"There are no batches of {type(examples).__name__}; expected one of "
            f"{', '.join(kind.__name__ for kind in _SOURCES)}."
        )
    return _SOURCES[type(examples)](examples)


def _targets(labels, index, one_hot, examples):
    return {"labels": tf.one_hot(labels, len(examples.classes)) if one_hot else labels, "index": index}


def _reader(soft_labels):
    """What targets also have, a function of a batch's index and view: `{"teacher_logits"}` of soft labels, or `{}`."""
    if soft_labels is None:
        return lambda index, view=None: {}
    like = soft_labels.rows(None if soft_labels.manifest.clean else 0, np.empty(0, "int32"))

    def rows(index, *view):
        return keras.tree.flatten(soft_labels.rows(int(view[0]) if view else None, index))

    def logits_of(index, view=None):
        arguments = [index] if view is None else [index, view]
        values = tf.numpy_function(rows, arguments, [array.dtype for array in keras.tree.flatten(like)])
        for value, array in zip(values, keras.tree.flatten(like)):
            value.set_shape([index.shape[0], *array.shape[1:]])
        return {"teacher_logits": keras.tree.pack_sequence_as(like, values)}

    return logits_of


def _prepared(dataset, batch):
    dataset = dataset.map(batch, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).prefetch(tf.data.AUTOTUNE)
    options = tf.data.Options()
    # Its thread may sleep on when an iterator goes: `fit` would end up to a minute late. All cores work without it.
    options.autotune.enabled = False
    # There are no files to share out between workers: each takes its part of every batch.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return dataset.with_options(options)
