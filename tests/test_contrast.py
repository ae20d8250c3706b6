"""CRD in `fit`: negatives, memories, files and resumed runs."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_wsl import Distiller, losses
from keras_wsl.callbacks import ExactBackupAndRestore
from tests.callbacks import backup_child
from tests.callbacks.test_backup import InterruptAfter, InterruptedRunError
from tests.common import arrays, examples, hard_loss, network, save_and_load
from tests.test_distiller import BACKEND, changed

pytestmark = pytest.mark.eager


COUNT, NEGATIVES, BATCH = 24, 6, 8
STEPS = COUNT // BATCH


def made(labels, seed=1, **settings):
    """Return a Distiller and its CRD, the same at every call."""
    keras.utils.set_random_seed(seed)
    crd = losses.CRD(labels, layers=["hidden"], negatives=NEGATIVES, dimensions=4)
    distiller = Distiller(network("teacher", width=13), network("student"), [losses.KD(), crd])
    distiller.compile(keras.optimizers.SGD(0.05, momentum=0.9), hard_loss(), **settings)
    return distiller, crd


def data():
    x, y = examples(COUNT)
    return x, {"labels": y, "index": np.arange(COUNT)}


def fit(distiller, epochs=1):
    x, y = data()
    return distiller.fit(x, y, batch_size=BATCH, epochs=epochs, shuffle=False, verbose=0).history


def memories(crd):
    return [np.array(ops.convert_to_numpy(bank.features)) for bank in (crd.student_memory, crd.teacher_memory)]


def test_sample_negatives_returns_distinct_examples_of_other_classes():
    """Each row has exactly `negatives` of them, for classes of different sizes and indices without an example."""
    generator = np.random.default_rng(0)
    labels = generator.choice([-1, 0, 1, 2], size=60, p=[0.2, 0.5, 0.2, 0.1])
    counts = np.bincount(labels[labels >= 0])
    loss = losses.CRD(labels, layers=["hidden"], negatives=int(counts.sum() - counts.max()))  # The maximum.
    fewer = losses.CRD(labels, layers=["hidden"], negatives=5)
    index = np.flatnonzero(labels >= 0)[:20].astype("int32")
    for crd in (loss, fewer):
        for _ in range(3):
            pairs, selected = (
                np.array(ops.convert_to_numpy(each)) for each in crd.sample_negatives(ops.convert_to_tensor(index))
            )
            assert (pairs[:, 0] == index).all() and selected[:, 0].all()
            assert (selected[:, 1:].sum(axis=1) == crd.negatives).all()
            for candidates, is_negative, number in zip(pairs[:, 1:], selected[:, 1:], index):
                negatives = candidates[is_negative]
                assert len(set(negatives)) == crd.negatives
                assert (labels[negatives] >= 0).all() and (labels[negatives] != labels[number]).all()


def test_sample_negatives_is_uniform():
    """The count of each candidate is within 5 standard deviations of its binomial mean."""
    keras.utils.set_random_seed(0)
    labels = np.arange(24) % 4
    crd = losses.CRD(labels, layers=["hidden"], negatives=6)
    counts = np.zeros(24)
    draws = 400
    for _ in range(draws):
        pairs, selected = (
            np.array(ops.convert_to_numpy(array)) for array in crd.sample_negatives(np.array([5], "int32"))
        )
        counts[pairs[0, 1:][selected[0, 1:]]] += 1
    others = labels != labels[5]
    assert not counts[~others].any() and counts.sum() == 6 * draws
    chance = 6 / others.sum()
    assert np.abs(counts[others] - draws * chance).max() < 5 * np.sqrt(draws * chance * (1 - chance))


def test_compiled_steps_sample_new_negatives():
    """The state of the random generator changes, and is a variable of the Distiller."""
    _, y = data()
    distiller, crd = made(y["labels"])
    state = np.array(ops.convert_to_numpy(crd.seed.state))
    fit(distiller)
    assert (state != ops.convert_to_numpy(crd.seed.state)).any()
    assert id(crd.seed.state) in {id(variable) for variable in distiller.variables}


def test_fit_updates_the_memories_of_its_examples():
    """Their rows have norm 1, all other rows do not change. The partition constants stay after the first batch."""
    x, y = data()
    distiller, crd = made(y["labels"])
    before = memories(crd)
    seen = np.array([0, 3, 4, 7, 9, 11, 20, 23])
    part = {name: values[seen] for name, values in y.items()}
    history = distiller.fit(x[seen], part, batch_size=4, epochs=1, verbose=0).history
    assert np.isfinite(history["crd"]).all()
    for old, new in zip(before, memories(crd)):
        others = np.setdiff1d(np.arange(COUNT), seen)
        np.testing.assert_array_equal(old[others], new[others])
        np.testing.assert_allclose(np.linalg.norm(new[seen], axis=-1), 1, atol=1e-5)
        assert (old[seen] != new[seen]).any(axis=-1).all()
    partition_constants = ops.convert_to_numpy(crd.partition_constants).copy()
    assert (partition_constants > 0).all()
    fit(distiller)
    np.testing.assert_array_equal(partition_constants, ops.convert_to_numpy(crd.partition_constants))


def test_evaluation_does_not_update_memories():
    x, y = data()
    distiller, _ = made(y["labels"])
    fit(distiller)
    before = arrays(distiller)
    distiller.evaluate(x, y, verbose=0)
    distiller.predict(x, verbose=0)
    assert not changed(before, arrays(distiller))


def test_fit_trains_both_embeddings():
    _, y = data()
    distiller, crd = made(y["labels"])
    before = [arrays(layer) for layer in (crd.student_embedding, crd.teacher_embedding, distiller.teacher)]
    history = fit(distiller, epochs=15)
    after = [arrays(layer) for layer in (crd.student_embedding, crd.teacher_embedding, distiller.teacher)]
    assert [changed(one, other) for one, other in zip(before, after)] == [True, True, False]
    assert history["crd"][-1] < 0.9 * history["crd"][0]


@pytest.mark.parametrize("ending", [".keras", pytest.param(".weights.h5", marks=pytest.mark.slow)])
def test_loaded_distiller_continues_to_the_same_bits(ending, tmp_path):
    """The file has memories, partition constants, the random state, and the labels of the data set in the config."""
    _, y = data()
    whole, distiller = (made(y["labels"])[0] for _ in range(2))
    fit(whole)
    fit(distiller)
    path = tmp_path / f"distiller{ending}"
    loaded = save_and_load(distiller, path, lambda: made(y["labels"], seed=8)[0])
    if ending == ".keras":
        np.testing.assert_array_equal(loaded.distillation_losses[1].labels, y["labels"])
    assert fit(whole) == fit(loaded)
    assert not changed(arrays(whole), arrays(loaded))


def batches(start):
    """Return endless batches from a step on."""
    x, y = data()
    x, labels, index = (array.reshape(STEPS, BATCH, *array.shape[1:]) for array in (x, y["labels"], y["index"]))
    first = start[0] * STEPS + start[1]
    if BACKEND == "tensorflow":
        import tensorflow as tf

        dataset = tf.data.Dataset.from_tensor_slices((x, {"labels": labels, "index": index}))
        return dataset.repeat().skip(first)
    steps = (i % STEPS for i in range(first, 10**6))
    return ((x[i], {"labels": labels[i], "index": index[i]}) for i in steps)


def resumable(directory, cut=()):
    """What two equal runs share."""
    backup = ExactBackupAndRestore(directory, STEPS, save_freq=1)
    distiller, _ = made(data()[1]["labels"])
    distiller.fit(
        batches(backup.initial_position),
        initial_epoch=backup.initial_position[0],
        steps_per_epoch=STEPS,
        epochs=3,
        verbose=0,
        shuffle=False,
        callbacks=[backup, *cut],
    )
    return arrays(distiller) + arrays(distiller.optimizer), backup.history


def test_resumed_run_matches_an_uninterrupted_run(tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda descriptor: None)  # Needed only for power failures.
    backup_child.make_deterministic()
    weights, history = resumable(tmp_path / "whole")
    with pytest.raises(InterruptedRunError):
        resumable(tmp_path / "cut", [InterruptAfter(STEPS + 2)])
    resumed, resumed_history = resumable(tmp_path / "cut")
    assert resumed_history == history
    assert not changed(weights, resumed)


def test_targets_without_an_index_raise():
    x, y = data()
    distiller, _ = made(y["labels"], run_eagerly=True)
    with pytest.raises(ValueError, match=r"crd needs the index of each example in the data set.*\"index\""):
        distiller.fit(x, y["labels"], verbose=0)


@pytest.mark.parametrize("index", [pytest.param(-1, marks=pytest.mark.slow), COUNT])
def test_index_out_of_range_gives_an_error_or_nan(index):
    """An error on TensorFlow, and a loss of NaN on other backends."""
    x, y = data()
    distiller, _ = made(y["labels"])
    y["index"][3] = index
    if BACKEND == "tensorflow":
        import tensorflow as tf

        with pytest.raises(tf.errors.InvalidArgumentError, match=r"The index of an example must be in \[0, 24\)"):
            distiller.fit(x, y, batch_size=BATCH, verbose=0)
    else:
        assert np.isnan(distiller.fit(x, y, batch_size=BATCH, verbose=0).history["crd"]).all()


@pytest.mark.parametrize("ending", [".keras", pytest.param(".weights.h5", marks=pytest.mark.slow)])
def test_files_keep_the_random_state_of_a_weighting(ending, tmp_path):
    """Keras saves no generators, but the state here is a variable."""
    weighting = {"name": "exclude_regularization_samples", "keep_probability": 0.5}

    def start():
        keras.utils.set_random_seed(1)
        distiller = Distiller(network("teacher", width=13), network("student"), losses.KD(weighting=weighting))
        distiller.compile(keras.optimizers.SGD(0.05), hard_loss())
        return distiller

    whole, distiller = start(), start()
    fit(whole)
    fit(distiller)
    path = tmp_path / f"distiller{ending}"
    loaded = save_and_load(distiller, path, lambda: start())
    assert fit(whole) == fit(loaded)
    assert not changed(arrays(whole), arrays(loaded))


# Teacher-free distillation.


def test_tf_kd_reg_needs_no_teacher(tmp_path):
    """It fits, counts no regularization samples, and continues from a file."""

    def fitted(distiller):
        x, y = examples(COUNT)
        return distiller.fit(x, y, batch_size=BATCH, epochs=2, shuffle=False, verbose=0, validation_data=(x, y)).history

    def start():
        keras.utils.set_random_seed(1)
        distiller = Distiller(None, network("student"), losses.TfKDReg(weight=0.95), student_loss_weight=0.05)
        distiller.compile(keras.optimizers.SGD(0.1, momentum=0.9), hard_loss())
        return distiller

    whole, distiller = start(), start()
    history = fitted(whole)
    assert set(history) == {"loss", "student_loss", "tf_kd_reg", "distillation_loss", "val_loss"}
    np.testing.assert_allclose(
        history["loss"],
        0.05 * np.array(history["student_loss"]) + 0.95 * np.array(history["tf_kd_reg"]),
        rtol=1e-5,
    )
    fitted(distiller)
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.saving.load_model(tmp_path / "distiller.keras")
    assert loaded.teacher is None
    assert fitted(whole) == fitted(loaded)
    assert not changed(arrays(whole), arrays(loaded))


def test_tf_kd_reg_with_a_weighting_needs_a_teacher():
    x, y = examples(BATCH)
    distiller = Distiller(None, network("student"), losses.TfKDReg(weighting="wsl"))
    distiller.compile("sgd", hard_loss())
    with pytest.raises(ValueError, match="`distiller.teacher` must be set before `fit`"):
        distiller.fit(x, y, verbose=0)
