"""Batches: their content and initial position, and equality of NumPy's and TensorFlow's."""

import itertools
import os
import sys
import textwrap

import keras
import numpy as np
import pytest

from keras_wsl.data import ImageArrays, augmented_batches, eval_batches, numpy_pipeline, stateless_random, train_batches
from tests.common import run_child

PIPELINES = ["numpy", "tensorflow"]
# The id "tensorflow" would select tests with the marker of that backend. tf.data runs with any backend.
IDS = ["numpy", "tf.data"]


def make(count=150, shape=(8, 6, 3), classes=10):
    random = np.random.default_rng(1)
    index = random.permutation(4 * count)[:count]
    images = random.integers(0, 256, (count, *shape), "uint8")
    names = [str(number) for number in range(classes)]
    mean, std = (0.5071, 0.4867, 0.4408)[: shape[2]], (0.2675, 0.2565, 0.2761)[: shape[2]]
    return ImageArrays(images, random.integers(0, classes, count), names, mean, std, index)


def numpy_batches(dataset, count=None):
    """Return batches as (images, labels, index) of NumPy arrays."""
    batches = itertools.islice(iter(dataset), count)
    return [tuple(np.asarray(array) for array in (x, y["labels"], y["index"])) for x, y in batches]


def assert_same_bits(ones, others):
    assert len(ones) == len(others)
    for one, other in zip(ones, others):
        for array, same in zip(one, other):
            assert array.dtype == same.dtype and array.shape == same.shape
            assert array.tobytes() == same.tobytes()


def slowly(examples, position, seed, view, padding, padding_mode, flip):
    """Crop one image from a uint8 picture padded with black, or mirrored; and normalize it in float64."""
    image = np.pad(examples.images[position], [(padding, padding), (padding, padding), (0, 0)], mode=padding_mode)
    u32 = lambda value: np.array([value], "uint32")  # noqa: E731
    top, left, flipped = (
        int(x[0]) for x in stateless_random.crop_offsets(u32(seed), u32(view), u32(examples.index[position]), padding)
    )
    height, width = examples.images.shape[1:3]
    image = image[top : top + height, left : left + width]
    if flip and flipped:
        image = image[:, ::-1]
    return (image / 255 - np.array(examples.mean)) / np.array(examples.std)


@pytest.mark.parametrize("pipeline", PIPELINES, ids=IDS)
@pytest.mark.parametrize(
    ("padding", "padding_mode", "flip", "num_views"),
    [
        (4, "constant", True, None),
        (2, "constant", False, None),
        (0, "constant", True, 2),
        (0, "constant", False, None),
        (4, "reflect", True, None),
    ],
)
def test_train_batches_matches_reference_crops(pipeline, padding, padding_mode, flip, num_views):
    pytest.importorskip(pipeline)
    examples = make()
    place = {number: position for position, number in enumerate(examples.index)}
    settings = {
        "padding": padding,
        "padding_mode": padding_mode,
        "flip": flip,
        "num_views": num_views,
        "pipeline": pipeline,
    }
    batches = numpy_batches(train_batches(examples, seed=9, batch_size=64, **settings), 9)
    assert [len(images) for images, _, _ in batches] == [64, 64, 22] * 3
    for step, (images, labels, index) in enumerate(batches):
        assert images.dtype == np.float32 and labels.dtype == index.dtype == np.int32
        positions = [place[number] for number in index]
        np.testing.assert_array_equal(labels, examples.labels[positions])
        epoch = step // 3
        view = epoch % num_views if num_views else epoch
        expected = [slowly(examples, position, 9, view, padding, padding_mode, flip) for position in positions]
        np.testing.assert_allclose(images, expected, atol=2e-6)


@pytest.mark.parametrize("pipeline", PIPELINES, ids=IDS)
def test_train_batches_pads_with_black(pipeline):
    pytest.importorskip(pipeline)
    white = ImageArrays(np.full((64, 2, 2, 3), 255, "uint8"), np.zeros(64, int), ["a"], make().mean, make().std)
    images = numpy_batches(train_batches(white, seed=0, batch_size=64, padding=4, pipeline=pipeline), 1)[0][0]
    black = -np.array(white.mean) / np.array(white.std)
    np.testing.assert_allclose(black, [-1.8957, -1.8975, -1.5965], atol=5e-5)
    # Crops that miss the picture are black all over.
    assert np.abs(images - black).max(axis=(1, 2, 3)).min() < 1e-6
    assert np.unique(images[..., 0]).size == 2


@pytest.mark.parametrize("pipeline", PIPELINES, ids=IDS)
def test_train_batches_has_each_example_once_per_epoch(pipeline):
    pytest.importorskip(pipeline)
    examples = make()
    batches = numpy_batches(train_batches(examples, seed=0, batch_size=64, pipeline=pipeline), 6)
    epochs = [np.concatenate([index for _, _, index in part]) for part in (batches[:3], batches[3:])]
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.sort(examples.index))
    assert (epochs[0] != epochs[1]).any()


@pytest.mark.parametrize("pipeline", PIPELINES, ids=IDS)
@pytest.mark.parametrize("start", [(0, 0), (0, 2), (1, 0), (2, 1)])
def test_train_batches_resumes_at_initial_position(pipeline, start):
    pytest.importorskip(pipeline)
    examples = make()
    settings = {"seed": 4, "batch_size": 64, "num_views": 2, "pipeline": pipeline}
    whole = numpy_batches(train_batches(examples, **settings), 12)
    resumed = numpy_batches(train_batches(examples, initial_position=start, **settings), 4)
    skipped = 3 * start[0] + start[1]
    assert_same_bits(resumed, whole[skipped : skipped + 4])


@pytest.mark.parametrize("shape", [(8, 6, 3), (8, 8, 1), (32, 32, 3)])
@pytest.mark.parametrize("one_hot", [False, True])
def test_pipelines_have_the_same_bits(shape, one_hot):
    pytest.importorskip("tensorflow")
    examples = make(shape=shape)
    for settings in ({"initial_position": (3, 1)}, {"padding": 0}, {"flip": False, "num_views": 1}):
        settings = {"seed": 2**32 - 1, "batch_size": 64, "one_hot": one_hot, **settings}
        ours, theirs = (train_batches(examples, pipeline=pipeline, **settings) for pipeline in PIPELINES)
        assert_same_bits(numpy_batches(ours, 7), numpy_batches(theirs, 7))
    ours, theirs = (eval_batches(examples, 64, one_hot=one_hot, pipeline=pipeline) for pipeline in PIPELINES)
    assert_same_bits(numpy_batches(ours), numpy_batches(theirs))


def test_subset_keeps_crops():
    examples = make()
    whole = {
        n: image
        for x, _, i in numpy_batches(numpy_pipeline.train_batches(examples, seed=3, batch_size=50), 3)
        for n, image in zip(i, x)
    }
    _, held = examples.stratified_split(40, seed=1)
    for images, _, index in numpy_batches(numpy_pipeline.train_batches(held, seed=3, batch_size=40), 1):
        np.testing.assert_array_equal(images, [whole[number] for number in index])


def test_augment_accepts_any_rows_and_view():
    examples = make()
    rows = np.array([149, 0, 3])
    expected = [slowly(examples, position, 5, 7, 4, "constant", True) for position in rows]
    np.testing.assert_allclose(numpy_pipeline.augment(examples, rows, seed=5, view=7), expected, atol=2e-6)


@pytest.mark.parametrize("pipeline", PIPELINES, ids=IDS)
def test_batches_have_one_hot_labels(pipeline):
    pytest.importorskip(pipeline)
    examples = make()
    for dataset in (
        train_batches(examples, seed=0, batch_size=32, one_hot=True, pipeline=pipeline),
        eval_batches(examples, 32, one_hot=True, pipeline=pipeline),
    ):
        (_, labels, index), *_ = numpy_batches(dataset, 1)
        assert labels.dtype == np.float32 and labels.shape == (32, 10)
        place = {number: position for position, number in enumerate(examples.index)}
        np.testing.assert_array_equal(labels, np.eye(10)[examples.labels[[place[number] for number in index]]])


@pytest.mark.parametrize("pipeline", PIPELINES, ids=IDS)
def test_eval_batches_repeats_in_order(pipeline):
    pytest.importorskip(pipeline)
    examples = make()
    dataset = eval_batches(examples, 64, pipeline=pipeline)
    assert len(dataset) == 3
    for _ in range(2):
        images, labels, index = (np.concatenate(arrays) for arrays in zip(*numpy_batches(dataset)))
        np.testing.assert_array_equal(index, examples.index)
        np.testing.assert_array_equal(labels, examples.labels)
        np.testing.assert_array_equal(images, examples.normalize(examples.images.astype("float32")))


@pytest.mark.parametrize("pipeline", PIPELINES, ids=IDS)
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "`batch_size` must be a positive integer. Received: batch_size=0"),
        ({"seed": -1}, "Received: seed=-1"),
        (
            {"initial_position": (0, 3)},
            "a step from 0 to 2, because an epoch has 150 examples in batches of 64. .* step 3",
        ),
        ({"initial_position": (-1, 0)}, r"Received: initial_position\[0\]=-1"),
        ({"padding": -1}, "Received: padding=-1"),
        ({"padding_mode": "grey"}, "one of .'constant', 'reflect'.. Received: padding_mode='grey'"),
        (
            {"padding_mode": "reflect", "padding": 8},
            r"`padding` must be less than 6 .* shape \(8, \d+, 3\). Received: padding=8",
        ),
        ({"num_views": 0}, "Received: num_views=0"),
    ],
)
def test_train_batches_validates_arguments_at_call(pipeline, settings, message):
    pytest.importorskip(pipeline)
    with pytest.raises(ValueError, match=message):
        train_batches(make(), **{"seed": 0, "batch_size": 64, "pipeline": pipeline, **settings})


def test_eval_batches_rejects_invalid_arguments():
    with pytest.raises(ValueError, match="`pipeline` must be .* Received: pipeline='mxnet'"):
        eval_batches(make(), 64, pipeline="mxnet")
    with pytest.raises(ValueError, match="Received: batch_size=0"):
        eval_batches(make(), 0)


def test_tf_data_autotune_is_disabled():
    """Its thread may outlive the iterator for up to a minute, a race in TensorFlow that cannot be reproduced."""
    pytest.importorskip("tensorflow")
    how = {"pipeline": "tensorflow"}
    for batches in (
        train_batches(make(), seed=0, batch_size=32, **how),
        augmented_batches(make(), 32, seed=0, view=0, **how),
        eval_batches(make(), 32, **how),
    ):
        assert batches.options().autotune.enabled is False


def test_pipeline_auto_depends_on_backend():
    dataset = eval_batches(make(), 64)
    tensorflow = keras.backend.backend() == "tensorflow"
    assert isinstance(dataset, keras.utils.PyDataset) != tensorflow
    assert type(dataset).__module__.startswith("tensorflow") == tensorflow


class Dataset(keras.Model):
    """A model that trains on batches with labels and index, as Distiller does, and counts its examples."""

    def __init__(self):
        super().__init__()
        self.network = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(10)])
        self.seen = keras.metrics.Sum(name="seen")

    def call(self, images):
        return self.network(images)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        self.seen.update_state(keras.ops.ones_like(y["index"], dtype="float32"))
        losses = keras.losses.sparse_categorical_crossentropy(y["labels"], y_pred, from_logits=True)
        return keras.ops.mean(losses)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        # On Torch, Sum's result is the live variable, which validation resets before fit reads the log.
        return {"seen": self.seen.result() + 0.0}


@pytest.mark.parametrize("pipeline", ["auto", "numpy"])
def test_keras_accepts_batches(pipeline):
    examples = make()
    train = train_batches(examples, seed=0, batch_size=64, pipeline=pipeline)
    held = eval_batches(examples.stratified_subset(100), 64, pipeline=pipeline)
    model = Dataset()
    model.compile(optimizer=keras.optimizers.SGD(0.01))
    history = model.fit(train, epochs=3, steps_per_epoch=3, validation_data=held, verbose=0).history
    assert history["seen"] == [150, 150, 150]
    assert history["val_seen"] == [100, 100, 100]  # A generator would be empty after the first epoch.
    assert model.evaluate(held, return_dict=True, verbose=0)["seen"] == 100
    images = np.concatenate([images for images, _, _ in numpy_batches(held)])
    np.testing.assert_allclose(model.predict(held, verbose=0), model.predict(images, verbose=0), atol=1e-5)


def test_numpy_pipeline_works_without_tensorflow(tmp_path):
    """Import, read a .npz file and make batches without TensorFlow, TFDS and scikit-learn."""
    pytest.importorskip("jax")
    make().save(tmp_path / "examples.npz")
    script = """
        import sys

        class Blocker:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in ("tensorflow", "tensorflow_datasets", "sklearn"):
                    raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        sys.meta_path.insert(0, Blocker())
        import keras_wsl.data as data

        examples = data.ImageArrays.load(sys.argv[1])
        images, targets = next(data.train_batches(examples, seed=0, batch_size=64))
        print(images.shape, sorted(targets), len(list(data.eval_batches(examples, 64))))
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "examples.npz")]
    environment = {**os.environ, "KERAS_BACKEND": "jax", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = run_child(command, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[-2] == "(64, 8, 6, 3) ['index', 'labels'] 3"


def test_import_does_not_import_tensorflow():
    script = "import sys, keras; before = set(sys.modules); import keras_wsl.data; print(*(set(sys.modules) - before))"
    environment = {**os.environ, "KERAS_BACKEND": "jax", "PYTHONPATH": os.pathsep.join(sys.path)}
    pytest.importorskip("jax")
    done = run_child([sys.executable, "-c", script], env=environment, check=True)
    heavy = {"tensorflow", "tensorflow_datasets", "sklearn", "scipy", "matplotlib", "pandas"}
    assert "keras_wsl.data" in done.stdout.split()
    assert not heavy & {name.split(".")[0] for name in done.stdout.split()}
