"""What the Distiller keeps and refuses: the teacher outside of tracking, files, ways to run a step, labels, errors.

The first tests hold the private details of Keras that the teacher's hiding leans on, one each: a release of Keras that
changes one fails here first.
"""

import functools

import keras
import numpy as np
import pytest
from keras import ops

from keras_wsl import Distiller, losses
from keras_wsl.callbacks import NonFiniteLossError, RaiseOnNonFinite
from tests.common import arrays, examples, hard_loss, network, save_and_load
from tests.test_distiller import Hint, Subclassed, changed, compiled, plain, saved_arrays

pytestmark = pytest.mark.eager


BACKEND = keras.backend.backend()


class AtEpoch(keras.callbacks.Callback):
    """Calls a function at the beginning of one epoch."""

    def __init__(self, epoch, function):
        super().__init__()
        self.epoch, self.function = epoch, function

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            self.function()


@pytest.fixture(autouse=True)
def _xla_is_allowed():
    """Undoes the determinism that tests of other files ask for: under it Keras turns `jit_compile` off."""
    if BACKEND == "tensorflow":
        from tensorflow.python.framework import config

        config.disable_op_determinism()  # Only this private name does it.


def made(teacher=None, seed=1, distillation_losses=None, momentum=0.9, **settings):
    """A Distiller with an adapter, batch normalization and momentum, the same at every call."""
    keras.utils.set_random_seed(seed)
    teacher = teacher or network("teacher", width=13)
    distiller = Distiller(teacher, network("student"), distillation_losses or [losses.WSL(), Hint()])
    distiller.compile(keras.optimizers.SGD(0.05, momentum=momentum), hard_loss(), metrics=["accuracy"], **settings)
    return distiller


def fit(distiller, epochs=2, count=24, **settings):
    x, y = examples(count)
    return distiller.fit(x, y, batch_size=8, epochs=epochs, shuffle=False, verbose=0, **settings).history


def assert_same(first, second, **tolerance):
    for one, two in zip(arrays(first), arrays(second), strict=True):
        np.testing.assert_allclose(two, one, **{"rtol": 0, "atol": 0, **tolerance})


def logits(model, x):
    return ops.convert_to_numpy(model(x, training=False))


# Private details of Keras, one test each.


def test_dir_hides_the_teacher():
    """Saving walks `dir`: what is not in it is not in a file."""
    distiller = made()
    assert distiller.teacher.name == "teacher" and "teacher" not in dir(distiller)
    walked = dict(keras.src.saving.saving_lib._walk_saveable(distiller))
    assert walked["student"] is distiller.student
    assert not [name for name, value in walked.items() if value is distiller.teacher]


def test_setattr_registers_no_teacher():
    """Keras, and Torch, register a layer when an attribute is set, before a property's setter runs."""
    distiller = made()
    assert distiller.teacher not in distiller._flatten_layers()
    of_teacher = {id(variable) for variable in distiller.teacher.variables}
    assert not of_teacher & {id(variable) for variable in distiller.variables}
    assert not of_teacher & {id(variable) for variable in distiller.trainable_variables}
    if BACKEND == "torch":
        assert distiller.teacher not in list(distiller.modules())


def test_teacher_is_state_of_the_step():
    """A compiled step reads the teacher's weights again: as constants of it, on JAX, a change would go unseen."""
    distiller = made(distillation_losses=[losses.KD(name="soft")])
    of_teacher = {id(variable) for variable in distiller.teacher.variables}
    assert of_teacher <= {id(variable) for variable in distiller.non_trainable_variables}
    distiller.optimizer.learning_rate = 0.0

    def zero():
        for variable in distiller.teacher.get_layer("logits").variables:
            variable.assign(np.zeros(variable.shape))

    values = fit(distiller, epochs=3, callbacks=[AtEpoch(2, zero)])["soft"]
    assert values[0] == pytest.approx(values[1], rel=1e-5) and values[2] != pytest.approx(values[1], rel=1e-2)
    assert not np.any(logits(distiller.teacher, examples()[0]))


def test_shared_variables_are_state_once():
    """A teacher that shares a frozen layer with the student: JAX refuses to donate a buffer twice."""
    student = plain("student")
    student.get_layer("hidden").trainable = False
    layers = [keras.Input((6,)), student.get_layer("hidden"), keras.layers.Dense(5, name="own")]
    teacher = keras.Sequential(layers, name="teacher")
    distiller = compiled(Distiller(teacher, student, losses.WSL()), 0.1)
    x, y = examples(16)
    distiller.fit(x, y, verbose=0)
    listed = [id(variable) for variable in distiller.trainable_variables + distiller.non_trainable_variables]
    assert len(listed) == len(set(listed))


class Broken(losses.DistillationLoss):
    """Fails when it is traced."""

    def per_example(self, labels, student, teacher):
        raise RuntimeError("broken on purpose")


@pytest.mark.traced
def test_an_error_while_tracing_loses_nothing():
    """Keras on JAX drops all values before it traces a step; after an error both networks are still there."""
    distiller = made(distillation_losses=[Broken()])
    before = arrays(distiller.teacher) + arrays(distiller.student)[:2]
    with pytest.raises(RuntimeError, match="broken on purpose"):
        fit(distiller)
    assert not changed(before, arrays(distiller.teacher) + arrays(distiller.student)[:2])


def test_recording_passes_through_call():
    """Endpoints are recorded by an instance's `call`, which `Operation.__call__` finds first, and nothing stays."""
    distiller = made()
    layer = distiller.student.get_layer("hidden")
    recorded = distiller(examples()[0], training=True)
    np.testing.assert_allclose(ops.convert_to_numpy(recorded["hidden"]), logits(layer, examples()[0]), atol=1e-6)
    assert "call" not in layer.__dict__


def test_evaluation_shows_no_terms_of_the_training():
    """The logs of an evaluation are filtered where Keras collects them, in `get_metrics_result`."""
    distiller = made()
    x, y = examples(16)
    history = fit(distiller, epochs=1, validation_data=(x, y))
    assert {name for name in history if name.startswith("val_")} == {"val_loss", "val_accuracy"}
    assert {"wsl", "hint", "student_loss", "regularization_sample_rate", "mean_wsl_weight"} <= history.keys()
    for logs in (
        distiller.evaluate(x, y, return_dict=True, verbose=0),
        distiller.test_on_batch(x, y, return_dict=True),
    ):
        assert set(logs) == {"loss", "accuracy"}


# The teacher: changed, missing, replaced.


@pytest.mark.traced
def test_a_new_teacher_is_obeyed():
    """A teacher set after `fit` teaches the next one: the traced step of the one before is dropped."""
    first, second = network("teacher", width=13), network("second", width=13)
    distiller = made(first, distillation_losses=[losses.KD(name="soft")])
    distiller.optimizer.learning_rate = 0.0
    fit(distiller)
    distiller.teacher = second
    expected = made(second, distillation_losses=[losses.KD(name="soft")])
    expected.optimizer.learning_rate = 0.0
    assert fit(distiller)["soft"][0] == pytest.approx(fit(expected)["soft"][0], rel=1e-5)


def test_fit_without_teacher_is_refused_before_any_change(tmp_path):
    """The refusal comes before a step has moved a weight, a statistic or the optimizer."""
    path = tmp_path / "distiller.keras"
    made().save(path)
    loaded = keras.saving.load_model(path)
    before = arrays(loaded) + arrays(loaded.optimizer)
    assert loaded.teacher is None
    for train in (fit, lambda distiller: distiller.train_on_batch(*examples(8))):
        with pytest.raises(ValueError, match=r"`distiller.teacher` must be set before `fit`"):
            train(loaded)
    assert not changed(before, arrays(loaded) + arrays(loaded.optimizer))


def test_labels_alone_need_no_teacher():
    """Without distillation losses the Distiller trains as the student would, to the same bits."""
    keras.utils.set_random_seed(1)
    student = network("student")
    keras.utils.set_random_seed(1)
    distiller = Distiller(None, network("student"))
    for model in (student, distiller):
        model.compile(keras.optimizers.SGD(0.05, momentum=0.9), hard_loss())
    history = fit(distiller)
    np.testing.assert_allclose(history["loss"], fit(student)["loss"], rtol=1e-6)
    assert set(history) == {"loss", "student_loss"}
    assert_same(student, distiller.student, atol=1e-7)


def test_subclassed_networks():
    """A subclassed network trains once it is built, and is refused, with what to do, before."""
    unbuilt = Subclassed(name="unbuilt")
    with pytest.raises(ValueError, match="unbuilt is not built. Call it on a batch once"):
        Distiller(network("teacher"), unbuilt, losses.WSL())
    with pytest.raises(ValueError, match="unbuilt is not built"):
        Distiller(unbuilt, network("student"), losses.WSL())
    teacher, student = Subclassed(width=13, name="teacher"), Subclassed(name="student")
    for model in (teacher, student):
        model(np.zeros((1, 6), "float32"))
    distiller = compiled(Distiller(teacher, student, [losses.WSL(), Hint()]), 0.1)
    history = fit(distiller, epochs=5)
    assert history["loss"][-1] < history["loss"][0]


# Files.


@pytest.mark.parametrize("ending", [".keras", ".weights.h5"])
def test_continued_from_a_file_to_the_same_bits(ending, tmp_path):
    """Save, load, set the teacher, fit: as if never interrupted, with momentum and adapters."""
    whole, distiller = made(), made()
    fit(whole)
    fit(distiller)
    path = tmp_path / f"distiller{ending}"
    loaded = save_and_load(distiller, path, lambda: made(distiller.teacher, seed=7))
    if ending == ".keras":
        assert loaded.name == "distiller" and [loss.name for loss in loaded.distillation_losses] == ["wsl", "hint"]
    assert_same(distiller.optimizer, loaded.optimizer)
    assert fit(whole) == fit(loaded)
    assert_same(whole, loaded)
    assert_same(whole.optimizer, loaded.optimizer)


def test_loaded_without_teacher_evaluates(tmp_path):
    """`load_model`, in safe mode, gives a student that evaluates and predicts as before."""
    x, y = examples(16)
    distiller = made()
    fit(distiller)
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.saving.load_model(tmp_path / "distiller.keras", safe_mode=True)
    assert loaded.teacher is None
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), distiller.predict(x, verbose=0))
    assert loaded.evaluate(x, y, verbose=0) == distiller.evaluate(x, y, verbose=0)


def test_settings_survive_a_file(tmp_path):
    """Every setting of the Distiller and its losses is in the file."""
    soft = losses.KD(temperature=3.0, weight=1.5, objective="cross_entropy", weighting="hard_to_mimic", name="soft")
    given = [
        soft,
        losses.WSL(weighting={"name": "exclude_regularization_samples", "keep_probability": 0.5}),
        Hint(weight=3.0),
    ]
    distiller = Distiller(
        network("teacher"),
        network("student"),
        given,
        student_loss_weight=0.25,
        teacher_batch_statistics=True,
        name="own",
    )
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.saving.load_model(tmp_path / "distiller.keras")
    assert (loaded.name, loaded.student_loss_weight, loaded.teacher_batch_statistics) == ("own", 0.25, True)
    assert [loss.get_config() for loss in loaded.distillation_losses] == [loss.get_config() for loss in given]


@pytest.mark.parametrize("ending", [".keras", ".weights.h5"])
def test_checkpoints_hold_no_teacher(ending, tmp_path):
    """`ModelCheckpoint` writes what the Distiller's own files hold."""
    path = tmp_path / f"best{ending}"
    checkpoint = keras.callbacks.ModelCheckpoint(path, save_weights_only=ending == ".weights.h5")
    distiller = made(momentum=0.0)
    fit(distiller, epochs=1, callbacks=[checkpoint])
    found = saved_arrays(path)
    # Of the teacher, whose width is 13, only the adapter knows.
    assert {name for name, shape in found.items() if 13 in shape} == {
        name for name in found if name.startswith("distillation_losses/hint")
    }
    own = [name for name in found if not name.startswith("optimizer")]
    kept = [distiller.distillation_scale, *distiller.student.variables, *distiller.distillation_losses[1].variables]
    assert len(own) == len(kept)


# Ways to run a step.

WAYS = [{"run_eagerly": True}]
if BACKEND != "torch":  # Keras has one step an execution there, and its XLA is torch.compile, which takes minutes.
    WAYS += [{"steps_per_execution": 4}, {"jit_compile": True}]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: next(iter(way)))
@pytest.mark.traced
def test_ways_to_run_a_step_agree(way):
    """However Keras runs the steps, the same weights come out, and the same logs."""
    expected, distiller = made(), made(**way)
    history = fit(expected, count=40)
    for name, values in fit(distiller, count=40).items():
        np.testing.assert_allclose(values, history[name], rtol=1e-4, atol=1e-6, err_msg=name)
    assert_same(expected, distiller, atol=1e-5)


# Labels.


def test_forms_of_labels_agree():
    """Integers, a column of them, one-hot rows, and a dict with the examples' index train the same."""
    x, y = examples(24)

    def train(labels, loss):
        distiller = made(run_eagerly=BACKEND == "tensorflow")
        distiller.compile(keras.optimizers.SGD(0.05), loss, metrics=["accuracy"], run_eagerly=BACKEND == "tensorflow")
        history = distiller.fit(x, labels, batch_size=8, epochs=2, shuffle=False, verbose=0).history
        return distiller, history

    expected, history = train(y, hard_loss())
    one_hot = np.eye(5, dtype="float32")[y]
    for labels, loss in (
        (y[:, None], hard_loss()),
        ({"labels": y, "index": np.arange(24)}, hard_loss()),
        (one_hot, keras.losses.CategoricalCrossentropy(from_logits=True)),
        ({"labels": one_hot, "index": np.arange(24)}, keras.losses.CategoricalCrossentropy(from_logits=True)),
    ):
        distiller, other = train(labels, loss)
        assert_same(expected, distiller, atol=1e-6)
        assert other.keys() == history.keys()
        for name, values in other.items():
            np.testing.assert_allclose(values, history[name], rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("label", [5, -1])
def test_labels_out_of_range(label):
    """A label that no class has stops TensorFlow and Torch, and is a loss of NaN on JAX: never a number."""
    x, y = examples(8)
    y[3] = label
    distiller = made()
    if BACKEND == "tensorflow":
        import tensorflow as tf

        with pytest.raises(tf.errors.InvalidArgumentError, match=r"Labels must be in \[0, 5\)"):
            distiller.fit(x, y, verbose=0)
        return
    error, message = {"jax": (NonFiniteLossError, "student_loss"), "torch": (IndexError, f"{label} is out of bounds")}[
        BACKEND
    ]
    with pytest.raises(error, match=message):
        distiller.fit(x, y, verbose=0, callbacks=[RaiseOnNonFinite(every_steps=1)])


@pytest.mark.tensorflow
@pytest.mark.traced
def test_labels_out_of_range_under_xla():
    """XLA drops the check of labels: the loss is NaN there."""
    x, y = examples(8)
    y[3] = 5
    assert np.isnan(made(jit_compile=True).train_on_batch(x, y, return_dict=True)["student_loss"])


@pytest.mark.parametrize("shape", [(8, 4), (8, 5, 1)])
def test_labels_of_a_wrong_shape(shape):
    """Labels that fit neither integers nor distributions are refused with both shapes."""
    x, _ = examples(8)
    with pytest.raises(ValueError, match=r"Labels of shape .* do not fit logits of shape"):
        made().fit(x, np.zeros(shape, "float32"), verbose=0)


def test_inputs_that_are_not_numbers():
    """NaN in the inputs comes out as NaN, and `RaiseOnNonFinite` stops the run with the terms' names."""
    x, y = examples(24)
    x[9, 2] = np.nan
    with pytest.raises(NonFiniteLossError) as caught:
        made().fit(x, y, batch_size=8, shuffle=False, verbose=0, callbacks=[RaiseOnNonFinite(every_steps=1)])
    assert {"student_loss", "wsl", "hint"} <= set(caught.value.terms)
    assert (caught.value.epoch, caught.value.step) == (1, 2)


@pytest.mark.parametrize("shape", [(8, 5), (8, 1, 1)])
def test_sample_weights_of_a_wrong_shape(shape):
    """Sample weights are one number per example."""
    x, y = examples(8)
    with pytest.raises(ValueError, match="must be one number per example"):
        made().fit(x, y, sample_weight=np.ones(shape, "float32"), verbose=0)


# Refusals.


def _softmax_layer(name):
    return keras.Sequential([keras.Input((6,)), *network(name).layers, keras.layers.Softmax()], name=name)


def _functional(name):
    inputs = keras.Input((6,))
    return keras.Model(inputs, keras.layers.Dense(5, "softmax")(inputs), name=name)


def _nested(name):
    inputs = keras.Input((6,))
    return keras.Model(inputs, _functional("inner")(inputs), name=name)


@pytest.mark.parametrize(
    ("role", "make"),
    [
        ("teacher", functools.partial(network, activation="softmax")),
        ("student", functools.partial(network, activation="sigmoid")),
        ("teacher", _softmax_layer),
        ("teacher", _functional),
        ("student", _nested),
    ],
)
def test_networks_of_probabilities_are_refused(role, make):
    """A network that ends in a softmax or sigmoid is refused with the layer's name."""
    networks = {"teacher": network("teacher"), "student": network("student"), role: make(role)}
    with pytest.raises(ValueError, match=f"The {role} '{role}' must return logits. Received: a last layer"):
        Distiller(**networks, distillation_losses=losses.WSL())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"teacher": keras.layers.Dense}, r"The teacher must be a keras.Model"),
        ({"student": None}, r"The student must be a keras.Model. Received: None"),
        ({"student": keras.layers.Dense}, r"The student must be a keras.Model"),
        ({"distillation_losses": "wls"}, r"no distillation loss 'wls'. Expected one of \['ab', .*'kd', .*'wsl'"),
        ({"distillation_losses": ["kd", "kd"]}, r"names in the logs must differ. Received twice: \['kd'\]"),
        ({"distillation_losses": losses.KD(name="student_loss")}, r"Received twice: \['student_loss'\]"),
        ({"distillation_losses": losses.KD(name="loss")}, r"Received twice: \['loss'\]"),
    ],
)
def test_wrong_settings_are_refused(given, message):
    """Each error has what was received and what was expected."""
    settings = {"teacher": network("teacher"), "student": network("student"), "distillation_losses": "wsl", **given}
    with pytest.raises(ValueError, match=message):
        Distiller(**settings)


def test_unknown_endpoints_are_refused():
    """An endpoint that is not there is refused with the names that are."""

    class Elsewhere(losses.DistillationLoss):
        student_layers = ("block3",)

    with pytest.raises(ValueError, match=r"student has no layer named 'block3'.*'hidden',.*'logits', 'norm', 'relu'"):
        Distiller(network("teacher"), network("student"), Elsewhere())
    Elsewhere.student_layers, Elsewhere.teacher_layers = (), ("block4",)
    with pytest.raises(ValueError, match=r"teacher has no layer named 'block4'.*'hidden'"):
        Distiller(network("teacher"), network("student"), Elsewhere())


def test_one_model_as_teacher_and_student_is_refused():
    """A student cannot teach itself, at once or later."""
    student = network("student")
    with pytest.raises(ValueError, match="must be two models"):
        Distiller(student, student, losses.WSL())
    distiller = Distiller(None, student, losses.WSL())
    with pytest.raises(ValueError, match="must be two models"):
        distiller.teacher = student
    assert distiller.teacher is None


def test_different_classes_are_refused_when_the_teacher_comes_later():
    """A teacher that is set later is checked as one that is given at once."""
    distiller = Distiller(None, network("student"), losses.WSL())
    with pytest.raises(ValueError, match="student of 5 classes and a teacher of 7"):
        distiller.teacher = network("teacher", classes=7)


@pytest.mark.parametrize(
    "loss",
    [None, [hard_loss()], {"logits": hard_loss()}, keras.losses.SparseCategoricalCrossentropy(True, reduction="sum")],
)
def test_compiled_losses_that_are_refused(loss):
    """The compiled loss is one function of labels, for each example."""
    x, y = examples(8)
    distiller = Distiller(network("teacher"), network("student"), losses.WSL())
    distiller.compile("sgd", loss)
    with pytest.raises(ValueError, match="must be compiled with one loss|must not sum over examples"):
        distiller.fit(x, y, verbose=0)
