"""Logits of sequences, (batch, time, classes): an example's loss is the mean over its unmasked positions."""

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
    """Position by position, of words; 0 is padding, and masked by Keras."""
    layers = keras.layers
    # Far apart, unlike Keras's default: else all logits are almost 0, and all positions alike.
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


def of_vectors(name, width=6):
    """The same of vectors, without a mask of Keras's."""
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
    """Inputs, targets and the mask, of sentences padded to the longest one and by `padding` more."""
    generator = np.random.default_rng(3)
    count, time = len(LENGTHS), LENGTHS.max()
    x, y = generator.integers(1, WORDS, (count, time)), generator.integers(0, CLASSES, (count, time))
    vectors = generator.normal(size=(count, time, 3)).astype("float32")
    more = ((0, 0), (0, padding))
    mask = np.arange(time + padding) < LENGTHS[:, None]
    y = np.where(mask, np.pad(y, more), 0).astype("int32")
    if masking == "keras":
        return np.where(mask, np.pad(x, more), 0).astype("int32"), y, mask
    # What stands in the padding is not 0: only the mask says that it does not count.
    vectors = np.where(mask[..., None], np.pad(vectors, (*more, (0, 0))), 7.0).astype("float32")
    return vectors, {"labels": y, "mask": mask}, mask


def made(masking, distillation_losses=None, learning_rate=0.0, **settings):
    """A Distiller of two taggers, the same at every call."""
    keras.utils.set_random_seed(1)
    make = tagger if masking == "keras" else of_vectors
    distiller = Distiller(make("teacher", 9), make("student"), distillation_losses or [losses.WSL(), losses.DKD()])
    settings.setdefault("run_eagerly", BACKEND == "tensorflow")
    distiller.compile(keras.optimizers.SGD(learning_rate), hard_loss(), **settings)
    return distiller


def numbers(distiller, x):
    """Logits of student and teacher in float64."""
    models = (distiller.student, distiller.teacher)
    return [np.asarray(ops.convert_to_numpy(model(x)), "float64") for model in models]


def each(function, student, teacher, y, mask):
    """A list for each sentence of `function(student_logits, teacher_logits, label)` at its unmasked positions."""
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
    """alpha = 1, beta = 8, temperature 4: from the softmaxes themselves."""
    q, p = np.exp(log_softmax(s / 4)), np.exp(log_softmax(t / 4))
    own = sum(a * np.log(a / b) for a, b in ((p[label], q[label]), (1 - p[label], 1 - q[label])))
    others = [c for c in range(CLASSES) if c != label]
    p, q = p[others] / p[others].sum(), q[others] / q[others].sum()
    return 16 * (own + 8 * (p * np.log(p / q)).sum())


def is_sample(s, t, label):
    q, q4, p4 = (np.exp(log_softmax(z))[label] for z in (s, s / 4, t / 4))
    return abs(4 * (q4 - p4) - (q - 1)) > abs(q - 1)


def labels_of(y):
    return y["labels"] if isinstance(y, dict) else y


@pytest.mark.parametrize("masking", ["keras", "explicit"])
def test_masked_positions_do_not_count(masking):
    """Every term against a loop over sentences and words; sample weights multiply a sentence."""
    x, y, mask = sentences(masking)
    distiller = made(masking, [losses.WSL(), losses.KD(weight=0.5), losses.DKD(weight=2.0)])
    sample_weight = np.linspace(0.0, 2.0, len(x)).astype("float32")
    found = each(hard, *numbers(distiller, x), labels_of(y), mask)
    assert [len(row) for row in found] == LENGTHS.tolist()
    expected = {}
    for name, function in {"student_loss": hard, "wsl": weighted, "kd": soft, "dkd": decoupled}.items():
        rows = each(function, *numbers(distiller, x), labels_of(y), mask)
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
def test_longer_padding_changes_nothing(masking):
    """The same logs, and the same weights after three steps."""

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
    for one, other in zip(weights, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("masking", ["keras", "explicit"])
def test_what_stands_in_padding_is_no_label(masking):
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
    for one, other in zip(runs[0][0], runs[1][0]):
        np.testing.assert_array_equal(one, other)
    assert runs[0][1:] == runs[1][1:] and np.isfinite(runs[0][1]["loss"])


@pytest.mark.parametrize("masking", ["keras", "explicit"])
def test_positions_are_counted(masking):
    """Regularization samples and weights are of words, and not of padding."""
    x, y, mask = sentences(masking, padding=4)
    distiller = made(masking)
    networks = numbers(distiller, x)
    samples = np.concatenate(each(is_sample, *networks, labels_of(y), mask))
    weights = np.concatenate(each(weight, *networks, labels_of(y), mask))
    logs = distiller.fit(x, y, batch_size=len(x), verbose=0).history
    assert logs["regularization_samples"] == [samples.sum()]
    np.testing.assert_allclose(logs["regularization_sample_rate"], [samples.mean()], rtol=1e-5)
    np.testing.assert_allclose(logs["mean_wsl_weight"], [weights.mean()], rtol=1e-4)
    everywhere = np.concatenate(each(weight, *networks, labels_of(y), np.ones_like(mask)))
    assert everywhere.mean() != pytest.approx(weights.mean(), rel=1e-3)  # Else no one would see padding counted.


@pytest.mark.parametrize("masking", ["keras", "explicit"])
def test_the_probe_counts_positions(masking, tmp_path):
    """`RegularizationSamples` leaves the probe's padding out too; a probe may be of dicts."""
    x, y, mask = sentences(masking, padding=4)
    distiller = made(masking)
    samples = np.concatenate(each(is_sample, *numbers(distiller, x), labels_of(y), mask))
    observer = callbacks.RegularizationSamples(tmp_path, (x, y), batch_size=4)
    history = distiller.fit(x, y, batch_size=len(x), verbose=0, callbacks=[observer]).history
    assert history["clean_regularization_samples"] == [samples.sum()]
    np.testing.assert_allclose(history["clean_regularization_sample_rate"], [samples.mean()], rtol=1e-5)


@pytest.mark.parametrize("masking", ["keras", "explicit"])
def test_weighted_metrics_leave_padding_out(masking):
    x, y, mask = sentences(masking, padding=3)
    distiller = made(masking, weighted_metrics=["accuracy"])
    student, _ = numbers(distiller, x)
    right = student.argmax(-1) == labels_of(y)
    logs = distiller.train_on_batch(x, y, return_dict=True)
    np.testing.assert_allclose(logs["accuracy"], right[mask].mean(), rtol=1e-5)
    assert right.mean() != pytest.approx(right[mask].mean(), rel=1e-2)
    logs = distiller.evaluate(x, y, return_dict=True, verbose=0)
    np.testing.assert_allclose(logs["accuracy"], right[mask].mean(), rtol=1e-5)
    sample_weight = np.linspace(0.5, 2.0, len(x)).astype("float32")
    weights = sample_weight[:, None] * mask
    logs = distiller.evaluate(x, y, sample_weight=sample_weight, return_dict=True, verbose=0)
    np.testing.assert_allclose(logs["accuracy"], (weights * right).sum() / weights.sum(), rtol=1e-5)


def test_a_mask_in_the_targets_comes_first():
    """What the targets say of positions overrules Keras's mask of the logits."""
    x, y, mask = sentences("keras")
    distiller = made("keras")
    own = mask & (np.arange(mask.shape[1]) != 1)
    logs = distiller.train_on_batch(x, {"labels": y, "mask": own}, return_dict=True)
    rows = each(weighted, *numbers(distiller, x), y, own)
    np.testing.assert_allclose(logs["wsl"], np.mean([np.mean(row) for row in rows]), rtol=1e-4)


def test_a_sentence_of_padding_alone_is_worth_nothing():
    """Its terms are 0, and no NaN comes of it; it counts as an example."""
    x, y, mask = sentences("keras")
    x[2], mask[2] = 0, False
    distiller = made("keras", [losses.KD()], learning_rate=0.1)
    rows = each(hard, *numbers(distiller, x), y, mask)
    logs = distiller.train_on_batch(x, y, return_dict=True)
    np.testing.assert_allclose(logs["student_loss"], np.sum([np.mean(row) for row in rows if row]) / 6, rtol=1e-5)
    assert all(np.isfinite(array).all() for array in arrays(distiller))


def test_without_a_mask_all_positions_count():
    x, y, mask = sentences("explicit")
    distiller = made("explicit")
    logs = distiller.train_on_batch(x, labels_of(y), return_dict=True)
    rows = each(weighted, *numbers(distiller, x), labels_of(y), np.ones_like(mask))
    np.testing.assert_allclose(logs["wsl"], np.mean(rows), rtol=1e-4)


@pytest.mark.parametrize("masking", ["keras", "explicit"])
def test_labels_that_are_distributions(masking):
    """One-hot labels of each position train as integers do."""
    x, y, _ = sentences(masking)
    one_hot = np.eye(CLASSES, dtype="float32")[labels_of(y)]

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
    for one, other in zip(weights, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_mixed_precision_keeps_the_mask():
    """A cast to float32 drops what Keras keeps beside a tensor: the counts must not lose the mask with it."""
    x, y, mask = sentences("keras", padding=6)
    keras.utils.set_random_seed(1)
    policy = "mixed_bfloat16"
    distiller = Distiller(tagger("teacher", 9, dtype=policy), tagger("student", dtype=policy), losses.WSL())
    distiller.compile(keras.optimizers.SGD(0.0), hard_loss(), run_eagerly=BACKEND == "tensorflow")
    student, teacher = (
        np.asarray(ops.convert_to_numpy(ops.cast(m(x), "float32")), "float64")
        for m in (distiller.student, distiller.teacher)
    )
    weights = np.concatenate(each(weight, student, teacher, y, mask))
    logs = distiller.train_on_batch(x, y, return_dict=True)
    np.testing.assert_allclose(logs["mean_wsl_weight"], weights.mean(), rtol=1e-3)
    everywhere = np.concatenate(each(weight, student, teacher, y, np.ones_like(mask)))
    assert everywhere.mean() != pytest.approx(weights.mean(), rel=1e-2)  # Else no one would see padding counted.


@pytest.mark.parametrize("masking", [pytest.param("keras", marks=pytest.mark.slow), "explicit"])
def test_files(masking, tmp_path):
    """Saved, loaded and continued in graphs, to the same bits; `predict` gives every position."""
    x, y, _ = sentences(masking)

    def fit(distiller):
        return distiller.fit(x, y, batch_size=3, epochs=2, shuffle=False, verbose=0).history

    whole, distiller = (made(masking, learning_rate=0.1, run_eagerly=False) for _ in range(2))
    fit(whole)
    fit(distiller)
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.saving.load_model(tmp_path / "distiller.keras")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), distiller.predict(x, verbose=0))
    assert loaded.predict(x, verbose=0).shape == (*labels_of(y).shape, CLASSES)
    assert loaded.evaluate(x, y, verbose=0) == distiller.evaluate(x, y, verbose=0)
    loaded.teacher = distiller.teacher
    assert fit(whole) == fit(loaded)
    assert not changed(arrays(whole), arrays(loaded))


def test_several_teachers_of_sequences():
    """The mean of probabilities is position by position."""
    x, y, mask = sentences("keras")
    teachers = {"large": tagger("large", 9), "small": tagger("small", 5)}
    distiller = Distiller(teachers, tagger("student"), losses.KD(teacher={"large": 3.0, "small": 1.0}))
    distiller.compile(keras.optimizers.SGD(0.0), hard_loss(), run_eagerly=BACKEND == "tensorflow")
    logs = distiller.train_on_batch(x, y, return_dict=True)
    student, large, small = (
        np.asarray(ops.convert_to_numpy(m(x)), "float64") for m in (distiller.student, *teachers.values())
    )
    mean = 4 * np.log(0.75 * np.exp(log_softmax(large / 4)) + 0.25 * np.exp(log_softmax(small / 4)))
    rows = each(soft, student, mean, y, mask)
    np.testing.assert_allclose(logs["kd"], np.mean([np.mean(row) for row in rows]), rtol=1e-4)


def test_wsl_learns_to_tag():
    """A tag is the word's remainder: the student learns it from labels and from a teacher that has learned it."""
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


def test_losses_between_examples_are_refused():
    """A loss that compares the examples of a batch needs one row of logits each."""
    for loss in (losses.DIST(), losses.MLKD()):
        with pytest.raises(ValueError, match="goes position by position"):
            Distiller(tagger("teacher"), tagger("student"), loss)


def test_sample_weights_of_positions_are_refused():
    x, y, _ = sentences("keras")
    with pytest.raises(ValueError, match="`sample_weight` must be one number per example"):
        made("keras").fit(x, y, sample_weight=np.ones(y.shape, "float32"), verbose=0)


def test_class_weights_of_positions_are_refused():
    x, y, _ = sentences("keras")
    with pytest.raises(ValueError, match="`class_weight` must be None for sequences"):
        made("keras").fit(x, y, class_weight={0: 2.0}, verbose=0)


@pytest.mark.parametrize("true", [-1, 0.5, 3])
def test_every_number_but_zero_in_a_mask_is_true(true):
    """In the loss, the counts and the metrics alike, as in NumPy."""
    x, y, mask = sentences("explicit")

    def logs(mask):
        distiller = made("explicit", weighted_metrics=["accuracy"])
        targets = {**y, "mask": mask}
        evaluated = distiller.test_on_batch(x, targets, return_dict=True)
        return distiller.train_on_batch(x, targets, return_dict=True), evaluated

    assert logs(np.where(mask, true, 0)) == logs(mask)
