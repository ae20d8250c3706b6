"""Labels, weights and networks given to a Distiller that are wrong: refused by name, never trained on silently."""

import keras
import numpy as np

from benchmarks.faults import material
from benchmarks.faults.fault import accepted, classify, fault, is_user_error, outcome, refused
from keras_wsl import Distiller, losses

ROWS = 8
CLASSES = material.CLASSES


def is_refusal(error):
    """Return whether an error of `fit` is a user's, or the check of a range that runs inside the compiled step."""
    return is_user_error(error) or "must be in [" in str(error)


def fit_outcome(distiller, x, y, **kwargs):
    """Train for a step per four rows, and return the attempt's state: refused, or trained to finite numbers.

    Args:
        distiller: Compiled `Distiller`, whose weights are set back.
        x: Same as in `fit`.
        y: Same as in `fit`.
        **kwargs: Same as in `fit`.

    Returns:
        `(finite, error)`: whether the losses and weights are finite, and what `fit` raised or `None`.
    """
    before = distiller.student.get_weights()

    def fit():
        history = distiller.fit(x, y, batch_size=4, epochs=1, shuffle=False, verbose=0, **kwargs).history
        numbers = [np.asarray(values) for values in (*history.values(), *distiller.student.get_weights())]
        return all(np.isfinite(array).all() for array in numbers)

    finite, error = outcome(fit)
    distiller.student.set_weights(before)
    return finite, error


def _refused(distiller, x, y, note, **kwargs):
    finite, error = fit_outcome(distiller, x, y, **kwargs)
    if error is None:
        # A loss that is not finite is what `callbacks.RaiseOnNonFinite` stops a run at: nothing is silently wrong.
        return classify(f"{note}: trained", not_trained_silently=not finite)
    return classify(f"{note}: {error!r:.200}", a_line=is_refusal(error))


def _trained(distiller, x, y, note, **kwargs):
    finite, error = fit_outcome(distiller, x, y, **kwargs)
    return classify(note if error is None else f"{note}: {error!r:.200}", finite_losses=bool(finite))


@fault("integer labels out of range, beyond int32, fractions, text, objects, of other shapes", "refused")
def labels(bench):
    """Train on arrays with one wrong label."""
    distiller, (x, y) = material.distiller(), material.examples(ROWS)
    for dtype, value in (
        ("int64", CLASSES),
        ("int64", -1),
        ("int64", 2**31),
        ("int64", 2**32 + 3),
        ("int64", -(2**32) + 3),
        ("int64", 2**63 - 1),
        ("uint64", 2**63 + 3),
        ("uint64", 2**32),
        ("uint32", 2**31 + 3),
        ("uint8", 255),
        ("int8", -128),
        ("float32", 0.5),
        ("float32", np.nan),
        ("float32", np.inf),
        ("float32", 2.0**32),
        ("float64", 2.0**32 + 3),
        ("float64", 1e300),
        ("float16", 60000),
        ("U9", "dark"),
        ("O", None),
        ("M8[s]", 3),
        ("c8", 1j),
    ):
        wrong = np.zeros(ROWS, dtype)
        wrong[3] = value
        yield _refused(distiller, x, wrong, f"{dtype} {value!r}")
    for wrong in (y[:3], y[:, None, None], np.zeros((ROWS, CLASSES + 1), "int32"), y[:0], list(map(str, y)), None):
        yield _refused(distiller, x, wrong, f"shape {np.shape(wrong)}")


@fault("one-hot and smoothed labels with NaN, infinity or negative numbers", "refused")
def distributions(bench):
    """Train on distributions with one wrong number."""
    distiller, (x, y) = material.distiller(one_hot=True), material.examples(ROWS)
    for value in (np.nan, np.inf, -np.inf, -0.25):
        for base in (0.0, 0.1):
            wrong = (np.eye(CLASSES, dtype="float32")[y] * (1 - base)) + base / CLASSES
            wrong[3, 2] = value
            yield _refused(distiller, x, wrong, f"{value!r}")


@fault("sample_weight: negative, NaN, infinite, of other lengths, as an array", "refused")
def sample_weights(bench):
    """Train with one wrong weight."""
    distiller, (x, y) = material.distiller(), material.examples(ROWS)
    for value in (-1.0, -1e-30, np.nan, np.inf, -np.inf):
        for dtype in ("float32", "float64"):
            weight = np.ones(ROWS, dtype)
            weight[3] = value
            yield _refused(distiller, x, y, f"{dtype} {value!r}", sample_weight=weight)
    for weight in (np.ones(3), np.ones((ROWS, 2)), np.array(["a"] * ROWS), -np.ones(ROWS, "int32")):
        yield _refused(distiller, x, y, f"{weight.dtype} {weight.shape}", sample_weight=weight)


@fault("sample_weight from tf.data: negative, NaN, infinite", "refused, or a loss that is not finite")
def sample_weights_of_datasets(bench):
    """Train on batches with one wrong weight."""
    import tensorflow as tf

    distiller, (x, y) = material.distiller(), material.examples(ROWS)
    for value in (-1.0, -1e-3, np.nan, np.inf):
        for row in (0, 5):
            weight = np.ones(ROWS, "float32")
            weight[row] = value
            dataset = tf.data.Dataset.from_tensor_slices((x, y, weight)).batch(4)
            yield _refused_batches(distiller, dataset, f"{value!r} in row {row}")


def _refused_batches(distiller, dataset, note):
    value, error = outcome(lambda: distiller.fit(dataset, verbose=0).history["loss"][0])
    if error is None:
        return classify(f"{note}: trained", not_trained_silently=not np.isfinite(value))
    return classify(f"{note}: {error!r:.200}", named="weight" in str(error))


@fault("class_weight: other keys, negative, NaN, lists, with arrays and dict labels", "refused")
def class_weights(bench):
    """Train with wrong weights of classes."""
    distiller, (x, y) = material.distiller(), material.examples(ROWS)
    for wrong in (
        {"0": 100.0},
        {0.5: 1.0},
        {CLASSES: 1.0},
        {-1: 1.0},
        {0: -1.0},
        {0: np.nan},
        {0: np.inf},
        {0: "a"},
        {0: None},
        [1.0] * CLASSES,
        "balanced",
    ):
        yield _refused(distiller, x, y, f"{wrong!r}", class_weight=wrong)


@fault("class_weight with integer, one-hot and dict labels", "equal to the sample_weight of each label")
def class_weights_of_all_labels(bench):
    """Train with weights of classes, and with the same as weights of examples."""
    x, y = material.examples(ROWS)
    weights = {0: 0.5, 1: 2.0, np.int64(2): 3.0}
    rows = np.array([weights.get(int(label), 1.0) for label in y], "float32")
    for note, one_hot, targets in (
        ("integers", False, y),
        ("one-hot", True, np.eye(CLASSES, dtype="float32")[y]),
        ("dict of integers", False, {"labels": y, "index": np.arange(ROWS)}),
        ("dict of one-hot", True, {"labels": np.eye(CLASSES, dtype="float32")[y], "index": np.arange(ROWS)}),
    ):
        yield accepted(lambda o=one_hot, t=targets: _same_training(x, t, o, weights, rows), note)


def _same_training(x, targets, one_hot, class_weight, sample_weight):
    trained = []
    for kwargs in ({"class_weight": class_weight}, {"sample_weight": sample_weight}):
        distiller = material.distiller(one_hot)
        distiller.fit(x, targets, batch_size=4, shuffle=False, verbose=0, **kwargs)
        trained.append(distiller.student.get_weights())
    return all(np.allclose(a, b, atol=1e-6) for a, b in zip(*trained, strict=True))


def _sharing_teachers(student):
    """Return teachers that share variables with a student, by what they share."""
    layers = keras.layers
    hidden = student.get_layer("hidden")
    inputs = keras.Input((material.FEATURES,))
    branch = layers.Dense(8, "relu")(inputs)
    return {
        "the first layer": keras.Model(student.inputs, layers.Dense(CLASSES)(hidden.output)),
        "the first layer, called again": keras.Model(inputs, layers.Dense(CLASSES)(hidden(inputs))),
        "all layers": keras.Model(student.inputs, student.outputs),
        "the student inside": keras.Sequential([keras.Input((material.FEATURES,)), student]),
        "one of two branches": keras.Model(inputs, layers.Dense(CLASSES)(layers.add([branch, hidden(inputs)]))),
        "the last layer": keras.Model(inputs, student.get_layer("logits")(branch)),
    }


@fault(
    "a teacher shares layers with the student, from the start or set later, or one of several does", "refused by name"
)
def shared_layers(bench):
    """Build Distillers whose teacher would be trained."""
    for name in _sharing_teachers(material.network("student")):
        student = material.network("student")
        teacher = _sharing_teachers(student)[name]
        words = ["hidden" if name != "the last layer" else "logits"]
        yield refused(lambda s=student, t=teacher: Distiller(t, s, losses.WSL()), *words)

        def set_later(student=student, teacher=teacher):
            Distiller(material.network("teacher"), student, losses.WSL()).teacher = teacher

        yield refused(set_later, *words)
        several = {"large": material.network("large"), "shared": teacher}
        yield refused(lambda s=student, t=several: Distiller(t, s, losses.WSL(teacher="large")), *words)


@fault("a teacher shares layers that are frozen in both networks", "trained; the shared layers are not changed")
def shared_frozen_layers(bench):
    """Share what is not trained."""
    for name in ("the first layer", "one of two branches"):
        student = material.network("student")
        student.get_layer("hidden").trainable = False
        teacher = _sharing_teachers(student)[name]
        before = student.get_layer("hidden").get_weights()

        def unchanged(student=student, teacher=teacher, before=before):
            distiller = material.compiled(Distiller(teacher, student, losses.WSL()))
            distiller.fit(*material.examples(ROWS), verbose=0)
            after = student.get_layer("hidden").get_weights()
            return all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))

        yield accepted(unchanged, name)


@fault("a student without trainable variables, or whose layers are all frozen", "refused")
def nothing_to_train(bench):
    """Train what cannot be trained."""
    flat = keras.Sequential([keras.Input((CLASSES,)), keras.layers.Rescaling(2.0)], name="student")
    frozen = material.network("student")
    frozen.trainable = False
    for student, width in ((flat, CLASSES), (frozen, material.FEATURES)):
        teacher = keras.Sequential([keras.Input((width,)), keras.layers.Dense(CLASSES)], name="teacher")
        x, y = np.zeros((ROWS, width), "float32"), np.zeros(ROWS, "int32")

        def train(student=student, teacher=teacher, x=x, y=y):
            return material.compiled(Distiller(teacher, student, losses.WSL())).fit(x, y, verbose=0).history

        yield refused(train)


def _sequence_distiller():
    def network(name):
        layers = [keras.Input((6, 3)), keras.layers.Dense(CLASSES, name="logits")]
        return keras.Sequential(layers, name=name)

    keras.utils.set_random_seed(0)
    return material.compiled(Distiller(network("teacher"), network("student"), losses.WSL()))


@fault(
    "a mask of sequences with -1, 2, fractions or NaN instead of 0 and 1",
    "refused, or its true entries count once; counts >= 0",
)
def masks(bench):
    """Train sequences with masks of other numbers."""
    x = np.random.default_rng(0).normal(size=(ROWS, 6, 3)).astype("float32")
    y = np.zeros((ROWS, 6), "int32")
    distiller = _sequence_distiller()
    for dtype in ("int32", "float32"):
        for value in (-1, 2, 0.5, np.nan):
            if dtype == "int32" and value not in (-1, 2):
                continue
            mask = np.ones((ROWS, 6), dtype)
            mask[:, 3:] = value
            yield _masked(distiller, x, {"labels": y, "mask": mask}, f"{dtype} {value}")


def _masked(distiller, x, targets, note):
    history, error = outcome(lambda: distiller.fit(x, targets, batch_size=4, verbose=0).history)
    if error is not None:
        return classify(f"{note}: {error!r:.200}", a_line=is_refusal(error))
    count, share = history["regularization_samples"][0], history["regularization_sample_rate"][0]
    note = f"{note}: count {count}, share {share:.2f}"
    return classify(note, count_in_range=0 <= count <= ROWS * 6, share_in_range=0 <= share <= 1)


@fault("batches of unknown rank or shape from tf.data", "trained, or refused in a line")
def unknown_shapes(bench):
    """Train on generators without static shapes."""
    import tensorflow as tf

    x, y = material.examples(ROWS)
    unknown = tf.TensorShape(None)
    for note, shapes in {
        "inputs": (unknown, tf.TensorShape([None])),
        "labels": (tf.TensorShape([None, material.FEATURES]), unknown),
        "both": (unknown, unknown),
        "sizes": (tf.TensorShape([None, None]), tf.TensorShape([None])),
    }.items():
        signature = tuple(tf.TensorSpec(shape, dtype) for shape, dtype in zip(shapes, ("float32", "int32")))
        dataset = tf.data.Dataset.from_generator(lambda: iter([(x, y)]), output_signature=signature)
        finite, error = outcome(
            lambda d=dataset: np.isfinite(material.distiller().fit(d, verbose=0).history["loss"]).all()
        )
        if error is None:
            yield classify(note, finite_losses=bool(finite))
        else:
            yield classify(f"{note}: {error!r:.200}", a_line=is_user_error(error))
