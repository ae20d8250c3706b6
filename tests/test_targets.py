"""Labels, weights and shapes in batches, which no one sees before the step."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_wsl import Distiller, losses, weighting
from keras_wsl.ops import to_int32
from tests.common import arrays, examples, hard_loss, network
from tests.test_class_weight import Batches
from tests.test_distiller import BACKEND, changed

tf = pytest.importorskip("tensorflow")
X, Y = examples(12)
HUGE = 2**32 + 3  # As int32 it is 3.


def compiled(teacher=None, **settings):
    distiller = Distiller(teacher, network("student"), losses.KD() if teacher else ())
    distiller.compile(keras.optimizers.SGD(0.5), hard_loss(), weighted_metrics=["accuracy"], **settings)
    return distiller


def dataset(*parts):
    return tf.data.Dataset.from_tensor_slices(parts).batch(4)


def is_refused(run, message):
    """Whether a step fails with this message on TensorFlow; elsewhere it fails, or its loss is NaN."""
    if BACKEND == "tensorflow":
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            run()
        return True
    try:
        return np.isnan(run())
    except (IndexError, ValueError):  # Torch has no class of this number, and no uint64.
        return BACKEND == "torch"


def fit_loss(distiller, batches):
    return distiller.fit(batches, verbose=0).history["loss"][-1]


@pytest.mark.parametrize("dtype", ["int64", "uint32", "uint64", "float32", "float64"])
def test_labels_beyond_int32_do_not_wrap(dtype):
    """In arrays they are refused before the first step, in batches inside of it."""
    labels = Y.astype(dtype)
    labels[5] = min(HUGE, np.iinfo(dtype).max) if np.dtype(dtype).kind in "iu" else HUGE
    before = compiled()
    for train in (before.fit, before.train_on_batch, before.evaluate):
        with pytest.raises(ValueError, match=r"Labels must be below 2\*\*31. Received: 4294967.* in row 5; 1 of 12"):
            train(X, {"labels": labels})
    with pytest.raises(ValueError, match=r"Labels must be below 2\*\*31"):
        before.fit(X, Y, validation_data=(X, labels))


@pytest.mark.parametrize("dtype", ["int64", "uint32", "uint64", "float32", "float64"])
def test_labels_beyond_int32_in_batches_do_not_wrap(dtype):
    if BACKEND == "jax" and dtype in ("int64", "uint64"):
        pytest.skip("Keras on JAX casts batches to 32 bits before a step sees them")
    labels = Y.astype(dtype)
    labels[1] = HUGE - (8 if dtype == "uint32" else 0)
    distiller = compiled()
    assert is_refused(lambda: fit_loss(distiller, dataset(X, labels)), r"Labels must be in \[0, 5\)")
    distiller = compiled()
    assert is_refused(lambda: distiller.evaluate(dataset(X, labels), verbose=0)[0], r"Labels must be in \[0, 5\)")


def test_index_beyond_int32_is_refused():
    index = np.arange(12) + 2**32
    with pytest.raises(ValueError, match=r"The index of an example must be below 2\*\*31. Received: 4294967296"):
        compiled().fit(X, {"labels": Y, "index": index})


@pytest.mark.parametrize("make", [np.asarray, ops.convert_to_tensor])
@pytest.mark.parametrize("dtype", ["bool", "int8", "uint8", "int16", "int32", "int64", "uint32", "float16", "float32"])
def test_to_int32_keeps_every_class(make, dtype):
    values = np.array([0, 1] if dtype == "bool" else [0, 1, 100]).astype(dtype)
    result = to_int32(make(values))
    assert keras.backend.standardize_dtype(result.dtype) == "int32"
    np.testing.assert_array_equal(ops.convert_to_numpy(result), values.astype("int32"))


@pytest.mark.parametrize(
    "value",
    [*(np.array(v) for v in (HUGE, -(2**40), 2**31, 2**63 - 1, 1e12, 0.5, np.nan, np.inf, -np.inf))]
    + [np.uint64(2**64 - 1), np.uint32(2**32 - 1), np.float16("inf"), np.float32(2**31)],
    ids=repr,
)
def test_to_int32_keeps_other_values_out_of_range(value):
    assert not 0 <= int(to_int32(np.atleast_1d(value))[0]) < 2**30


def test_weights_of_labels_beyond_int32_are_not_those_of_another_class():
    """The functions that users call themselves."""
    labels, logits = np.array([HUGE, 1]), np.array([[0.0, 1.0, 2.0, 5.0]] * 2, "float32")

    def weight():
        return ops.convert_to_numpy(weighting.wsl(labels, logits, logits[:, ::-1].copy()))[0]

    assert is_refused(weight, r"2147483647 is not in \[0, 4\)")


@pytest.mark.parametrize("weight", [-1.0, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("data", ["tf.data", "PyDataset"])
def test_weights_in_batches_are_finite_and_not_negative(weight, data):
    """Wherever the loss or a weighted metric uses them."""
    weights = np.ones(12, "float32")
    weights[2] = weight
    batches = {"tf.data": dataset, "PyDataset": Batches}[data]
    message = r"`sample_weight` must be in \[0, inf\)"
    assert is_refused(lambda: fit_loss(compiled(network("teacher")), batches(X, Y, weights)), message)
    assert is_refused(lambda: compiled().evaluate(batches(X, Y, weights), verbose=0)[0], message)


def test_weights_may_be_zero_or_integers():
    distiller = compiled(run_eagerly=True)
    before = arrays(distiller.student)[:2]
    assert fit_loss(distiller, dataset(X, Y, np.zeros(12, "int64"))) == 0
    assert not changed(before, arrays(distiller.student)[:2])


def unknown(*parts, which):
    """Batches one part of which has an unknown shape."""

    def forget(*batch):
        return tuple(
            tf.py_function(lambda array: array, [array], array.dtype) if i == which else array
            for i, array in enumerate(batch)
        )

    return dataset(*parts).map(forget)


@pytest.mark.tensorflow
@pytest.mark.parametrize(("which", "name"), [(0, "inputs"), (1, "labels"), (2, "sample_weight")])
def test_tensors_of_unknown_rank_are_refused_by_name(which, name):
    batches = unknown(X, Y, np.ones(12, "float32"), which=which)
    message = f"`{name}` must have a known rank.*Set its shape in `dataset.map` with tf.ensure_shape"
    for distiller in (compiled(), compiled(network("teacher"))):
        for run in (distiller.fit, distiller.evaluate):
            with pytest.raises(ValueError, match=message):
                run(batches, verbose=0)
    assert distiller.predict(batches, verbose=0).shape == (12, 5)  # Keras reads its batches before it traces.


@pytest.mark.tensorflow
def test_unknown_rank_in_a_dict_is_refused_by_key_and_may_be_set():
    def forget(x, y):
        return {"a": x}, {"labels": tf.py_function(lambda array: array, [y], y.dtype)}

    def known(x, y):
        return x["a"], tf.ensure_shape(y["labels"], [None])

    batches = dataset(X, Y).map(forget)
    with pytest.raises(ValueError, match=r"`labels\['labels'\]` must have a known rank"):
        compiled().fit(batches, verbose=0)
    assert np.isfinite(fit_loss(compiled(), batches.map(known)))


@pytest.mark.parametrize("wrong", [np.ones((8, 5), "float32"), -np.ones(8, "float32")], ids=["shape", "value"])
def test_fit_trains_after_a_refused_call(wrong):
    """A notebook's user corrects the mistake and calls `fit` of the same Distiller again."""
    distiller = Distiller(network("teacher"), network("student"), losses.WSL())
    distiller.compile("sgd", hard_loss())
    x, y = examples(8)
    with pytest.raises(ValueError, match="sample_weight"):
        distiller.fit(x, y, sample_weight=wrong, verbose=0)
    history = distiller.fit(x, y, sample_weight=np.ones(8, "float32"), verbose=0).history
    assert np.isfinite(history["loss"]).all()


@pytest.mark.parametrize("dtype", ["int8", "float32"])
def test_fit_refuses_negative_one_hot_labels(dtype):
    distiller = Distiller(network("teacher"), network("student"), losses.WSL())
    distiller.compile("sgd", keras.losses.CategoricalCrossentropy(from_logits=True))
    x, y = examples(8)
    with pytest.raises(ValueError, match="non-negative if they are probabilities. Received: -1"):
        distiller.fit(x, -np.eye(5, dtype=dtype)[y], verbose=0)
