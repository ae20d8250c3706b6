"""RegularizationSamples: counts against NumPy, files, and that it does not affect training."""

import csv

import keras
import numpy as np
import pytest

from keras_wsl import Distiller, callbacks, losses
from tests.common import arrays, examples, hard_loss, network

pytestmark = pytest.mark.eager


def _train(observers=(), epochs=2, start=0, distiller=None):
    keras.utils.set_random_seed(3)
    teacher, student = network("teacher", 16), network("student")
    distiller = distiller or Distiller(teacher, student, losses.WSL(temperature=3.0))
    distiller.compile(keras.optimizers.SGD(0.1, momentum=0.9), hard_loss())
    x, y = examples(48)
    history = distiller.fit(x, y, batch_size=16, epochs=epochs, initial_epoch=start, verbose=0, callbacks=[*observers])
    return distiller, history.history


def _softmax(z, temperature=1.0):
    z = np.exp((z - z.max(-1, keepdims=True)).astype("float64") / temperature)
    return z / z.sum(-1, keepdims=True)


def test_regularization_samples_match_numpy(tmp_path):
    x, y = examples(30, seed=9)
    observer = callbacks.RegularizationSamples(tmp_path, (x, y), batch_size=7)
    distiller, history = _train([observer], epochs=1)
    student, teacher = (keras.ops.convert_to_numpy(m(x)) for m in (distiller.student, distiller.teacher))
    rows = np.arange(30)
    p, p3, t3 = _softmax(student)[rows, y], _softmax(student, 3.0)[rows, y], _softmax(teacher, 3.0)[rows, y]
    mask = np.abs(3.0 * (p3 - t3) - (p - 1)) > np.abs(p - 1)
    weights = 1 - np.exp(-np.log(p) / np.log(_softmax(teacher)[rows, y]))
    assert history["clean_regularization_samples"] == [mask.sum()]
    np.testing.assert_allclose(history["clean_regularization_sample_rate"], [mask.mean()])
    np.testing.assert_allclose(history["clean_mean_wsl_weight"], [weights.mean()], rtol=1e-4)
    with open(tmp_path / "regularization_samples.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert int(row["regularization_samples"]) == mask.sum()
    assert [int(row[f"class_{c}"]) for c in range(5)] == np.bincount(y[mask], minlength=5).tolist()


def test_regularization_samples_without_clean_data_match_training():
    # One batch per epoch and no dropout: the student before its update, with the batch's statistics.
    keras.utils.set_random_seed(3)
    teacher, student = network("teacher", 16), network("student")
    x, y = examples(40)
    logits = keras.ops.convert_to_numpy(student(x, training=True))
    taught = keras.ops.convert_to_numpy(teacher(x))
    distiller = Distiller(teacher, student, losses.WSL(temperature=3.0))
    distiller.compile(keras.optimizers.SGD(0.1), hard_loss())
    history = distiller.fit(x, y, batch_size=40, epochs=1, verbose=0, shuffle=False).history
    rows = np.arange(40)
    p, p3, t3 = _softmax(logits)[rows, y], _softmax(logits, 3.0)[rows, y], _softmax(taught, 3.0)[rows, y]
    mask = np.abs(3.0 * (p3 - t3) - (p - 1)) > np.abs(p - 1)
    assert history["regularization_samples"] == [mask.sum()]
    np.testing.assert_allclose(history["regularization_sample_rate"], [mask.mean()], rtol=1e-6)
    weights = 1 - np.exp(-np.log(p) / np.log(_softmax(taught)[rows, y]))
    np.testing.assert_allclose(history["mean_wsl_weight"], [weights.mean()], rtol=1e-4)


def test_regularization_samples_do_not_affect_training(tmp_path):
    plain, history = _train()
    observed, seen = _train(
        [callbacks.RegularizationSamples(tmp_path, examples(30, seed=9)), callbacks.TensorBoardScalars(tmp_path)]
    )
    for expected, actual in zip(arrays(plain), arrays(observed)):
        np.testing.assert_array_equal(actual, expected)
    for name in history:
        assert history[name] == seen[name]


def test_regularization_samples_writes_readable_events(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    scalars = tmp_path / "scalars"
    observers = [callbacks.RegularizationSamples(tmp_path, examples(30, seed=9)), callbacks.TensorBoardScalars(scalars)]
    _, history = _train(observers)
    events = EventAccumulator(str(tmp_path), size_guidance={"tensors": 0}).Reload()
    tags = events.Tags()["tensors"]
    assert {"regularization/wsl_weight", "regularization/class", "regularization/mean_wsl_weight"} <= set(tags)
    buckets = [event.tensor_proto for event in events.Tensors("regularization/wsl_weight")]
    assert len(buckets) == 2
    counts = np.frombuffer(buckets[-1].tensor_content, "float64").reshape(-1, 3)[:, 2]
    assert counts.sum() == 30  # Every clean example has a weight.
    losses_seen = EventAccumulator(str(scalars), size_guidance={"tensors": 0}).Reload().Tensors("loss")
    assert [event.step for event in losses_seen] == [1, 2]
    np.testing.assert_allclose([event.tensor_proto.float_val[0] for event in losses_seen], history["loss"], rtol=1e-6)


def test_regularization_samples_resume_has_each_row_once(tmp_path):
    distiller, _ = _train([callbacks.RegularizationSamples(tmp_path)], epochs=3)
    _train([callbacks.RegularizationSamples(tmp_path)], epochs=4, start=2, distiller=distiller)
    with open(tmp_path / "regularization_samples.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    assert all(row["examples"] == "48" or float(row["regularization_samples"]) == 0 for row in rows)


def test_regularization_samples_refuses_misuse(tmp_path):
    x, y = examples(16)
    alone = Distiller(None, network("student"))
    alone.compile("sgd", hard_loss())
    with pytest.raises(ValueError, match="must be used with a Distiller that has a teacher"):
        alone.fit(x, y, verbose=0, callbacks=[callbacks.RegularizationSamples(tmp_path)])
    with pytest.raises(ValueError, match="Received: no batch"):
        _train([callbacks.RegularizationSamples(tmp_path, (x[:0], y[:0]))])
