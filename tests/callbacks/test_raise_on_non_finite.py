"""RaiseOnNonFinite: the first value that is not finite stops a run, by name."""

import keras
import numpy as np
import pytest

from keras_wsl import Distiller, losses
from keras_wsl.callbacks import ExactBackupAndRestore, NonFiniteLossError, RaiseOnNonFinite
from tests.callbacks.backup_child import STEPS, arrays, batch, batches, build_model
from tests.common import examples, hard_loss, network

pytestmark = pytest.mark.eager


def poisoned(epoch, step, value=np.nan):
    """Yield batches, one of which has an image with a non-finite value."""
    images, labels = (array.copy() for array in arrays(4))
    images[epoch * STEPS + step, 0] = value
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.data.Dataset.from_tensor_slices((images, labels)).repeat()
    return iter_pairs(images, labels)


def iter_pairs(*pairs):
    """Return a generator, which Keras requires for endless data."""
    yield from zip(*pairs)


def fit(data, *callbacks, epochs=3, **settings):
    build_model().fit(
        data,
        steps_per_epoch=STEPS,
        epochs=epochs,
        verbose=0,
        shuffle=False,
        callbacks=[*callbacks],
        **settings,
    )


@pytest.mark.parametrize("every, epoch, step, expected", [(1, 0, 0, 1), (1, 1, 3, 4), (3, 1, 3, 6), (100, 0, 3, STEPS)])
def test_raise_on_non_finite_stops_at_next_check(every, epoch, step, expected):
    with pytest.raises(
        NonFiniteLossError, match=rf"loss=nan, epoch {epoch + 1}, .* updates .* Lower the learning"
    ) as error:
        fit(poisoned(epoch, step), RaiseOnNonFinite(every))
    assert (error.value.epoch, error.value.step, error.value.terms) == (epoch + 1, expected, ["loss"])
    assert f"after {epoch * STEPS + expected} updates" in str(error.value)
    # Eight per step, since the previous check.
    first = 1 + 8 * ((expected - 1) // every) * every
    assert error.value.examples == (first, 8 * expected)
    assert f"step {expected} among examples {first} to {8 * expected} of the epoch" in str(error.value)


def test_raise_on_non_finite_names_terms_before_sum():
    callback = RaiseOnNonFinite()
    callback.set_model(build_model())
    callback.on_epoch_begin(4)
    callback.on_train_batch_end(0, {"accuracy": 0.5, "kd": 1.0, "loss": 2.0, "student_loss": 1.0, "note": "text"})
    with pytest.raises(NonFiniteLossError, match=r"kd=inf, student_loss=nan, loss=nan, epoch 5, step 2 ") as error:
        callback.on_train_batch_end(1, {"accuracy": 0.5, "kd": np.inf, "loss": np.nan, "student_loss": np.nan})
    assert error.value.terms == ["kd", "student_loss", "loss"]
    assert isinstance(error.value, FloatingPointError)


def test_raise_on_non_finite_checks_all_logs_at_epoch_end():
    images, labels = batch(0, 0)
    with pytest.raises(NonFiniteLossError, match=r"val_loss=nan, epoch 1, at the end \(all counted") as error:
        fit(batches((0, 0)), RaiseOnNonFinite(), validation_data=(images * np.nan, labels))
    assert error.value.examples is None and error.value.step is None
    callback = RaiseOnNonFinite()
    callback.set_model(build_model())
    with pytest.raises(NonFiniteLossError, match="recall="):
        callback.on_epoch_end(0, {"recall": np.array([1.0, np.nan]), "loss": 1.0})


def test_raise_on_non_finite_does_not_change_finite_run():
    class Ends(keras.callbacks.Callback):
        def on_train_end(self, logs=None):
            self.weights = [keras.ops.convert_to_numpy(v) for v in self.model.variables]

    ends = []
    for callbacks in ([], [RaiseOnNonFinite()]):
        keras.utils.set_random_seed(0)
        end = Ends()
        fit(batches((0, 0)), *callbacks, end)
        ends.append(end.weights)
    np.testing.assert_equal(*ends)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_raise_on_non_finite_keeps_last_finite_backup(tmp_path, order):
    callbacks = [ExactBackupAndRestore(tmp_path, STEPS, save_freq=2), RaiseOnNonFinite(2)]
    with pytest.raises(NonFiniteLossError, match="epoch 2, step 4 "):
        fit(poisoned(1, 2), *[callbacks[i] for i in order])
    backup = ExactBackupAndRestore(tmp_path, STEPS, save_freq=2)
    assert backup.initial_position == [1, 2]
    model = build_model()
    model.fit(
        batches(backup.initial_position),
        initial_epoch=1,
        steps_per_epoch=STEPS,
        epochs=2,
        verbose=0,
        shuffle=False,
        callbacks=[backup, RaiseOnNonFinite()],
    )
    assert np.isfinite(backup.history[-1]["loss"])


SIZES = (8, 5, 8, 3, 8, 1, 8)  # Of batches: 41 examples an epoch.


def uneven(spoil):
    """Yield batches of these sizes for a Distiller. `spoil` changes one batch of the first epoch, given its step."""
    x, y = examples(sum(SIZES))
    parts = [slice(end - size, end) for end, size in zip(np.cumsum(SIZES), SIZES)]
    while True:
        for step, part in enumerate(parts):
            yield spoil(step, x[part].copy(), {"labels": y[part] % 4})


class InfiniteForClass4(losses.DistillationLoss):
    """A loss that is infinite for the examples of one class, and 0 for others."""

    def per_example(self, labels, student, teacher):
        return keras.ops.where(labels == 4, float("inf"), 0.0 * student["logits"][:, 0])


def fit_uneven(spoil, *, every=1):
    """Return the error that stops the training of a Distiller."""
    distiller = Distiller(network("teacher"), network("student"), [losses.WSL(), InfiniteForClass4(name="broken")])
    distiller.compile("sgd", hard_loss(), metrics=["accuracy"])
    with pytest.raises(NonFiniteLossError) as error:
        distiller.fit(
            uneven(spoil),
            steps_per_epoch=len(SIZES),
            epochs=2,
            verbose=0,
            shuffle=False,
            callbacks=[RaiseOnNonFinite(every)],
        )
    return error.value


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("every, step, result, expected", [(1, 3, 4, (22, 24)), (3, 3, 6, (22, 33))])
def test_raise_on_non_finite_counts_examples_of_uneven_batches(every, step, result, expected, value):
    """A value in one input affects all terms, and through batch normalization all examples of its batch."""

    def spoil(now, x, y):
        x[0, 0] = value if now == step else 0
        return x, y

    error = fit_uneven(spoil, every=every)
    assert (error.epoch, error.step, error.examples) == (1, result, expected)
    assert {"student_loss", "wsl"} <= set(error.terms) and error.terms[-1] == "loss"


def test_raise_on_non_finite_counts_examples_of_one_term():
    def spoil(now, x, y):
        return x, {"labels": np.full_like(y["labels"], 4 if now == 5 else 0)}

    error = fit_uneven(spoil)
    assert (error.epoch, error.step, error.examples) == (1, 6, (33, 33))
    assert error.terms == ["broken", "distillation_loss", "loss"]


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="Keras has no steps_per_execution on Torch.")
@pytest.mark.traced
def test_raise_on_non_finite_supports_steps_per_execution():
    model = build_model()
    model.compile(model.optimizer, model.loss, steps_per_execution=2)
    with pytest.raises(NonFiniteLossError, match="epoch 1, step 4 "):
        model.fit(
            poisoned(0, 1), steps_per_epoch=6, epochs=1, verbose=0, shuffle=False, callbacks=[RaiseOnNonFinite(3)]
        )


@pytest.mark.parametrize("every", [0, -1, 1.5, None])
def test_raise_on_non_finite_refuses_invalid_every_steps(every):
    with pytest.raises(ValueError, match=f"positive integer. Received: every_steps={every}"):
        RaiseOnNonFinite(every)
