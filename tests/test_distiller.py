"""The Distiller, compared with `keras.distillation.Distiller`.

Most tests also show a defect of the Distiller of Keras. If such a part fails, Keras has fixed the defect. One of them
is not tested: a recorded teacher needs memory in eager mode, which a small test does not show.
"""

import functools
import json
import pathlib
import sys
import zipfile

import h5py
import keras
import numpy as np
import pytest
from keras import ops
from keras.src.backend.common.symbolic_scope import in_symbolic_scope

from keras_wsl import Distiller, export, losses
from keras_wsl.targets import Targets
from tests.common import arrays, examples, hard_loss, network, run_child

pytestmark = pytest.mark.eager


BACKEND = keras.backend.backend()
KerasDistiller = keras.distillation.Distiller
LogitsDistillation = functools.partial(keras.distillation.LogitsDistillation, loss=keras.losses.KLDivergence())


@keras.saving.register_keras_serializable("tests")
class Hint(losses.DistillationLoss):
    """The squared difference of the `hidden` layers, with a dense adapter from the student's to the teacher's width."""

    student_layers = ("hidden",)
    teacher_layers = ("hidden",)

    def build(self, labels_shape, student_shape, teacher_shape):
        self.adapter = keras.layers.Dense(teacher_shape["hidden"][-1], name="adapter", dtype="float32")
        self.adapter.build(student_shape["hidden"])

    def per_example(self, labels, student, teacher):
        return ops.mean(ops.square(self.adapter(student["hidden"]) - teacher["hidden"]), axis=-1)


class Counted(keras.layers.Layer):
    """Returns its input, and records the `training` of every call."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.calls = []

    def call(self, inputs, training=False):
        if not in_symbolic_scope():  # There Keras only infers shapes.
            self.calls.append(bool(training))
        return inputs


class Penalized(keras.layers.Layer):
    """Returns its input, and adds a hundredth of its mean square to the loss."""

    def call(self, inputs):
        self.add_loss(0.01 * ops.mean(ops.square(inputs)))
        return inputs


class Subclassed(keras.Model):
    """A network without a graph."""

    def __init__(self, width=8, classes=5, **kwargs):
        super().__init__(**kwargs)
        self.hidden = keras.layers.Dense(width, activation="relu", name="hidden")
        self.head = keras.layers.Dense(classes, name="logits")

    def call(self, inputs):
        return self.head(self.hidden(inputs))


def plain(name, width=8, classes=5, between=(), dtype=None, **dense):
    """Return a network without batch normalization: the logits of an example depend only on that example."""
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(width, activation="relu", name="hidden", dtype=dtype, **dense),
            *between,
            layers.Dense(classes, name="logits", dtype=dtype),
        ],
        name=name,
    )


def counted(name):
    """Return a network with batch normalization, and the list of its calls."""
    count = Counted(name="count")
    return plain(name, between=[keras.layers.BatchNormalization(name="norm"), count]), count.calls


def compiled(distiller, learning_rate=0.0, **settings):
    """Compile with SGD; eagerly on TensorFlow, where tracing takes seconds. `test_saving` trains in graphs."""
    settings.setdefault("run_eagerly", BACKEND == "tensorflow")
    distiller.compile(keras.optimizers.SGD(learning_rate), hard_loss(), **settings)
    return distiller


def logits(model, x):
    return np.asarray(ops.convert_to_numpy(model(x, training=False)), "float64")


def log_softmax(values):
    values = values - values.max(axis=-1, keepdims=True)
    return values - np.log(np.exp(values).sum(axis=-1, keepdims=True))


def cross_entropies(y, student_logits):
    return -log_softmax(student_logits)[np.arange(len(y)), y]


def divergences(teacher_logits, student_logits, temperature):
    """Compute the softened divergence times the square of the temperature, in float64."""
    log_p, log_q = log_softmax(teacher_logits / temperature), log_softmax(student_logits / temperature)
    return temperature**2 * (np.exp(log_p) * (log_p - log_q)).sum(axis=-1)


def saved_arrays(path):
    """Return the shapes of the arrays in a `.weights.h5` or `.keras` file by their paths."""
    if zipfile.is_zipfile(path):
        folder = path.with_suffix(".content")
        zipfile.ZipFile(path).extract("model.weights.h5", folder)
        path = folder / "model.weights.h5"
    shapes = {}

    def visit(name, item):
        if isinstance(item, h5py.Dataset):
            shapes[name] = item.shape

    with h5py.File(path) as file:
        file.visititems(visit)
    return shapes


def changed(before, after):
    return any((old != new).any() for old, new in zip(before, after, strict=True))


def test_kd_matches_closed_form_unlike_the_default_of_keras():
    """The default loss of Keras treats logits as probabilities; KD is the divergence of the softened softmaxes."""
    generator = np.random.default_rng(0)
    student, teacher = (generator.normal(size=(7, 5)) * 3 for _ in range(2))
    rows = losses.KD(temperature=4.0)(np.zeros(7, "int32"), {"logits": student}, {"logits": teacher})
    np.testing.assert_allclose(ops.convert_to_numpy(rows), divergences(teacher, student, 4.0), rtol=1e-5)

    keras_distiller = keras.distillation.LogitsDistillation(temperature=4.0)
    value = float(keras_distiller.compute_loss(ops.cast(teacher, "float32"), ops.cast(student, "float32")))
    assert abs(value - divergences(teacher, student, 4.0).mean()) > 0.1
    with pytest.warns(UserWarning, match="treats logits as probabilities"):
        assert losses.get(keras_distiller).get_config()["temperature"] == 4.0


@pytest.mark.parametrize("kind", ["sample_weight", "class_weight"])
def test_fit_with_zero_weights_changes_no_variable(kind):
    """The Distiller of Keras ignores sample and class weights. Here weights of zero change nothing."""
    x, y = examples(16)
    weights = {kind: np.zeros(16, "float32") if kind == "sample_weight" else dict.fromkeys(range(5), 0.0)}

    def train(cls, distillation_loss):
        student = plain("student")
        before = arrays(student)
        distiller = compiled(cls(network("teacher"), student, distillation_loss), 0.5)
        history = distiller.fit(x, y, batch_size=8, verbose=0, **weights).history
        return changed(before, arrays(student)), history

    moved, history = train(Distiller, losses.WSL())
    assert not moved
    assert history["loss"] == history["student_loss"] == history["wsl"] == [0.0]
    assert train(KerasDistiller, LogitsDistillation())[0]


def test_sample_weights_scale_each_example():
    """Each term of an example is multiplied by its weight and divided by the number of examples."""
    x, y = examples(12)
    weight = np.linspace(0, 2, 12).astype("float32")
    teacher, student = network("teacher"), plain("student")
    distiller = compiled(Distiller(teacher, student, losses.KD(temperature=2.0, weight=3.0)))
    logs = distiller.train_on_batch(x, y, sample_weight=weight, return_dict=True)
    soft = divergences(logits(teacher, x), logits(student, x), 2.0)
    hard = cross_entropies(y, logits(student, x))
    np.testing.assert_allclose(logs["student_loss"], (weight * hard).mean(), rtol=1e-5)
    np.testing.assert_allclose(logs["kd"], (weight * soft).mean(), rtol=1e-4)
    np.testing.assert_allclose(logs["loss"], (weight * (hard + 3 * soft)).mean(), rtol=1e-4)


def _count(cls, distillation_losses, method):
    """Count the calls of student and teacher in one step of built models: lists of `training`."""
    (teacher, teacher_calls), (student, student_calls) = counted("teacher"), counted("student")
    distiller = compiled(cls(teacher, student, distillation_losses), run_eagerly=True)
    x, y = examples(8)
    call = {
        "fit": lambda: distiller.fit(x, y, batch_size=8, verbose=0),
        "evaluate": lambda: distiller.evaluate(x, y, batch_size=8, verbose=0),
        "predict": lambda: distiller.predict(x, batch_size=8, verbose=0),
    }[method]
    call()
    teacher_calls.clear()
    student_calls.clear()
    call()
    return list(student_calls), list(teacher_calls)


def keras_features():
    return keras.distillation.FeatureDistillation("mse", teacher_layer_name="hidden", student_layer_name="hidden")


def test_train_step_runs_each_network_once():
    """The Distiller of Keras runs the student twice per step if it compares features."""
    assert _count(Distiller, [losses.WSL(), Hint()], "fit") == ([True], [False])
    student_calls, _ = _count(KerasDistiller, [LogitsDistillation(), keras_features()], "fit")
    assert len(student_calls) == 2


def test_teacher_batch_statistics_runs_the_teacher_once_in_training_mode():
    cls = functools.partial(Distiller, teacher_batch_statistics=True)
    assert _count(cls, [losses.WSL(), Hint()], "fit") == ([True], [True])


@pytest.mark.parametrize("method", ["evaluate", "predict"])
def test_evaluation_changes_no_state(method):
    """`evaluate` of Keras runs a student in training mode and changes its moving statistics."""
    x, y = examples(16)
    arguments = {"evaluate": (x, y), "predict": (x,)}[method]

    def moves(cls, distillation_losses):
        teacher, student = network("teacher"), network("student")
        distiller = compiled(cls(teacher, student, distillation_losses))
        before = arrays(student) + arrays(teacher)
        getattr(distiller, method)(*arguments, batch_size=8, verbose=0)
        return changed(before, arrays(student) + arrays(teacher))

    assert not moves(Distiller, [losses.WSL(), Hint()])
    assert moves(KerasDistiller, keras_features()) == (method == "evaluate")


@pytest.mark.parametrize("method", ["evaluate", "predict"])
def test_evaluation_does_not_run_the_teacher(method):
    """`evaluate` of Keras runs the teacher. Here it runs only the student, in inference mode."""
    assert _count(Distiller, [losses.WSL(), Hint()], method) == ([False], [])
    _, teacher_calls = _count(KerasDistiller, LogitsDistillation(), method)
    assert bool(teacher_calls) == (method == "evaluate")


@pytest.mark.traced
def test_validation_does_not_run_the_teacher():
    """The number of teacher calls is the same with and without validation."""
    x, y = examples(8)

    def teacher_calls(**validation):
        teacher, calls = counted("teacher")
        distiller = compiled(Distiller(teacher, network("student"), losses.WSL()), run_eagerly=True)
        history = distiller.fit(x, y, batch_size=8, epochs=2, verbose=0, **validation).history
        return len(calls), history

    calls, history = teacher_calls(validation_data=(x, y))
    assert calls == teacher_calls()[0]
    assert {name for name in history if name.startswith("val_")} == {"val_loss"}


@pytest.mark.parametrize("ending", [".keras", ".weights.h5"])
def test_files_do_not_contain_the_teacher(ending, tmp_path):
    """The Distiller of Keras saves the teacher in every file. Here files have student, adapters and optimizer."""
    x, y = examples(8)

    def write(cls, distillation_losses):
        distiller = compiled(cls(network("teacher", width=13), network("student"), distillation_losses))
        distiller.fit(x, y, verbose=0)
        path = tmp_path / f"{cls.__module__}{ending}"
        distiller.save(path) if ending == ".keras" else distiller.save_weights(path)
        return path, saved_arrays(path)

    path, shapes = write(Distiller, [losses.WSL(), Hint()])
    # Only the adapter has the width of the teacher, 13.
    assert {name for name, shape in shapes.items() if 13 in shape} == {
        name for name in shapes if name.startswith("distillation_losses/hint")
    }
    networks = [name for name in shapes if not name.startswith(("distillation_losses/", "optimizer/"))]
    assert "vars/0" in networks and shapes["vars/0"] == ()  # `distillation_scale`.
    assert len(networks) == 1 + 8
    if ending == ".keras":
        config = zipfile.ZipFile(path).read("config.json").decode()
        assert '"name": "student"' in config and '"name": "teacher"' not in config

    _, shapes = write(KerasDistiller, LogitsDistillation())
    assert [name for name, shape in shapes.items() if 13 in shape]


@pytest.mark.tensorflow
def test_export_does_not_contain_the_teacher(tmp_path):
    """An export of the student has its variables and no others."""
    import tensorflow as tf

    x, y = examples(8)
    teacher, student = network("teacher", width=13), network("student")
    distiller = compiled(Distiller(teacher, student, [losses.WSL(), Hint()]), 0.1)
    distiller.fit(x, y, verbose=0)
    export.export_saved_model(distiller.student, tmp_path / "exported")
    shapes = [tuple(shape) for name, shape in tf.train.list_variables(str(tmp_path / "exported/variables/variables"))]
    assert not [shape for shape in shapes if 13 in shape]
    served = tf.saved_model.load(str(tmp_path / "exported"))
    assert sorted(tuple(v.shape) for v in served.variables) == sorted(tuple(v.shape) for v in student.variables)
    np.testing.assert_allclose(served.serve(x), logits(student, x), atol=1e-6)


def test_load_model_continues_fit_to_the_same_bits(tmp_path):
    """The Distiller of Keras cannot fit after `load_model`."""
    x, y = examples(24)
    teacher = network("teacher")

    def begin(cls, distillation_losses):
        distiller = cls(teacher, network("student"), distillation_losses)
        distiller.compile(keras.optimizers.Adam(0.01), hard_loss())
        if cls is Distiller:
            distiller.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
        path = tmp_path / f"{cls.__module__}.keras"
        distiller.save(path)
        return distiller, keras.saving.load_model(path)

    distiller, loaded = begin(Distiller, losses.WSL())
    assert int(ops.convert_to_numpy(loaded.optimizer.iterations)) == 6
    for expected, actual in zip(distiller.optimizer.variables, loaded.optimizer.variables, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(expected), ops.convert_to_numpy(actual))
    loaded.teacher = teacher
    for model in (distiller, loaded):
        model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    for expected, actual in zip(arrays(distiller.student), arrays(loaded.student), strict=True):
        np.testing.assert_array_equal(expected, actual)

    _, loaded = begin(KerasDistiller, LogitsDistillation())
    with pytest.raises(AttributeError, match=r"_student_loss|no attribute 'optimizer'"):
        loaded.fit(x, y, verbose=0)


def test_backup_and_restore_resumes_to_the_same_bits(tmp_path):
    """`BackupAndRestore` raises an error for a new Distiller of Keras."""
    x, y = examples(16)
    teacher = network("teacher")

    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    def make(cls=Distiller, distillation_losses=("wsl",)):
        keras.utils.set_random_seed(1)
        distiller = cls(teacher, network("student"), list(distillation_losses))
        distiller.compile(keras.optimizers.SGD(0.1, momentum=0.9), hard_loss())
        return distiller

    fit = {"batch_size": 8, "epochs": 4, "shuffle": False, "verbose": 0}
    whole = make()
    whole.fit(x, y, **fit)
    backup = functools.partial(keras.callbacks.BackupAndRestore, tmp_path / "backup")
    with pytest.raises(KeyboardInterrupt):
        make().fit(x, y, callbacks=[backup(), Stop()], **fit)
    resumed = make()
    history = resumed.fit(x, y, callbacks=[backup()], **fit)
    assert history.epoch == [2, 3]
    for expected, actual in zip(arrays(whole.student), arrays(resumed.student), strict=True):
        np.testing.assert_array_equal(expected, actual)

    if BACKEND != "tensorflow":  # Elsewhere Keras builds any model before callbacks start.
        return
    with pytest.raises(ValueError, match="must be built before"):
        make(KerasDistiller, [LogitsDistillation()]).fit(
            x, y, callbacks=[keras.callbacks.BackupAndRestore(tmp_path / "keras_distiller")], **fit
        )


def test_loss_includes_penalties_of_the_student():
    """The Distiller of Keras drops regularizers and `add_loss` of the student."""
    x, y = examples(12)
    teacher = network("teacher")
    student = plain("student", between=[Penalized()], kernel_regularizer=keras.regularizers.L2(0.5))
    distiller = compiled(Distiller(teacher, student, losses.KD(temperature=2.0, weight=0.9)))
    logs = distiller.fit(x, y, batch_size=12, verbose=0).history
    kernel, bias = (array.astype("float64") for array in arrays(student)[:2])
    penalty = 0.5 * (kernel**2).sum() + 0.01 * (np.maximum(x @ kernel + bias, 0) ** 2).mean()
    terms = cross_entropies(y, logits(student, x)).mean()
    terms += 0.9 * divergences(logits(teacher, x), logits(student, x), 2.0).mean()
    assert penalty > 1
    np.testing.assert_allclose(logs["loss"][0], terms + penalty, rtol=1e-5)
    # `evaluate` includes them too, as for a model that is trained without a teacher.
    hard = cross_entropies(y, logits(student, x)).mean()
    np.testing.assert_allclose(distiller.evaluate(x, y, verbose=0), hard + penalty, rtol=1e-5)

    keras_distiller = compiled(KerasDistiller(teacher, student, LogitsDistillation(2.0)))
    logs = keras_distiller.fit(x, y, batch_size=12, verbose=0).history
    assert logs["loss"][0] == pytest.approx(logs["total_loss"][0]) and logs["loss"][0] < penalty


@pytest.mark.tensorflow
def test_two_replicas_match_one_replica(tmp_path):
    """The Distiller of Keras logs 1/N of the loss, or trains on N times the loss."""
    root = pathlib.Path(__file__).parents[1]
    path = tmp_path / "result.json"
    command = [sys.executable, "-m", "tests.mirrored_child", str(path)]
    ran = run_child(command, cwd=root)
    assert ran.returncode == 0, ran.stderr[-3000:]
    result = json.loads(path.read_text())
    assert {*result["kinds"]} == {"vectors", "given_logits", "maps"}
    for kind, (one, two) in result["kinds"].items():
        assert two["replicas"] == 2 and one["replicas"] == 1
        for expected, actual in zip(one["weights"], two["weights"], strict=True):
            np.testing.assert_allclose(actual, expected, atol=1e-5, err_msg=kind)
        assert one["history"].keys() == two["history"].keys()
        for name, values in one["history"].items():
            np.testing.assert_allclose(two["history"][name], values, rtol=1e-4, atol=1e-6, err_msg=f"{kind} {name}")
    # The mean of the means of halves is the mean; variances of halves are smaller, but the same on both replicas.
    for kind, one, two in zip(("mean", "variance"), *result["statistics"], strict=True):
        assert len(one) == 1 and len(two) == 2 and two[0] == two[1]
        if kind == "mean":
            np.testing.assert_allclose(two[0], one[0], atol=1e-6)
    assert result["keras_two"]["student_loss"][0] < 0.6 * result["keras_true_student_loss"]


def test_mixed_precision_student_trains_with_float32_losses():
    """The Distiller of Keras raises an error for a float32 teacher and a float16 student."""
    x, y = examples(16)
    # Keras scales no loss on Torch.
    policy = "mixed_bfloat16" if keras.backend.backend() == "torch" else "mixed_float16"
    teacher = network("teacher", width=11)

    def history(dtype):
        keras.utils.set_random_seed(3)
        student = plain("student", dtype=dtype)
        distiller = compiled(Distiller(teacher, student, [losses.WSL(), Hint()]), 0.05)
        return distiller, distiller.fit(x, y, batch_size=8, epochs=3, shuffle=False, verbose=0).history

    distiller, mixed = history(policy)
    _, full = history("float32")
    for name in ("loss", "student_loss", "wsl", "hint"):
        np.testing.assert_allclose(mixed[name], full[name], rtol=0.03, atol=0.01, err_msg=name)
    student, outputs = distiller(x, training=True), distiller.teachers(x)
    assert keras.backend.standardize_dtype(student["hidden"].dtype) == policy.removeprefix("mixed_")
    computed = distiller.compute_losses(distiller.validate_targets(Targets.parse(y), student), student, outputs)
    for values in (*computed.terms.values(), computed.total):
        assert keras.backend.standardize_dtype(values.dtype) == "float32"
    with pytest.raises(ValueError, match="dtypes must match"):
        KerasDistiller(teacher, plain("student", dtype=policy), LogitsDistillation())


def test_loss_weights_may_exceed_one():
    """The Distiller of Keras allows only w CE + (1 - w) L. Here both factors are free."""
    x, y = examples(12)
    teacher, student = network("teacher"), plain("student")
    hard = cross_entropies(y, logits(student, x)).mean()
    soft = divergences(logits(teacher, x), logits(student, x), 4.0).mean()
    for student_loss_weight, weight in ((3.0, 2.25), (1.0, 7.0), (0.0, 1.0)):
        distiller = compiled(
            Distiller(teacher, student, losses.KD(weight=weight), student_loss_weight=student_loss_weight)
        )
        logs = distiller.train_on_batch(x, y, return_dict=True)
        np.testing.assert_allclose(logs["loss"], student_loss_weight * hard + weight * soft, rtol=1e-4)
        np.testing.assert_allclose(logs["student_loss"], hard, rtol=1e-5)
    for bad in (-1.0, float("inf"), float("nan"), "1"):
        with pytest.raises(ValueError, match="student_loss_weight"):
            Distiller(teacher, student, losses.KD(), student_loss_weight=bad)
    with pytest.raises(ValueError, match=r"between 0\.0 and 1\.0"):
        KerasDistiller(teacher, student, LogitsDistillation(), student_loss_weight=3.0)


def test_single_loss_keeps_its_weight():
    """The Distiller of Keras replaces the weight of a single loss by 1."""
    x, y = examples(12)
    teacher, student = network("teacher"), plain("student")
    logs = compiled(Distiller(teacher, student, losses.KD(weight=7.0))).train_on_batch(x, y, return_dict=True)
    np.testing.assert_allclose(logs["distillation_loss"], 7 * logs["kd"], rtol=1e-6)
    keras_distiller = KerasDistiller(teacher, student, LogitsDistillation(), distillation_loss_weights=[7.0])
    assert list(keras_distiller.distillation_loss_weights) == [1.0]


@pytest.mark.traced
def test_fit_trains_the_adapter_of_a_feature_loss():
    """The Distiller of Keras fails on features of the widths 8 and 13, and does not train an adapter."""
    x, y = examples(32)
    teacher, student = network("teacher", width=13), network("student", width=8)
    hint = Hint(weight=1.0)
    distiller = compiled(Distiller(teacher, student, hint, student_loss_weight=0.0), 0.1)
    assert hint.adapter.kernel.shape == (8, 13)
    assert {id(v) for v in hint.trainable_variables} < {id(v) for v in distiller.trainable_variables}
    before = arrays(hint)
    history = distiller.fit(x, y, batch_size=8, epochs=10, verbose=0).history
    assert all((old != new).any() for old, new in zip(before, arrays(hint), strict=True))
    assert history["hint"][-1] < 0.8 * history["hint"][0]

    class Projected(keras.distillation.FeatureDistillation):
        def __init__(self, **names):
            super().__init__("mse", **names)
            self.adapter = keras.layers.Dense(13)
            self.adapter.build((None, 8))

    names = {"teacher_layer_name": "hidden", "student_layer_name": "hidden"}
    keras_distiller = KerasDistiller(teacher, student, Projected(**names))
    assert len(keras_distiller.trainable_variables) == len(student.trainable_variables)
    keras_distiller = keras.distillation.FeatureDistillation("cosine_similarity", **names)
    with pytest.raises((ValueError, TypeError, RuntimeError)):
        compiled(KerasDistiller(teacher, student, keras_distiller), run_eagerly=False).fit(x, y, verbose=0)


def nested(name):
    inputs = keras.Input((6,))
    backbone = plain("backbone", classes=8)
    return keras.Model(inputs, keras.layers.Dense(5, name="head")(backbone(inputs)), name=name)


def subclassed(name):
    model = Subclassed(name=name)
    model(np.zeros((1, 6), "float32"))
    return model


@pytest.mark.parametrize("make", [nested, subclassed, network])
def test_feature_losses_find_layers_at_any_depth(make):
    """The Distiller of Keras finds no layer of a nested or subclassed model."""
    x, y = examples(16)
    teacher, student = make("teacher"), make("student")
    distiller = compiled(Distiller(teacher, student, Hint()), 0.1)
    distiller.fit(x, y, batch_size=8, verbose=0)
    [layer] = [layer for layer in teacher._flatten_layers() if layer.name == "hidden"]
    recorded = distiller.teachers(x)["teacher"]
    np.testing.assert_allclose(ops.convert_to_numpy(recorded["hidden"]), ops.convert_to_numpy(layer(x)), atol=1e-6)
    np.testing.assert_allclose(ops.convert_to_numpy(recorded["logits"]), logits(teacher, x), atol=1e-6)
    if make is not network:
        with pytest.raises(ValueError, match=r"No such layer|appear to be subclassed"):
            KerasDistiller(teacher, student, keras_features())


def test_keras_feature_loss_uses_the_student_layer_alone():
    """The Distiller of Keras compares final outputs if only `student_layer_name` is given."""
    x, y = examples(12)
    teacher, student = plain("teacher"), plain("student", width=5)
    loss = keras.distillation.FeatureDistillation("mse", student_layer_name="hidden")
    hidden = ops.convert_to_numpy(student.get_layer("hidden")(x))
    expected = ((hidden - logits(teacher, x)) ** 2).mean()
    final = ((logits(student, x) - logits(teacher, x)) ** 2).mean()
    logs = compiled(Distiller(teacher, student, loss)).train_on_batch(x, y, return_dict=True)
    np.testing.assert_allclose(logs["feature_distillation"], expected, rtol=1e-5)
    keras_distiller = compiled(KerasDistiller(teacher, student, loss))
    logs = keras_distiller.train_on_batch(x, y, return_dict=True)
    np.testing.assert_allclose(logs["distillation_loss"], final, rtol=1e-5)


def two_headed(name, width=8):
    inputs = keras.Input((6,))
    hidden = keras.layers.Dense(width, name="hidden")(inputs)
    return keras.Model(inputs, {"logits": keras.layers.Dense(5)(hidden), "pooled": hidden}, name=name)


class Pooled(losses.DistillationLoss):
    """The squared difference of the output `pooled` of a dict."""

    def per_example(self, labels, student, teacher):
        return ops.mean(ops.square(student["pooled"] - teacher["pooled"]), axis=-1)


def test_networks_may_return_dicts():
    """`fit` of Keras fails on dicts of outputs. Here `logits` are used, and losses get the other outputs too."""
    x, y = examples(16)
    teacher, student = two_headed("teacher"), two_headed("student")
    distiller = compiled(Distiller(teacher, student, [losses.WSL(), Pooled()]), 0.1, metrics=["accuracy"])
    logs = distiller.fit(x, y, batch_size=8, epochs=5, verbose=0, validation_data=(x, y)).history
    assert logs["pooled"][-1] < logs["pooled"][0] and {"accuracy", "val_accuracy", "wsl"} <= logs.keys()
    assert distiller.predict(x, verbose=0).shape == (16, 5)
    np.testing.assert_allclose(distiller.predict(x, verbose=0), student.predict(x, verbose=0)["logits"], atol=1e-6)

    divergence = {"logits": keras.losses.KLDivergence(), "pooled": None}
    keras_distiller = KerasDistiller(teacher, student, keras.distillation.LogitsDistillation(loss=divergence))
    keras_distiller.compile("sgd", {"logits": hard_loss(), "pooled": "mse"})
    with pytest.raises((ValueError, TypeError)):
        keras_distiller.fit(x, {"logits": y, "pooled": np.zeros((16, 8))}, verbose=0)


def test_logs_are_means_over_examples():
    """The Distiller of Keras logs the mean of the means of batches. The last batch here has one example."""
    x, y = examples(33)
    y[-1] = np.argmin(y)
    x[-1] *= 8
    teacher, student = plain("teacher", width=13), plain("student")
    distiller = compiled(Distiller(teacher, student, [losses.KD(weight=2.0), Hint(weight=0.5)]))
    logs = distiller.fit(x, y, batch_size=32, verbose=0).history
    hard = cross_entropies(y, logits(student, x))
    soft = divergences(logits(teacher, x), logits(student, x), 4.0)
    np.testing.assert_allclose(logs["student_loss"][0], hard.mean(), rtol=1e-5)
    np.testing.assert_allclose(logs["kd"][0], soft.mean(), rtol=1e-4)
    outputs = distiller(x, training=True)
    targets = distiller.validate_targets(Targets.parse(y), outputs)
    computed = distiller.compute_losses(targets, outputs, distiller.teachers(x))
    for name, values in {**computed.terms, "loss": computed.total}.items():
        np.testing.assert_allclose(logs[name][0], ops.convert_to_numpy(values).mean(), rtol=1e-4, err_msg=name)
    rate = logs["regularization_samples"][0] / 33
    np.testing.assert_allclose(logs["regularization_sample_rate"][0], rate, rtol=1e-5)

    of_batches = (hard[:32].mean() + hard[32:].mean()) / 2
    assert abs(of_batches - hard.mean()) > 0.05 * hard.mean()
    keras_distiller = compiled(KerasDistiller(plain("teacher"), student, LogitsDistillation()))
    logs = keras_distiller.fit(x, y, batch_size=32, shuffle=False, verbose=0).history
    np.testing.assert_allclose(logs["student_loss"][0], of_batches, rtol=1e-4)


@pytest.mark.parametrize(
    "loss",
    [
        "sparse_categorical_crossentropy",
        keras.losses.SparseCategoricalCrossentropy(),
        keras.losses.categorical_crossentropy,
        keras.losses.CategoricalCrossentropy(from_logits=False, label_smoothing=0.1),
    ],
)
def test_compiled_losses_of_probabilities_raise(loss):
    """The Distiller of Keras treats the logits as probabilities, in the example of its docstring too."""
    x, y = examples(8)
    if "sparse" not in str(getattr(loss, "name", loss)):
        y = np.eye(5, dtype="float32")[y]
    distiller = Distiller(network("teacher"), network("student"), losses.WSL())
    distiller.compile("sgd", loss)
    before = arrays(distiller)
    with pytest.raises(ValueError, match="from_logits=True"):
        distiller.fit(x, y, verbose=0)
    with pytest.raises(ValueError, match="from_logits=True"):
        distiller.evaluate(x, y, verbose=0)
    assert not changed(before, arrays(distiller))


def test_keras_distiller_treats_logits_as_probabilities():
    """Compiled as in its docstring, the Distiller of Keras does not log the cross-entropy."""
    x, y = examples(8)
    student = plain("student")
    keras_distiller = KerasDistiller(network("teacher"), student, LogitsDistillation())
    keras_distiller.compile(keras.optimizers.SGD(0.0), "sparse_categorical_crossentropy")
    logs = keras_distiller.train_on_batch(x, y, return_dict=True)
    assert abs(logs["student_loss"] - cross_entropies(y, logits(student, x)).mean()) > 0.1


@pytest.mark.parametrize("teacher_batch_statistics", [False, True])
def test_fit_does_not_change_the_teacher(teacher_batch_statistics):
    """The Distiller of Keras sets `trainable` of the teacher. Here flags, weights and statistics stay the same."""
    x, y = examples(16)
    teacher = network("teacher")
    teacher.get_layer("hidden").trainable = False
    before, flags = arrays(teacher), [layer.trainable for layer in teacher._flatten_layers()]
    variables = [(v.trainable, v.path) for v in teacher.variables]
    distiller = Distiller(
        teacher, network("student"), [losses.WSL(), Hint()], teacher_batch_statistics=teacher_batch_statistics
    )
    compiled(distiller, 0.5).fit(x, y, batch_size=8, epochs=2, verbose=0, validation_data=(x, y))
    for expected, actual in zip(before, arrays(teacher), strict=True):
        np.testing.assert_array_equal(expected, actual)
    assert flags == [layer.trainable for layer in teacher._flatten_layers()]
    assert variables == [(v.trainable, v.path) for v in teacher.variables]

    KerasDistiller(teacher, network("student"), LogitsDistillation())
    assert not teacher.trainable


@pytest.mark.tensorflow
def test_gradient_tape_does_not_watch_the_teacher():
    """The Distiller of Keras records the teacher on the gradient tape."""
    import tensorflow as tf

    x, y = examples(8)
    teacher, student = network("teacher"), network("student")
    distiller = Distiller(teacher, student, [losses.WSL(), Hint()], teacher_batch_statistics=True)
    with tf.GradientTape() as tape:
        distiller.teachers(tf.constant(x))
    assert not tape.watched_variables()
    keras_distiller = compiled(KerasDistiller(teacher, student, LogitsDistillation()))
    with tf.GradientTape() as tape:
        keras_distiller.compute_loss(x, y, student(x))
    watched = {id(v) for v in tape.watched_variables()}
    assert {id(v.value) for v in teacher.variables} & watched


def test_feature_losses_allow_different_numbers_of_classes():
    """Only losses that compare classes raise an error. The Distiller of Keras always does."""
    x, y = examples(16)
    teacher, student = network("teacher", classes=7), network("student", classes=5)
    history = compiled(Distiller(teacher, student, Hint()), 0.1).fit(x, y, verbose=0).history
    assert "hint" in history and not {"mean_wsl_weight", "regularization_sample_rate"} & history.keys()
    with pytest.raises(ValueError, match="student of 5 classes and a teacher of 7"):
        Distiller(teacher, student, losses.WSL())
    with pytest.raises(ValueError, match="shapes are incompatible"):
        KerasDistiller(teacher, student, keras_features())


def test_networks_may_return_different_structures():
    """The Distiller of Keras raises an error if the teacher returns a dict and the student a tensor."""
    x, y = examples(16)
    teacher, student = two_headed("teacher"), network("student")
    compiled(Distiller(teacher, student, [losses.WSL(), Hint()]), 0.1).fit(x, y, verbose=0)
    with pytest.raises(ValueError):
        KerasDistiller(teacher, student, LogitsDistillation())


def test_fit_raises_for_different_inputs():
    """The error comes before the first step."""
    x, y = examples(16)
    student = plain("student")
    before = arrays(student)
    with pytest.raises(ValueError, match="Student and teacher must take the same inputs"):
        compiled(Distiller(network("teacher", inputs=9), student, losses.WSL()), 0.1).fit(x, y, verbose=0)
    assert not changed(before, arrays(student))


def test_logs_have_every_loss():
    """The Distiller of Keras logs only the sum of its losses."""
    x, y = examples(16)
    teacher, student = network("teacher"), network("student")
    several = [losses.WSL(), losses.KD(weight=0.5), losses.KD(temperature=2.0, name="kd_at_2"), Hint(weight=3.0)]
    logs = compiled(Distiller(teacher, student, several)).fit(x, y, verbose=0).history
    weights = {"wsl": 2.25, "kd": 0.5, "kd_at_2": 0.9, "hint": 3.0}
    assert {"loss", "student_loss", "distillation_loss", *weights} <= logs.keys()
    weighted = sum(weight * logs[name][0] for name, weight in weights.items())
    np.testing.assert_allclose(logs["distillation_loss"][0], weighted, rtol=1e-5)
    np.testing.assert_allclose(logs["loss"][0], logs["student_loss"][0] + weighted, rtol=1e-5)
    keras_distiller = compiled(KerasDistiller(teacher, student, [LogitsDistillation(), keras_features()]))
    assert set(keras_distiller.fit(x, y, verbose=0).history) == {
        "loss",
        "student_loss",
        "distillation_loss",
        "total_loss",
    }
