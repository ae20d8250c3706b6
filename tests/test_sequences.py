"""Logits of sequences, (batch, time, classes): the loss of an example is the mean over its unmasked positions."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_wsl import Distiller, callbacks, losses
from tests.common import arrays, hard_loss
from tests.test_distiller import BACKEND, changed, log_softmax

CLASSES, WORDS = 4, 11
LENGTHS = np.array([6, 1, 3, 4, 2, 6])


def tagger(name, width=6, dtype=None):
    """Return a classifier of each word, in which Keras masks the padding 0."""
    layers = keras.layers
    # A larger standard deviation than Keras's default, with which all logits would be almost 0.
    start = keras.initializers.RandomNormal(stddev=2.0)
    return keras.Sequential(
        [
            keras.Input((None,), dtype="int32"),
            layers.Embedding(WORDS, width, start, mask_zero=True, name="embedding", dtype=dtype),
            layers.Dense(width, activation="relu", name="hidden", dtype=dtype),
            layers.Dense(CLASSES, name="logits", dtype=dtype),
        ],
        name=name,
    )


def vector_tagger(name, width=6):
    """Return a classifier of each vector, without a mask of Keras."""
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((None, 3)),
            layers.Dense(width, activation="relu", name="hidden"),
            layers.Dense(CLASSES, name="logits"),
        ],
        name=name,
    )


def sentences(masking, padding=0):
    """Return inputs, targets and mask of sentences that are padded by `padding` more than the longest one needs."""
    generator = np.random.default_rng(3)
    count, time = len(LENGTHS), LENGTHS.max()
    x, y = generator.integers(1, WORDS, (count, time)), generator.integers(0, CLASSES, (count, time))
    vectors = generator.normal(size=(count, time, 3)).astype("float32")
    more = ((0, 0), (0, padding))
    mask = np.arange(time + padding) < LENGTHS[:, None]
    y = np.where(mask, np.pad(y, more), 0).astype("int32")
    if masking == "keras":
        return np.where(mask, np.pad(x, more), 0).astype("int32"), y, mask
    # The padding is not 0: only the mask marks it.
    vectors = np.where(mask[..., None], np.pad(vectors, (*more, (0, 0))), 7.0).astype("float32")
    return vectors, {"labels": y, "mask": mask}, mask


def made(masking, distillation_losses=None, learning_rate=0.0, **settings):
    """Return a Distiller of two taggers, the same at every call."""
    keras.utils.set_random_seed(1)
    make = tagger if masking == "keras" else vector_tagger
    distiller = Distiller(make("teacher", 9), make("student"), distillation_losses or [losses.WSL(), losses.DKD()])
    settings.setdefault("run_eagerly", BACKEND == "tensorflow")
    distiller.compile(keras.optimizers.SGD(learning_rate), hard_loss(), **settings)
    return distiller


def compute_logits(distiller, x):
    """Compute the logits of student and teacher in float64."""
    models = (distiller.student, distiller.teacher)
    return [np.asarray(ops.convert_to_numpy(model(x)), "float64") for model in models]


def per_position(function, student, teacher, y, mask):
    """Compute a list per sentence of `function(student_logits, teacher_logits, label)` at unmasked positions."""
    return [
        [function(student[i, t], teacher[i, t], y[i, t]) for t in range(mask.shape[1]) if mask[i, t]]
        for i in range(len(mask))
    ]


def hard(s, t, label):
    return -log_softmax(s)[label]


def soft(s, t, label, temperature=4.0):
    p, q = log_softmax(t / temperature), log_softmax(s / temperature)
    return temperature**2 * (np.exp(p) * (p - q)).sum()


def weight(s, t, label):
    return 1 - np.exp(-hard(s, t, label) / hard(t, s, label))


def weighted(s, t, label):
    return weight(s, t, label) * soft(s, t, label)


def decoupled(s, t, label):
    """Compute DKD with alpha = 1, beta = 8 and temperature 4 from the softmaxes."""
    q, p = np.exp(log_softmax(s / 4)), np.exp(log_softmax(t / 4))
    target = sum(a * np.log(a / b) for a, b in ((p[label], q[label]), (1 - p[label], 1 - q[label])))
    others = [c for c in range(CLASSES) if c != label]
    p, q = p[others] / p[others].sum(), q[others] / q[others].sum()
    return 16 * (target + 8 * (p * np.log(p / q)).sum())


def is_sample(s, t, label):
    q, q4, p4 = (np.exp(log_softmax(z))[label] for z in (s, s / 4, t / 4))
    return abs(4 * (q4 - p4) - (q - 1)) > abs(q - 1)


def get_labels(y):
    return y["labels"] if isinstance(y, dict) else y


@pytest.mark.parametrize("masking", ["keras", "explicit"])
def test_losses_ignore_masked_positions(masking):
    """Each term matches a loop over sentences and words. Sample weights are per sentence."""
    x, y, mask = sentences(masking)
    distiller = made(masking, [losses.WSL(), losses.KD(weight=0.5), losses.DKD(weight=2.0)])
    sample_weight = np.linspace(0.0, 2.0, len(x)).astype("float32")
    rows = per_position(hard, *compute_logits(distiller, x), get_labels(y), mask)
    assert [len(row) for row in rows] == LENGTHS.tolist()
    expected = {}
    for name, function in {"student_loss": hard, "wsl": weighted, "kd": soft, "dkd": decoupled}.items():
        rows = per_position(function, *compute_logits(distiller, x), get_labels(y), mask)
        expected[name] = np.array([np.mean(row) for row in rows])
    expected["loss"] = expected["student_loss"] + 2.25 * expected["wsl"] + 0.5 * expected["kd"] + 2 * expected["dkd"]
    logs = distiller.train_on_batch(x, y, return_dict=True)
    for name, rows in expected.items():
        np.testing.assert_allclose(logs[name], rows.mean(), rtol=1e-4, err_msg=name)
    distiller.reset_metrics()
    logs = distiller.train_on_batch(x, y, sample_weight=sample_weight, return_dict=True)
    for name, rows in expected.items():
        np.testing.assert_allclose(logs[name], (sample_weight * rows).mean(), rtol=1e-4, err_msg=name)
    logs = distiller.evaluate(x, y, sample_weight=sample_weight, return_dict=True, verbose=0)
    np.testing.assert_allclose(logs["loss"], (sample_weight * expected["student_loss"]).mean(), rtol=1e-4)


@pytest.mark.parametrize("masking", ["keras", "explicit"])
def test_fit_does_not_depend_on_padding(masking):
    """Logs and weights are the same after three steps."""

    def train(padding):
        x, y, _ = sentences(masking, padding)
        distiller = made(masking, learning_rate=0.01, weighted_metrics=["accuracy"])
        before = arrays(distiller.student)
        history = distiller.fit(x, y, batch_size=len(x), epochs=3, shuffle=False, verbose=0).history
        assert changed(before, arrays(distiller.student))
        return history, arrays(distiller.student)

    (history, weights), (expected_history, expected) = train(5), train(0)
    assert {"wsl", "dkd", "accuracy", "regularization_samples"} <= history.keys()
    for name, values in history.items():
        np.testing.assert_allclose(values, expected_history[name], rtol=1e-5, atol=1e-6, err_msg=name)
    for actual, array in zip(weights, expected, strict=True):
        np.testing.assert_allclose(actual, array, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("masking", ["keras", "explicit"])
def test_labels_in_padding_are_ignored(masking):
    x, y, mask = sentences(masking, padding=2)
    labels = y["labels"] if isinstance(y, dict) else y
    ignored = np.where(mask, labels, -100).astype("int32")
    ignored = {**y, "labels": ignored} if isinstance(y, dict) else ignored
    runs = []
    for targets in (y, ignored):
        distiller = made(masking, learning_rate=0.1)
        logs = distiller.train_on_batch(x, targets, return_dict=True)
        tested = distiller.test_on_batch(x, targets, return_dict=True)
        runs.append((arrays(distiller.student), logs, tested))
    for actual, expected in zip(runs[1][0], runs[0][0]):
        np.testing.assert_array_equal(actual, expected)
    assert runs[0][1:] == runs[1][1:] and np.isfinite(runs[0][1]["loss"])


@pytest.mark.parametrize("masking", ["keras", "explicit"])
def test_metrics_count_unmasked_positions(masking):
    """Regularization samples and weights are counted over words, without padding."""
    x, y, mask = sentences(masking, padding=4)
    distiller = made(masking)
    networks = compute_logits(distiller, x)
    samples = np.concatenate(per_position(is_sample, *networks, get_labels(y), mask))
    weights = np.concatenate(per_position(weight, *networks, get_labels(y), mask))
    logs = distiller.fit(x, y, batch_size=len(x), verbose=0).history
    assert logs["regularization_samples"] == [samples.sum()]
    np.testing.assert_allclose(logs["regularization_sample_rate"], [samples.mean()], rtol=1e-5)
    np.testing.assert_allclose(logs["mean_wsl_weight"], [weights.mean()], rtol=1e-4)
    everywhere = np.concatenate(per_position(weight, *networks, get_labels(y), np.ones_like(mask)))
    assert everywhere.mean() != pytest.approx(
        weights.mean(), rel=1e-3
    )  # So that the test detects padding that is counted.


@pytest.mark.parametrize("masking", ["keras", "explicit"])
def test_regularization_samples_callback_counts_unmasked_positions(masking, tmp_path):
    """The padding of `clean_data` does not count; its targets may be dicts."""
    x, y, mask = sentences(masking, padding=4)
    distiller = made(masking)
    samples = np.concatenate(per_position(is_sample, *compute_logits(distiller, x), get_labels(y), mask))
    callback = callbacks.RegularizationSamples(tmp_path, (x, y), batch_size=4)
    history = distiller.fit(x, y, batch_size=len(x), verbose=0, callbacks=[callback]).history
    assert history["clean_regularization_samples"] == [samples.sum()]
    np.testing.assert_allclose(history["clean_regularization_sample_rate"], [samples.mean()], rtol=1e-5)


@pytest.mark.parametrize("masking", ["keras", "explicit"])
def test_weighted_metrics_ignore_padding(masking):
    x, y, mask = sentences(masking, padding=3)
    distiller = made(masking, weighted_metrics=["accuracy"])
    student, _ = compute_logits(distiller, x)
    correct = student.argmax(-1) == get_labels(y)
    logs = distiller.train_on_batch(x, y, return_dict=True)
    np.testing.assert_allclose(logs["accuracy"], correct[mask].mean(), rtol=1e-5)
    assert correct.mean() != pytest.approx(correct[mask].mean(), rel=1e-2)
    logs = distiller.evaluate(x, y, return_dict=True, verbose=0)
    np.testing.assert_allclose(logs["accuracy"], correct[mask].mean(), rtol=1e-5)
    sample_weight = np.linspace(0.5, 2.0, len(x)).astype("float32")
    weights = sample_weight[:, None] * mask
    logs = distiller.evaluate(x, y, sample_weight=sample_weight, return_dict=True, verbose=0)
    np.testing.assert_allclose(logs["accuracy"], (weights * correct).sum() / weights.sum(), rtol=1e-5)


def test_mask_in_targets_overrides_the_mask_of_keras():
    x, y, mask = sentences("keras")
    distiller = made("keras")
    explicit = mask & (np.arange(mask.shape[1]) != 1)
    logs = distiller.train_on_batch(x, {"labels": y, "mask": explicit}, return_dict=True)
    rows = per_position(weighted, *compute_logits(distiller, x), y, explicit)
    np.testing.assert_allclose(logs["wsl"], np.mean([np.mean(row) for row in rows]), rtol=1e-4)


def test_fully_masked_sequences_have_no_loss():
    """Its terms are 0 and not NaN. It counts as an example."""
    x, y, mask = sentences("keras")
    x[2], mask[2] = 0, False
    distiller = made("keras", [losses.KD()], learning_rate=0.1)
    rows = per_position(hard, *compute_logits(distiller, x), y, mask)
    logs = distiller.train_on_batch(x, y, return_dict=True)
    np.testing.assert_allclose(logs["student_loss"], np.sum([np.mean(row) for row in rows if row]) / 6, rtol=1e-5)
    assert all(np.isfinite(array).all() for array in arrays(distiller))


def test_all_positions_count_without_a_mask():
    x, y, mask = sentences("explicit")
    distiller = made("explicit")
    logs = distiller.train_on_batch(x, get_labels(y), return_dict=True)
    rows = per_position(weighted, *compute_logits(distiller, x), get_labels(y), np.ones_like(mask))
    np.testing.assert_allclose(logs["wsl"], np.mean(rows), rtol=1e-4)


@pytest.mark.parametrize("masking", ["keras", "explicit"])
def test_one_hot_labels_match_integers(masking):
    """Logs and weights after a step are equal."""
    x, y, _ = sentences(masking)
    one_hot = np.eye(CLASSES, dtype="float32")[get_labels(y)]

    def train(labels, loss):
        distiller = made(masking, learning_rate=0.1)
        distiller.compile(distiller.optimizer, loss, run_eagerly=BACKEND == "tensorflow")
        return distiller.train_on_batch(x, labels, return_dict=True), arrays(distiller.student)

    logs, weights = train(
        {**y, "labels": one_hot} if isinstance(y, dict) else one_hot,
        keras.losses.CategoricalCrossentropy(from_logits=True),
    )
    expected_logs, expected = train(y, hard_loss())
    for name, number in expected_logs.items():
        np.testing.assert_allclose(logs[name], number, rtol=1e-5, atol=1e-6, err_msg=name)
    for actual, array in zip(weights, expected, strict=True):
        np.testing.assert_allclose(actual, array, atol=1e-6)


def test_mixed_precision_keeps_the_mask():
    """A cast to float32 drops the mask that Keras attaches to a tensor. The counts must keep it."""
    x, y, mask = sentences("keras", padding=6)
    keras.utils.set_random_seed(1)
    policy = "mixed_bfloat16"
    distiller = Distiller(tagger("teacher", 9, dtype=policy), tagger("student", dtype=policy), losses.WSL())
    distiller.compile(keras.optimizers.SGD(0.0), hard_loss(), run_eagerly=BACKEND == "tensorflow")
    student, teacher = (
        np.asarray(ops.convert_to_numpy(ops.cast(m(x), "float32")), "float64")
        for m in (distiller.student, distiller.teacher)
    )
    weights = np.concatenate(per_position(weight, student, teacher, y, mask))
    logs = distiller.train_on_batch(x, y, return_dict=True)
    np.testing.assert_allclose(logs["mean_wsl_weight"], weights.mean(), rtol=1e-3)
    everywhere = np.concatenate(per_position(weight, student, teacher, y, np.ones_like(mask)))
    assert everywhere.mean() != pytest.approx(
        weights.mean(), rel=1e-2
    )  # So that the test detects padding that is counted.


@pytest.mark.parametrize("masking", [pytest.param("keras", marks=pytest.mark.slow), "explicit"])
def test_loaded_distiller_continues_to_the_same_bits(masking, tmp_path):
    """The steps are compiled. `predict` returns all positions."""
    x, y, _ = sentences(masking)

    def fit(distiller):
        return distiller.fit(x, y, batch_size=3, epochs=2, shuffle=False, verbose=0).history

    whole, distiller = (made(masking, learning_rate=0.1, run_eagerly=False) for _ in range(2))
    fit(whole)
    fit(distiller)
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.saving.load_model(tmp_path / "distiller.keras")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), distiller.predict(x, verbose=0))
    assert loaded.predict(x, verbose=0).shape == (*get_labels(y).shape, CLASSES)
    assert loaded.evaluate(x, y, verbose=0) == distiller.evaluate(x, y, verbose=0)
    loaded.teacher = distiller.teacher
    assert fit(whole) == fit(loaded)
    assert not changed(arrays(whole), arrays(loaded))


def test_several_teachers_are_averaged_per_position():
    x, y, mask = sentences("keras")
    teachers = {"large": tagger("large", 9), "small": tagger("small", 5)}
    distiller = Distiller(teachers, tagger("student"), losses.KD(teacher={"large": 3.0, "small": 1.0}))
    distiller.compile(keras.optimizers.SGD(0.0), hard_loss(), run_eagerly=BACKEND == "tensorflow")
    logs = distiller.train_on_batch(x, y, return_dict=True)
    student, large, small = (
        np.asarray(ops.convert_to_numpy(m(x)), "float64") for m in (distiller.student, *teachers.values())
    )
    mean = 4 * np.log(0.75 * np.exp(log_softmax(large / 4)) + 0.25 * np.exp(log_softmax(small / 4)))
    rows = per_position(soft, student, mean, y, mask)
    np.testing.assert_allclose(logs["kd"], np.mean([np.mean(row) for row in rows]), rtol=1e-4)


def test_wsl_trains_a_tagger():
    """The tag of a word is its remainder. The teacher is trained before."""
    generator = np.random.default_rng(0)
    x = generator.integers(1, WORDS, (64, 8)).astype("int32")
    x[np.arange(8) >= generator.integers(1, 9, 64)[:, None]] = 0
    y = x % CLASSES
    teacher = tagger("teacher", 16)
    teacher.compile(keras.optimizers.Adam(0.05), hard_loss())
    teacher.fit(x, y, epochs=8, batch_size=16, verbose=0)
    distiller = Distiller(teacher, tagger("student", 8), losses.WSL(temperature=2.0, weight=2.5))
    distiller.compile(keras.optimizers.Adam(0.02), hard_loss(), weighted_metrics=["accuracy"])
    before = arrays(teacher)
    history = distiller.fit(x, y, epochs=15, batch_size=8, verbose=0, validation_data=(x, y)).history
    assert not changed(before, arrays(teacher))
    assert history["val_accuracy"][-1] > 0.95 > history["accuracy"][0]
    assert history["wsl"][-1] < 0.5 * history["wsl"][0]


def test_losses_between_examples_raise():
    for loss in (losses.DIST(), losses.MLKD()):
        with pytest.raises(ValueError, match="compares the examples of a batch"):
            Distiller(tagger("teacher"), tagger("student"), loss)


def test_sample_weights_per_position_raise():
    x, y, _ = sentences("keras")
    with pytest.raises(ValueError, match="`sample_weight` must be one number per example"):
        made("keras").fit(x, y, sample_weight=np.ones(y.shape, "float32"), verbose=0)


def test_class_weights_raise():
    x, y, _ = sentences("keras")
    with pytest.raises(ValueError, match="`class_weight` must be None for sequences"):
        made("keras").fit(x, y, class_weight={0: 2.0}, verbose=0)


@pytest.mark.parametrize("true", [-1, 0.5, 3])
def test_mask_may_be_any_numbers(true):
    """Every number other than 0 is true, as in NumPy, in losses, counts and metrics."""
    x, y, mask = sentences("explicit")

    def logs(mask):
        distiller = made("explicit", weighted_metrics=["accuracy"])
        targets = {**y, "mask": mask}
        evaluated = distiller.test_on_batch(x, targets, return_dict=True)
        return distiller.train_on_batch(x, targets, return_dict=True), evaluated

    assert logs(np.where(mask, true, 0)) == logs(mask)
