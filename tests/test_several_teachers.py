"""Several teachers: which one a loss uses, the mean of their probabilities, and that they do not change."""

import csv
import zipfile

import keras
import numpy as np
import pytest
from keras import ops

from keras_wsl import Distiller, callbacks, losses
from keras_wsl.objective import compute_distillation_loss
from keras_wsl.targets import Targets
from keras_wsl.teachers import get_teacher_weights
from tests.common import arrays, examples, gradient, hard_loss, network, save_and_load
from tests.test_distiller import (
    BACKEND,
    Hint,
    changed,
    compiled,
    counted,
    cross_entropies,
    divergences,
    log_softmax,
    logits,
    plain,
    saved_arrays,
)
from tests.test_saving import AtEpoch

pytestmark = pytest.mark.eager


WEIGHTS = {"large": 2.0, "small": 1.0}


def random_logits(count=9, classes=5, networks=3):
    """Return logits of a student and two teachers in float64."""
    generator = np.random.default_rng(4)
    return [generator.normal(size=(count, classes)) * 3 for _ in range(networks)]


def teacher_outputs(large, small):
    return {"large": {"logits": np.float32(large)}, "small": {"logits": np.float32(small)}}


def mean_logits(large, small, temperature, weights=WEIGHTS):
    """Compute the logarithm of the weighted mean of softmaxes times the temperature, in float64."""
    p = sum(
        weight * np.exp(log_softmax(values / temperature)) for weight, values in zip(weights.values(), (large, small))
    ) / sum(weights.values())
    return temperature * np.log(p)


def built(loss, student):
    """Build a loss on the shapes of one teacher, as the Distiller does."""
    loss.build((None,), {"logits": student.shape}, {"logits": student.shape})
    return loss


def value(loss, labels, student, teacher):
    loss = built(loss, student)
    logits = {"logits": ops.convert_to_tensor(student, "float32")}
    return ops.convert_to_numpy(compute_distillation_loss(loss, Targets(labels), logits, teacher))


def total_gradient(loss, labels, student, teacher):
    loss = built(loss, student)
    return gradient(
        lambda z: ops.sum(compute_distillation_loss(loss, Targets(labels), {"logits": z}, teacher)), student
    )


def made(distillation_losses=None, seed=1, learning_rate=0.05, **settings):
    """Return a Distiller of two teachers, the same at every call."""
    keras.utils.set_random_seed(seed)
    teachers = {"large": network("large", width=13), "small": network("small", width=11)}
    losses_ = distillation_losses or [losses.KD(teacher="large"), losses.WSL(teacher="small"), losses.KD(name="both")]
    distiller = Distiller(teachers, network("student"), losses_)
    distiller.compile(keras.optimizers.SGD(learning_rate, momentum=0.9), hard_loss(), metrics=["accuracy"], **settings)
    return distiller


def fit(distiller, epochs=2, **settings):
    x, y = examples(24)
    return distiller.fit(x, y, batch_size=8, epochs=epochs, shuffle=False, verbose=0, **settings).history


# The teacher of a loss.


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kd_uses_the_weighted_mean_of_probabilities(temperature):
    """Value and gradient are those of the mean of the softmaxes at the temperature of the loss."""
    student, large, small = random_logits()
    labels = np.zeros(9, "int32")
    loss = losses.KD(temperature=temperature, teacher=WEIGHTS)
    mean = mean_logits(large, small, temperature)
    expected = divergences(mean, student, temperature)
    np.testing.assert_allclose(value(loss, labels, student, teacher_outputs(large, small)), expected, rtol=2e-5)
    q, p = np.exp(log_softmax(student / temperature)), np.exp(log_softmax(mean / temperature))
    slope = total_gradient(loss, labels, student, teacher_outputs(large, small))
    np.testing.assert_allclose(slope, temperature * (q - p), atol=2e-6)


def test_gradient_is_the_weighted_sum_of_single_teachers():
    """The gradient of the divergence is linear in the probabilities of the teacher."""
    student, large, small = random_logits()
    labels = np.zeros(9, "int32")
    mean = total_gradient(losses.KD(temperature=3.0, teacher=WEIGHTS), labels, student, teacher_outputs(large, small))
    single = {
        name: total_gradient(losses.KD(temperature=3.0, teacher=name), labels, student, teacher_outputs(large, small))
        for name in WEIGHTS
    }
    np.testing.assert_allclose(mean, (2 * single["large"] + single["small"]) / 3, atol=2e-6)
    assert np.abs(single["large"] - single["small"]).max() > 0.1


def test_losses_use_the_mean_of_all_teachers_by_default():
    student, large, small = random_logits()
    labels = np.zeros(9, "int32")
    loss = losses.KD(temperature=2.0)
    expected = divergences(mean_logits(large, small, 2.0, {"large": 1.0, "small": 1.0}), student, 2.0)
    np.testing.assert_allclose(value(loss, labels, student, teacher_outputs(large, small)), expected, rtol=2e-5)
    assert get_teacher_weights(loss.teacher, ["large", "small"], loss) == {"large": 0.5, "small": 0.5}


def test_weighting_uses_the_mean_at_temperature_one():
    """The weight of WSL is at temperature 1, the divergence at the temperature of the loss."""
    student, large, small = random_logits()
    labels = np.arange(9) % 5
    hard = cross_entropies(labels, student)
    weight = 1 - np.exp(-hard / cross_entropies(labels, mean_logits(large, small, 1.0)))
    softened_weight = 1 - np.exp(-hard / cross_entropies(labels, mean_logits(large, small, 4.0)))
    assert np.abs(weight - softened_weight).max() > 0.01  # So that the test detects the wrong one.
    expected = weight * divergences(mean_logits(large, small, 4.0), student, 4.0)
    actual = value(losses.WSL(temperature=4.0, teacher=WEIGHTS), labels, student, teacher_outputs(large, small))
    np.testing.assert_allclose(actual, expected, rtol=1e-4)


def test_mean_of_certain_teachers_is_finite():
    """The probabilities are 0 and 1 in float32."""
    large, small = np.eye(5)[:2] * 1e4
    student = np.zeros((1, 5))
    actual = value(losses.KD(temperature=1.0), np.zeros(1, "int32"), student, teacher_outputs(large[None], small[None]))
    np.testing.assert_allclose(actual, np.log(5) - np.log(2), rtol=1e-5)


# Through the Distiller.


def test_dict_of_one_teacher_matches_the_teacher():
    """Logs and weights are the same bits."""

    def train(wrapped):
        keras.utils.set_random_seed(2)
        teacher = network("teacher", width=13)
        distiller = Distiller({"only": teacher} if wrapped else teacher, network("student"), [losses.WSL(), Hint()])
        distiller.compile(keras.optimizers.SGD(0.05, momentum=0.9), hard_loss())
        return fit(distiller), arrays(distiller)

    (history, weights), (expected_history, expected) = train(True), train(False)
    assert history == expected_history
    assert not changed(expected, weights)


def test_each_loss_uses_its_teacher():
    """Regularization samples are counted with the teacher of the first loss."""
    x, y = examples(24)
    teachers = {"large": plain("large", 13), "small": plain("small", 11)}
    student = plain("student")
    several = [losses.KD(teacher=WEIGHTS), losses.KD(teacher="small", name="kd_small"), losses.WSL(teacher="large")]
    distiller = compiled(Distiller(teachers, student, several))
    logs = distiller.fit(x, y, batch_size=24, verbose=0).history
    s, large, small = (logits(model, x) for model in (student, *teachers.values()))
    mean = mean_logits(large, small, 4.0)
    np.testing.assert_allclose(logs["kd"][0], divergences(mean, s, 4.0).mean(), rtol=1e-4)
    np.testing.assert_allclose(logs["kd_small"][0], divergences(small, s, 4.0).mean(), rtol=1e-4)
    weight = 1 - np.exp(-cross_entropies(y, s) / cross_entropies(y, large))
    np.testing.assert_allclose(logs["wsl"][0], (weight * divergences(large, s, 4.0)).mean(), rtol=1e-4)
    # Counts use the teacher and temperature of the first loss, weights the same teacher at temperature 1.
    weight = 1 - np.exp(-cross_entropies(y, s) / cross_entropies(y, mean_logits(large, small, 1.0)))
    np.testing.assert_allclose(logs["mean_wsl_weight"][0], weight.mean(), rtol=1e-4)
    at_label = np.arange(24), y
    q, q4, p4 = (np.exp(log_softmax(z))[at_label] for z in (s, s / 4, mean / 4))
    samples = np.abs(4 * (q4 - p4) - (q - 1)) > np.abs(q - 1)
    assert logs["regularization_samples"] == [samples.sum()]
    np.testing.assert_allclose(logs["regularization_sample_rate"], [samples.mean()], rtol=1e-6)


def test_train_step_runs_each_used_teacher_once():
    (large, large_calls), (small, small_calls), (idle, idle_calls) = (counted(n) for n in ("large", "small", "idle"))
    teachers = {"large": large, "small": small, "idle": idle}
    several = [losses.KD(teacher="large"), losses.KD(teacher=WEIGHTS, name="mean"), Hint(teacher="small")]
    distiller = compiled(Distiller(teachers, network("student"), several), run_eagerly=True)
    x, y = examples(8)
    distiller.fit(x, y, batch_size=8, verbose=0)
    for calls in (large_calls, small_calls, idle_calls):
        calls.clear()
    distiller.fit(x, y, batch_size=8, verbose=0)
    assert (large_calls, small_calls, idle_calls) == ([False], [False], [])
    distiller.evaluate(x, y, verbose=0)
    assert (large_calls, small_calls, idle_calls) == ([False], [False], [])


@pytest.mark.parametrize("teacher_batch_statistics", [False, True])
def test_fit_does_not_change_teachers(teacher_batch_statistics):
    x, y = examples(16)
    teachers = {"large": network("large", width=13), "small": network("small", width=11)}
    before = {name: arrays(model) for name, model in teachers.items()}
    several = [losses.WSL(), Hint(teacher="large")]
    distiller = Distiller(teachers, network("student"), several, teacher_batch_statistics=teacher_batch_statistics)
    distiller.compile(keras.optimizers.SGD(0.5), hard_loss())
    student = arrays(distiller.student)
    distiller.fit(x, y, batch_size=8, epochs=2, verbose=0, validation_data=(x, y))
    assert changed(student, arrays(distiller.student))
    for name, model in teachers.items():
        assert not changed(before[name], arrays(model))
        assert all(layer.trainable for layer in model._flatten_layers())
    assert distiller.teacher is teachers


@pytest.mark.parametrize("ending", [".keras", pytest.param(".weights.h5", marks=pytest.mark.slow)])
def test_files_do_not_contain_teachers(ending, tmp_path):
    """The teachers have the widths 13 and 11. After setting them again, the run ends in the same bits."""
    whole, distiller = made(), made()
    fit(whole)
    fit(distiller)
    path = tmp_path / f"distiller{ending}"
    loaded = save_and_load(distiller, path, lambda: made(seed=7))
    if ending == ".keras":
        assert "large" not in zipfile.ZipFile(path).namelist()
        assert [loss.teacher for loss in loaded.distillation_losses] == ["large", "small", None]
    assert not [name for name, shape in saved_arrays(path).items() if {11, 13} & set(shape)]
    assert fit(whole) == fit(loaded)
    assert not changed(arrays(whole), arrays(loaded))


def test_files_keep_teacher_weights(tmp_path):
    teachers = {"large": network("large"), "small": network("small")}
    several = [losses.KD(teacher=WEIGHTS), losses.WSL(teacher="small")]
    distiller = Distiller(teachers, network("student"), several)
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.saving.load_model(tmp_path / "distiller.keras")
    assert [loss.teacher for loss in loaded.distillation_losses] == [WEIGHTS, "small"]


def test_compiled_step_reads_the_weights_of_teachers():
    """If they were constants of the step, a change would have no effect on JAX."""
    distiller = made([losses.KD(teacher="large"), losses.KD(teacher="small", name="of_small")], learning_rate=0.0)
    listed = [id(variable) for variable in distiller.trainable_variables + distiller.non_trainable_variables]
    assert len(listed) == len(set(listed))
    for model in distiller.teacher.values():
        assert {id(variable) for variable in model.variables} <= set(listed)
        assert not {id(variable) for variable in model.variables} & {id(v) for v in distiller.variables}

    def zero():
        for variable in distiller.teacher["small"].get_layer("logits").variables:
            variable.assign(np.zeros(variable.shape))

    history = fit(distiller, epochs=3, callbacks=[AtEpoch(2, zero)])
    small, large = history["of_small"], history["kd"]
    assert small[0] == pytest.approx(small[1], rel=1e-5) and small[2] != pytest.approx(small[1], rel=1e-2)
    assert large[2] == pytest.approx(large[0], rel=1e-5)


def test_teachers_may_share_layers():
    """JAX cannot donate a buffer twice, so that shared variables are listed once."""
    shared = keras.layers.Dense(9, activation="relu", name="hidden")
    teachers = {
        name: keras.Sequential([keras.Input((6,)), shared, keras.layers.Dense(5)], name=name) for name in WEIGHTS
    }
    distiller = compiled(Distiller(teachers, network("student"), losses.WSL()), 0.1)
    assert np.isfinite(fit(distiller, epochs=1)["loss"]).all()


@pytest.mark.traced
def test_teacher_may_be_replaced():
    """One or several teachers may replace it. The step is traced again."""
    distiller = made([losses.KD(name="soft")], learning_rate=0.0)
    both = fit(distiller, epochs=1)["soft"][0]
    large = distiller.teacher["large"]
    distiller.teacher = large
    single = fit(distiller, epochs=1)["soft"][0]
    distiller.teacher = {"large": large}
    assert fit(distiller, epochs=1)["soft"][0] == single != pytest.approx(both, rel=1e-3)


def test_feature_losses_use_the_named_teacher():
    """The adapter has the width of that teacher."""
    x, _ = examples(12)
    teachers = {"large": plain("large", 13), "small": plain("small", 11)}
    hints = [Hint(teacher="large", name="of_large"), Hint(teacher="small", name="of_small")]
    distiller = compiled(Distiller(teachers, plain("student"), hints))
    assert [hint.adapter.kernel.shape[-1] for hint in hints] == [13, 11]
    logs = distiller.train_on_batch(x, np.zeros(12, "int32"), return_dict=True)
    for hint, model in zip(hints, teachers.values()):
        adapted = hint.adapter(distiller.student.get_layer("hidden")(x))
        gap = ops.convert_to_numpy(adapted) - ops.convert_to_numpy(model.get_layer("hidden")(x))
        np.testing.assert_allclose(logs[hint.name], (gap**2).mean(), rtol=1e-4)


def test_teachers_may_have_different_classes():
    """Losses on features take any, losses on logits only those with the classes of the student."""
    teachers = {"large": network("large", width=13, classes=7), "small": network("small")}
    several = [losses.KD(teacher="small"), Hint(teacher="large")]
    history = fit(compiled(Distiller(teachers, network("student"), several), 0.1), epochs=1)
    assert {"hint", "kd", "regularization_sample_rate"} <= history.keys()
    with pytest.raises(
        ValueError, match=r"The teachers of kd must have the same classes. Received: \{'large': 7, 'small': 5\}"
    ):
        Distiller(teachers, network("student"), losses.KD())
    with pytest.raises(ValueError, match="student of 5 classes and a teacher of 7"):
        Distiller(teachers, network("student"), losses.KD(teacher="large"))


def test_keras_losses_use_the_named_teacher():
    x, y = examples(12)
    teachers = {"large": plain("large"), "small": plain("small")}
    student = plain("student")
    soft = keras.distillation.LogitsDistillation(temperature=3.0, loss=keras.losses.KLDivergence())
    features = keras.distillation.FeatureDistillation("mse", teacher_layer_name="hidden", student_layer_name="hidden")
    several = [losses.get(soft, teacher="small"), losses.get(features, teacher="large", weight=0.5)]
    distiller = compiled(Distiller(teachers, student, several))
    logs = distiller.train_on_batch(x, y, return_dict=True)
    expected = divergences(logits(teachers["small"], x), logits(student, x), 3.0).mean()
    np.testing.assert_allclose(logs["kd"], expected, rtol=1e-4)
    hidden = [ops.convert_to_numpy(model.get_layer("hidden")(x)) for model in (student, teachers["large"])]
    np.testing.assert_allclose(logs["feature_distillation"], ((hidden[0] - hidden[1]) ** 2).mean(), rtol=1e-5)
    twin = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(several[1]))
    assert (twin.teacher, twin.teacher_layers) == ("large", ("hidden",))
    with pytest.raises(ValueError, match=r"feature_distillation needs the layers \('hidden',\) of one teacher"):
        Distiller(teachers, student, features)


def test_regularization_samples_callback_uses_the_mean_of_teachers(tmp_path):
    """It uses the mean of probabilities, and does not change the training."""
    x, y = examples(30, seed=9)
    callback = callbacks.RegularizationSamples(tmp_path, (x, y), batch_size=7)
    distiller, expected = (made([losses.WSL(temperature=3.0, teacher=WEIGHTS)]) for _ in range(2))
    history = fit(distiller, epochs=1, callbacks=[callback])
    fit(expected, epochs=1)
    assert not changed(arrays(expected), arrays(distiller))
    student, large, small = (logits(m, x) for m in (distiller.student, *distiller.teacher.values()))
    at_label = np.arange(30), y
    softened = mean_logits(large, small, 3.0)
    q, q3, p3 = (np.exp(log_softmax(z))[at_label] for z in (student, student / 3, softened / 3))
    samples = np.abs(3 * (q3 - p3) - (q - 1)) > np.abs(q - 1)
    weights = 1 - np.exp(-cross_entropies(y, student) / cross_entropies(y, mean_logits(large, small, 1.0)))
    assert history["clean_regularization_samples"] == [samples.sum()]
    np.testing.assert_allclose(history["clean_mean_wsl_weight"], [weights.mean()], rtol=1e-4)
    with open(tmp_path / "regularization_samples.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert int(row["regularization_samples"]) == samples.sum()


@pytest.mark.skipif(BACKEND == "torch", reason="Keras's XLA is torch.compile there, which takes minutes.")
@pytest.mark.traced
def test_xla_matches_eager():
    expected, distiller = made(run_eagerly=BACKEND == "tensorflow"), made(jit_compile=True)
    history = fit(expected)
    for name, values in fit(distiller).items():
        np.testing.assert_allclose(values, history[name], rtol=1e-4, atol=1e-6, err_msg=name)


# Errors.


@pytest.mark.parametrize("teacher", [{}, {"large": 0.0}, {"large": -1.0}, {"large": float("nan")}, {"large": "1"}, 3])
def test_bad_teacher_selectors_raise(teacher):
    with pytest.raises(ValueError, match="a teacher's name, or a dict of names to positive weights"):
        losses.KD(teacher=teacher)


@pytest.mark.parametrize(
    ("distillation_losses", "message"),
    [
        (
            losses.KD(teacher="huge"),
            r"kd names the teachers \['huge'\]. The distiller's teachers are \['large', 'small'\]",
        ),
        (losses.KD(teacher={"small": 1.0, "tiny": 1.0}), r"kd names the teachers \['tiny'\]"),
        (
            losses.AT(layers=["hidden"]),
            r"at needs the layers \('hidden',\) of one teacher. Received several: .*teacher='large'",
        ),
        (losses.AT(layers=["hidden"], teacher=WEIGHTS), "at needs .* of one teacher"),
    ],
    ids=["unknown", "unknown_weight", "features", "features_of_both"],
)
def test_losses_of_missing_teachers_raise(distillation_losses, message):
    teachers = {"large": network("large"), "small": network("small")}
    with pytest.raises(ValueError, match=message):
        Distiller(teachers, network("student"), distillation_losses)
    distiller = Distiller(None, network("student"), distillation_losses)
    with pytest.raises(ValueError, match=message):
        distiller.teacher = teachers
    assert distiller.teacher is None


@pytest.mark.parametrize(
    ("teachers", "message"),
    [
        ({}, "`teacher` must have at least one teacher"),
        ({"large": 3}, "The large must be a keras.Model. Received: 3"),
        (
            {"large": network("large"), "small": network("small", activation="softmax")},
            "The small 'small' must return logits",
        ),
    ],
    ids=["empty", "no_model", "probabilities"],
)
def test_bad_teachers_raise(teachers, message):
    with pytest.raises(ValueError, match=message):
        Distiller(teachers, network("student"), losses.KD())


def test_student_among_the_teachers_raises():
    student = network("student")
    with pytest.raises(ValueError, match="must be two models"):
        Distiller({"large": network("large"), "self": student}, student, losses.KD())


def test_compute_distillation_loss_selects_the_teacher():
    generator = np.random.default_rng(0)
    logits = [ops.convert_to_tensor(generator.normal(size=(4, 5)).astype("float32")) for _ in range(3)]
    labels = ops.convert_to_tensor(np.arange(4, dtype="int32"))
    teachers = {"large": {"logits": logits[1]}, "small": {"logits": logits[2]}}
    student = {"logits": logits[0]}
    values = compute_distillation_loss(losses.KD(teacher="small"), Targets(labels), student, teachers)
    same = losses.KD()(labels, student, teachers["small"])
    np.testing.assert_array_equal(ops.convert_to_numpy(values), ops.convert_to_numpy(same))
