"""Batches made with `tf.data`: those of `numpy_pipeline` bit for bit, and those of image files.

The hash and the crop act on whole batches: crops of 32 x 32 take 1.5 times as long as no augmentation, and would take
ten times as long example by example.
"""

import functools

import keras
import numpy as np
import tensorflow as tf

from keras_wsl.data import stateless_random
from keras_wsl.data.image_arrays import ImageArrays
from keras_wsl.data.image_decoding import center_crop, decode_and_filter, random_crop
from keras_wsl.data.image_files import ImageFolder, TfdsImageDataset
from keras_wsl.data.numpy_pipeline import check_batches, check_settings, get_view, resolve_cached_views
from keras_wsl.data.sentence_pairs import SentencePairs, trim_to_longest

_NUM_PARALLEL_FILES = 16


def train_batches(
    examples,
    *,
    seed,
    batch_size,
    initial_position=(0, 0),
    one_hot=False,
    num_views=None,
    soft_labels=None,
    **augmentation,
):
    """Return batches without end as a `tf.data.Dataset`. See `pipeline.train_batches` for the arguments and errors.

    The arrays of `examples` are kept in host memory. Pass `steps_per_epoch` to `fit`.
    """
    augmentation = check_settings(examples, seed, batch_size, initial_position, num_views, augmentation)
    view_seed, num_views = resolve_cached_views(examples, soft_labels, seed, num_views, augmentation)
    first_epoch, first_step = (int(value) for value in initial_position)
    # By default TensorFlow would put the images into the accelerator's memory, and fetch every batch from there.
    with tf.device("CPU:0"):
        source = _make_source(examples)
        seed, view_seed = (tf.constant(stateless_random.as_uint32("seed", value)) for value in (seed, view_seed))
        read_logits = _make_logits_reader(soft_labels)

        def make_epoch(epoch):
            return source.shuffled(seed, epoch, batch_size).map(lambda *batch: (epoch, batch))

        def load(epoch, batch):
            view = get_view(epoch, num_views)
            view_key = tf.cast(view, tf.uint32)[None]
            inputs, labels, index = source.augmented(*batch, seed=view_seed, view=view_key, **augmentation)
            return inputs, _make_targets(labels, index, one_hot, examples) | read_logits(index, view)

        return _map_and_prefetch(tf.data.Dataset.range(first_epoch, 2**32).flat_map(make_epoch).skip(first_step), load)


def augmented_batches(examples, batch_size, *, seed, view, **augmentation):
    """Return all examples once, in order, augmented as in one view: a finite `tf.data.Dataset`."""
    augmentation = check_settings(examples, seed, batch_size, (view, 0), None, augmentation)
    with tf.device("CPU:0"):
        source = _make_source(examples)
        keys = {
            "seed": tf.constant(stateless_random.as_uint32("seed", seed)),
            "view": tf.constant(stateless_random.as_uint32("view", view)),
        }

        def load(*batch):
            inputs, labels, index = source.augmented(*batch, **keys, **augmentation)
            return inputs, _make_targets(labels, index, False, examples)

        return _map_and_prefetch(source.in_order(batch_size), load)


def eval_batches(examples, batch_size, *, one_hot=False, soft_labels=None):
    """Return all examples once, in order, without augmentation: a finite `tf.data.Dataset`.

    See `pipeline.eval_batches` for the arguments. The arrays of `examples` are kept in host memory.
    """
    check_batches(examples, batch_size)
    if soft_labels is not None:
        soft_labels.check_dataset(examples)
    with tf.device("CPU:0"):
        source, read_logits = _make_source(examples), _make_logits_reader(soft_labels)

        def load(*batch):
            inputs, labels, index = source.unaugmented(*batch)
            return inputs, _make_targets(labels, index, one_hot, examples) | read_logits(index)

        return _map_and_prefetch(source.in_order(batch_size), load)


class _IndexedSource:
    """A source that is read by position: a batch is an array of rows, and an epoch's order is a permutation."""

    columns = ()

    def __init__(self, examples):
        self.examples = examples
        self.arrays = {name: tf.constant(getattr(examples, name)) for name in (*self.columns, "labels", "index")}
        self.numbers = tf.constant(examples.index.astype("uint32"))

    def shuffled(self, seed, epoch, batch_size):
        keys = stateless_random.random_uint32("order", seed, tf.cast(epoch, tf.uint32)[None], self.numbers)
        return self._batches(tf.argsort(keys, stable=True), batch_size)

    def in_order(self, batch_size):
        return self._batches(np.arange(len(self.examples), dtype="int32"), batch_size)

    def _batches(self, order, batch_size):
        # Nothing is dropped. This makes the batch size static, which XLA needs.
        is_static = len(self.examples) % batch_size == 0
        return tf.data.Dataset.from_tensor_slices(order).batch(batch_size, drop_remainder=is_static)

    def gather(self, rows, name):
        return tf.gather(self.arrays[name], rows)

    def labels_and_index(self, rows):
        return self.gather(rows, "labels"), self.gather(rows, "index")


class _ImageSource(_IndexedSource):
    columns = ("images",)

    def unaugmented(self, rows):
        images = tf.cast(self.gather(rows, "images"), tf.float32)
        return self.examples.normalize(images), *self.labels_and_index(rows)

    def augmented(self, rows, *, seed, view, padding, padding_mode, flip):
        height, width, channels = self.examples.input_shape
        drawn = stateless_random.crop_offsets(seed, view, tf.gather(self.numbers, rows), padding)
        top, left, flips = (tf.cast(values, tf.int32) for values in drawn)
        indices = stateless_random.crop_indices(
            tf.range(tf.size(rows)), top, left, flips * int(flip), height=height, width=width, padding=padding
        )
        sides = [[0, 0], [padding, padding], [padding, padding], [0, 0]]
        padded = tf.pad(self.gather(rows, "images"), sides, mode=padding_mode.upper())
        cropped = tf.gather(tf.reshape(padded, [-1, channels]), indices)
        return self.examples.normalize(tf.cast(cropped, tf.float32)), *self.labels_and_index(rows)


class _SentencePairSource(_IndexedSource):
    columns = ("token_ids", "segment_ids", "lengths")

    def unaugmented(self, rows):
        arrays = (self.gather(rows, name) for name in self.columns)
        return trim_to_longest(*arrays, self.examples.input_shape[0]), *self.labels_and_index(rows)

    def augmented(self, rows, *, seed, view):
        return self.unaugmented(rows)


class _ImageFolderSource(_IndexedSource):
    columns = ("paths",)

    def unaugmented(self, rows):
        return self._read(rows, center_crop)

    def augmented(self, rows, **kwargs):
        return self._read(rows, functools.partial(random_crop, **kwargs))

    def _read(self, rows, decode):
        return decode_and_filter(
            self.examples,
            self.gather(rows, "paths"),
            *self.labels_and_index(rows),
            lambda path, number: decode(tf.io.read_file(path), number, self.examples),
        )


class _TFRecordSource:
    """A source that is read file by file: a batch has encoded images, labels and numbers."""

    def __init__(self, examples):
        import tensorflow_datasets as tfds

        self.examples = examples
        self.features = examples.builder.info.features
        self.skip_decoding = {"image": tfds.decode.SkipDecoding()}
        paths, first_numbers = zip(*examples.shards)
        self.paths, self.first_numbers = tf.constant(paths), tf.constant(first_numbers, tf.int64)

    def shuffled(self, seed, epoch, batch_size):
        epoch = tf.cast(epoch, tf.uint32)[None]
        keys = stateless_random.random_uint32("order", seed, epoch, np.arange(len(self.paths), dtype="uint32"))
        order = tf.argsort(keys, stable=True)
        records = tf.data.Dataset.from_tensor_slices(order).interleave(
            self._read_file, cycle_length=_NUM_PARALLEL_FILES, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
        )
        # Otherwise the order would also depend on tf.random.set_seed, and be random for its seed 0.
        tf.compat.v1.get_default_graph().seed = 1
        buffer_seed = tf.cast(
            stateless_random.random_uint32("buffer", seed, epoch, tf.zeros([1], tf.uint32))[0], tf.int64
        )
        return records.shuffle(min(self.examples.buffer, len(self.examples)), seed=buffer_seed).batch(batch_size)

    def in_order(self, batch_size):
        return tf.data.Dataset.range(len(self.paths)).flat_map(self._read_file).batch(batch_size)

    def _read_file(self, file):
        """Return the examples of a file by its position: `(image, label, index)`."""
        records = tf.data.TFRecordDataset(self.paths[file], buffer_size=2**23).enumerate(self.first_numbers[file])
        records = records.filter(lambda index, _: (self.examples.low <= index) & (index < self.examples.high))
        return records.map(self._parse)

    def _parse(self, index, record):
        example = self.features.deserialize_example(record, decoders=self.skip_decoding)
        return example["image"], tf.cast(example["label"], tf.int32), tf.cast(index, tf.int32)

    def unaugmented(self, contents, labels, index):
        return self._read(contents, labels, index, center_crop)

    def augmented(self, contents, labels, index, **kwargs):
        return self._read(contents, labels, index, functools.partial(random_crop, **kwargs))

    def _read(self, contents, labels, index, decode):
        return decode_and_filter(
            self.examples, contents, labels, index, lambda content, number: decode(content, number, self.examples)
        )


_SOURCES = {
    ImageArrays: _ImageSource,
    SentencePairs: _SentencePairSource,
    ImageFolder: _ImageFolderSource,
    TfdsImageDataset: _TFRecordSource,
}


def _make_source(examples):
    if type(examples) not in _SOURCES:
        raise ValueError(
            f"`examples` must be one of {', '.join(kind.__name__ for kind in _SOURCES)}. "
            f"Received: {type(examples).__name__}."
        )
    return _SOURCES[type(examples)](examples)


def _make_targets(labels, index, one_hot, examples):
    return {"labels": tf.one_hot(labels, len(examples.classes)) if one_hot else labels, "index": index}


def _make_logits_reader(soft_labels):
    """Return a function of a batch's index and view to `{"teacher_logits": ...}`, or to `{}` without soft labels."""
    if soft_labels is None:
        return lambda index, view=None: {}
    like = soft_labels.lookup(None if soft_labels.manifest.include_unaugmented else 0, np.empty(0, "int32"))

    def lookup(index, *view):
        return keras.tree.flatten(soft_labels.lookup(int(view[0]) if view else None, index))

    def read_logits(index, view=None):
        arguments = [index] if view is None else [index, view]
        values = tf.numpy_function(lookup, arguments, [array.dtype for array in keras.tree.flatten(like)])
        for value, array in zip(values, keras.tree.flatten(like)):
            value.set_shape([index.shape[0], *array.shape[1:]])
        return {"teacher_logits": keras.tree.pack_sequence_as(like, values)}

    return read_logits


def _map_and_prefetch(dataset, load):
    dataset = dataset.map(load, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).prefetch(tf.data.AUTOTUNE)
    options = tf.data.Options()
    # Its thread may outlive the iterator, which delays the end of `fit` by up to a minute. All cores work without it.
    options.autotune.enabled = False
    # Workers cannot share the work by files: each takes its part of every batch.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return dataset.with_options(options)
