"""DistillationWarmup: which losses it scales, and that a resumed run continues with the same scale."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_wsl import Distiller, losses
from keras_wsl.callbacks import DistillationWarmup, ExactBackupAndRestore
from tests.callbacks import backup_child
from tests.callbacks.test_backup import InterruptAfter, InterruptedRunError
from tests.common import arrays, examples, hard_loss, network, save_and_load
from tests.test_distiller import BACKEND, changed, log_softmax, logits

pytestmark = pytest.mark.eager


STEPS, BATCH = 3, 8


class Ramps(keras.callbacks.Callback):
    """Record the scale of each epoch."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_begin(self, batch, logs=None):
        if not batch:
            self.seen.append(float(ops.convert_to_numpy(self.model.distillation_scale)))


def made(learning_rate=0.0, **settings):
    """Return the same model at each call."""
    keras.utils.set_random_seed(1)
    several = [losses.DKD(weight=0.5), losses.KD(weight=2.0)]
    distiller = Distiller(network("teacher", width=13), network("student"), several, **settings)
    distiller.compile(keras.optimizers.SGD(learning_rate, momentum=0.9), hard_loss())
    return distiller


def fit(distiller, observers=(), epochs=5, **settings):
    x, y = examples(STEPS * BATCH)
    return distiller.fit(
        x, y, batch_size=BATCH, epochs=epochs, shuffle=False, verbose=0, callbacks=[*observers], **settings
    ).history


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [
        pytest.param(4, [0.25, 0.5, 0.75, 1, 1], marks=pytest.mark.slow),
        pytest.param(1, [1] * 5, marks=pytest.mark.slow),
        (2.5, [0.4, 0.8, 1, 1, 1]),
        pytest.param(20, [0.05, 0.1, 0.15, 0.2, 0.25], marks=pytest.mark.slow),
    ],
)
@pytest.mark.traced
def test_distillation_warmup_scale_per_epoch(epochs, expected):
    """The scale applies to the sum of the distillation losses, not to their own entries or the student's loss."""
    ramps = Ramps()
    history = fit(made(student_loss_weight=0.3), [DistillationWarmup(epochs), ramps])
    np.testing.assert_allclose(ramps.seen, expected, rtol=1e-6)
    plain = fit(made(student_loss_weight=0.3))
    for name in ("student_loss", "dkd", "kd"):
        np.testing.assert_allclose(history[name], plain[name], rtol=1e-6)
    np.testing.assert_allclose(
        history["distillation_loss"], np.multiply(expected, plain["distillation_loss"]), rtol=1e-5
    )
    weighted = 0.5 * np.array(plain["dkd"]) + 2 * np.array(plain["kd"])
    np.testing.assert_allclose(plain["distillation_loss"], weighted, rtol=1e-5)
    total = 0.3 * np.array(plain["student_loss"]) + expected * weighted
    np.testing.assert_allclose(history["loss"], total, rtol=1e-5)


def test_distillation_warmup_scales_the_gradient():
    """One step of a linear student matches the closed form on all backends."""
    x, y = examples(16)
    teacher = network("teacher")
    student = keras.Sequential([keras.Input((6,)), keras.layers.Dense(5, use_bias=False)], name="student")
    kernel = np.asarray(arrays(student)[0], "float64")
    s, t = logits(student, x), logits(teacher, x)
    distiller = Distiller(teacher, student, losses.KD(temperature=2.0, weight=3.0))
    distiller.compile(keras.optimizers.SGD(0.5), hard_loss())
    distiller.fit(x, y, batch_size=16, epochs=1, verbose=0, callbacks=[DistillationWarmup(5)])
    q, q2, p2 = (np.exp(log_softmax(z)) for z in (s, s / 2, t / 2))
    of_logits = (q - np.eye(5)[y]) + (1 / 5) * 3.0 * 2.0 * (q2 - p2)
    np.testing.assert_allclose(arrays(student)[0], kernel - 0.5 * x.T @ of_logits / 16, atol=1e-5)


def test_distillation_scale_is_constant_without_warmup():
    distiller = made(0.1)
    ramps = Ramps()
    fit(distiller, [ramps], epochs=2)
    assert ramps.seen == [1, 1]
    assert not distiller.distillation_scale.trainable


def test_distillation_warmup_counts_epochs_of_the_run():
    ramps = Ramps()
    fit(made(), [DistillationWarmup(4), ramps], epochs=3, initial_epoch=1)
    np.testing.assert_allclose(ramps.seen, [0.5, 0.75])


@pytest.mark.parametrize("ending", [".keras", pytest.param(".weights.h5", marks=pytest.mark.slow)])
def test_distillation_scale_is_saved_in_files(ending, tmp_path):
    """A run continued from a file ends in the same bits as an uninterrupted run."""
    whole, distiller = made(0.05), made(0.05)
    fit(whole, [DistillationWarmup(4)], epochs=3)
    fit(distiller, [DistillationWarmup(4)], epochs=2)
    path = tmp_path / f"distiller{ending}"
    loaded = save_and_load(distiller, path, lambda: made(0.05))
    assert float(ops.convert_to_numpy(loaded.distillation_scale)) == 0.5
    fit(loaded, [DistillationWarmup(4)], epochs=3, initial_epoch=2)
    assert not changed(arrays(whole), arrays(loaded))


def batches(start):
    """Yield endless batches, beginning with a step."""
    x, y = (array.reshape(STEPS, BATCH, *array.shape[1:]) for array in examples(STEPS * BATCH))
    first = start[0] * STEPS + start[1]
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return tf.data.Dataset.from_tensor_slices((x, y)).repeat().skip(first)
    return ((x[i % STEPS], y[i % STEPS]) for i in range(first, 10**6))


def resumable(directory, cut=()):
    """Return all values that are equal in two equal runs. The scales are of the epochs that this fit trained."""
    backup, ramps = ExactBackupAndRestore(directory, STEPS, save_freq=1), Ramps()
    distiller = made(0.05)
    distiller.fit(
        batches(backup.initial_position),
        initial_epoch=backup.initial_position[0],
        steps_per_epoch=STEPS,
        epochs=4,
        verbose=0,
        shuffle=False,
        callbacks=[backup, DistillationWarmup(4), ramps, *cut],
    )
    return arrays(distiller) + arrays(distiller.optimizer), backup.history, ramps.seen


# At the end of an epoch, and inside an epoch.
@pytest.mark.parametrize("steps", [pytest.param(STEPS, marks=pytest.mark.slow), STEPS + 2])
def test_distillation_warmup_resume_is_bitwise_equal(tmp_path, steps, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda descriptor: None)  # Only a power cut needs it.
    backup_child.make_deterministic()
    weights, history, ramps = resumable(tmp_path / "whole")
    np.testing.assert_allclose(ramps, [0.25, 0.5, 0.75, 1])
    with pytest.raises(InterruptedRunError):
        resumable(tmp_path / "cut", [InterruptAfter(steps)])
    resumed, resumed_history, resumed_ramps = resumable(tmp_path / "cut")
    assert resumed_ramps == ramps[-len(resumed_ramps) :]
    assert resumed_history == history
    assert not changed(weights, resumed)


@pytest.mark.parametrize("epochs", [0, -1, float("nan"), float("inf"), "3", None])
def test_distillation_warmup_refuses_invalid_epochs(epochs):
    with pytest.raises(ValueError, match="`epochs` must be a positive number. Received"):
        DistillationWarmup(epochs)


def test_distillation_warmup_refuses_other_models():
    model = network("student")
    model.compile("sgd", hard_loss())
    with pytest.raises(
        ValueError, match="DistillationWarmup must be used with a Distiller. Received: student, a Sequential"
    ):
        model.fit(*examples(8), verbose=0, callbacks=[DistillationWarmup()])
