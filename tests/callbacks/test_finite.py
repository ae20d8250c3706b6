"""FiniteLoss: the first value that is not finite stops a run, by name."""

import keras
import numpy as np
import pytest

from keras_wsl.callbacks import Backup, FiniteLoss, NonFiniteLoss
from tests.callbacks.backup_child import STEPS, arrays, batch, batches, build_model


def poisoned(epoch, step, value=np.nan):
    """Batches, of which one has an image with a value that is not finite."""
    images, labels = (array.copy() for array in arrays(4))
    images[epoch * STEPS + step, 0] = value
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.data.Dataset.from_tensor_slices((images, labels)).repeat()
    return iter_pairs(images, labels)


def iter_pairs(*pairs):
    """A generator, as Keras asks of endless data."""
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


@pytest.mark.parametrize("every, epoch, step, expected", [(1, 0, 0, 1), (1, 1, 3, 4), (3, 1, 3, 6), (100, 0, 3, None)])
def test_the_first_check_after_it_stops_the_run(every, epoch, step, expected):
    with pytest.raises(NonFiniteLoss, match=rf"loss=nan, epoch {epoch + 1}, .* updates .* Lower the learning") as error:
        fit(poisoned(epoch, step), FiniteLoss(every))
    assert (error.value.epoch, error.value.step, error.value.terms) == (epoch + 1, expected, ["loss"])
    updates = epoch * STEPS + (expected or STEPS)
    assert f"has made {updates} updates" in str(error.value)


def test_terms_are_named_before_their_sum():
    callback = FiniteLoss()
    callback.set_model(build_model())
    callback.on_epoch_begin(4)
    callback.on_train_batch_end(0, {"accuracy": 0.5, "kd": 1.0, "loss": 2.0, "student_loss": 1.0, "note": "text"})
    with pytest.raises(NonFiniteLoss, match=r"kd=inf, student_loss=nan, loss=nan, epoch 5, step 2 ") as error:
        callback.on_train_batch_end(1, {"accuracy": 0.5, "kd": np.inf, "loss": np.nan, "student_loss": np.nan})
    assert error.value.terms == ["kd", "student_loss", "loss"]
    assert isinstance(error.value, FloatingPointError)


def test_logs_of_validation_and_of_arrays_are_checked_at_the_epochs_end():
    images, labels = batch(0, 0)
    with pytest.raises(NonFiniteLoss, match=r"val_loss=nan, epoch 1, at the end"):
        fit(batches((0, 0)), FiniteLoss(), validation_data=(images * np.nan, labels))
    callback = FiniteLoss()
    callback.set_model(build_model())
    with pytest.raises(NonFiniteLoss, match="recall="):
        callback.on_epoch_end(0, {"recall": np.array([1.0, np.nan]), "loss": 1.0})


def test_a_finite_run_is_left_alone():
    class Ends(keras.callbacks.Callback):
        def on_train_end(self, logs=None):
            self.weights = [keras.ops.convert_to_numpy(v) for v in self.model.variables]

    ends = []
    for callbacks in ([], [FiniteLoss()]):
        keras.utils.set_random_seed(0)
        end = Ends()
        fit(batches((0, 0)), *callbacks, end)
        ends.append(end.weights)
    np.testing.assert_equal(*ends)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_last_good_backup_stays(tmp_path, order):
    callbacks = [Backup(tmp_path, STEPS, every=2), FiniteLoss(2)]
    with pytest.raises(NonFiniteLoss, match="epoch 2, step 4 "):
        fit(poisoned(1, 2), *[callbacks[i] for i in order])
    backup = Backup(tmp_path, STEPS, every=2)
    assert backup.position == [1, 2]
    model = build_model()
    model.fit(
        batches(backup.position),
        initial_epoch=1,
        steps_per_epoch=STEPS,
        epochs=2,
        verbose=0,
        shuffle=False,
        callbacks=[backup, FiniteLoss()],
    )
    assert np.isfinite(backup.history[-1]["loss"])


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="Keras has no steps_per_execution on Torch.")
def test_several_steps_in_one_execution():
    model = build_model()
    model.compile(model.optimizer, model.loss, steps_per_execution=2)
    with pytest.raises(NonFiniteLoss, match="epoch 1, step 4 "):
        model.fit(poisoned(0, 1), steps_per_epoch=6, epochs=1, verbose=0, shuffle=False, callbacks=[FiniteLoss(3)])


@pytest.mark.parametrize("every", [0, -1, 1.5, None])
def test_every_out_of_range(every):
    with pytest.raises(ValueError, match=f"every={every} came, a positive integer"):
        FiniteLoss(every)
