"""Numbers that float32 cannot easily hold: networks that are certain, shifted logits, large temperatures."""

import keras
import numpy as np

from benchmarks.faults import material
from benchmarks.faults.fault import accepted, classify, fault
from keras_wsl import losses, weighting

CLASSES = material.CLASSES
MARGINS = (2, 5, 8, 12, 16, 20, 25, 30, 40, 50, 60)
SMOOTHING = {"integer": None, "one-hot": 0.0, "smoothed": 0.1}
WEIGHT_TOLERANCE = 1e-5
LOSS_TOLERANCE = 1e-2  # Relative: rounding of log-probabilities limits a small divergence.


def _logits(generator, labels, margin):
    """Return float32 logits whose label is ahead of the other classes by about a margin."""
    logits = generator.normal(scale=0.5, size=(len(labels), CLASSES))
    logits[np.arange(len(labels)), labels] += margin
    return logits.astype("float32")


def _log_softmax(logits):
    logits = logits - logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def _cross_entropies(logits):
    """Return the cross-entropy of each class, in float64, without a difference of large numbers."""
    differences = logits[:, None, :] - logits[:, :, None]
    differences[:, np.arange(CLASSES), np.arange(CLASSES)] = -np.inf
    highest = np.maximum(differences.max(-1), 0.0)
    return highest + np.log1p(np.exp(-highest) - 1 + np.exp(differences - highest[..., None]).sum(-1))


def exact_weights(distribution, student, teacher):
    """Return WSL's weights, `1 - exp(-CE_s / (CE_t + 1e-7))`, of float32 logits, computed in float64.

    Args:
        distribution: Floats, shape `(batch, classes)`, the labels.
        student: Logits, same shape.
        teacher: Logits, same shape.
    """
    student_error, teacher_error = (
        (distribution * _cross_entropies(logits.astype("float64"))).sum(-1) for logits in (student, teacher)
    )
    return -np.expm1(-student_error / (teacher_error + 1e-7))


@fault(
    "both networks are certain by margins of 2 to 60; integer, one-hot, smoothed labels",
    "WSL's weights equal float64 to 1e-5",
)
def wsl_weights(bench):
    """Compare weights with float64."""
    for kind, smoothing in SMOOTHING.items():
        for margin in MARGINS:
            generator = np.random.default_rng([bench.seed, margin])
            labels = generator.integers(0, CLASSES, 64)
            student, teacher = (_logits(generator, labels, margin * share) for share in (0.9, 1.0))
            # Some students and teachers are certain of another class.
            student[:8], teacher[8:16] = -student[:8], -teacher[8:16]
            one_hot = np.eye(CLASSES)[labels]
            distribution = one_hot if not smoothing else (1 - smoothing) * one_hot + smoothing / CLASSES
            given = labels.astype("int32") if smoothing is None else distribution.astype("float32")
            exact = exact_weights(distribution if smoothing is None else given.astype("float64"), student, teacher)
            weights = keras.ops.convert_to_numpy(weighting.wsl(given, student, teacher))
            far = float(np.max(np.abs(weights - exact)))
            yield classify(f"{kind}, margin {margin}: off by {far:.0e}", precise=far <= WEIGHT_TOLERANCE)


def _rows(loss, labels, student, teacher):
    shapes = {"logits": (None, CLASSES)}
    if not loss.built:
        loss.build((None,), shapes, shapes)
        loss.built = True
    return keras.ops.convert_to_numpy(loss(labels, {"logits": student}, {"logits": teacher}))


def _divergence(student, teacher, temperature):
    p, q = (_log_softmax(logits.astype("float64") / temperature) for logits in (teacher, student))
    return temperature**2 * (np.exp(p) * (p - q)).sum(-1)


@fault("logits shifted by 0 to 1e6 at temperatures of 1 to 1000", "KD equals float64 to 1 %")
def kd_of_shifted_logits(bench):
    """Compare the divergence with float64."""
    generator = np.random.default_rng(bench.seed)
    labels = generator.integers(0, CLASSES, 64).astype("int32")
    for shift in (0.0, 1e3, 1e4, 1e5, 1e6):
        student, teacher = (_logits(generator, labels, 4) + np.float32(shift) for _ in range(2))
        for temperature in (1.0, 20.0, 1000.0):
            rows = _rows(losses.KD(temperature=temperature), labels, student, teacher)
            exact = _divergence(student, teacher, temperature)
            far = float(np.max(np.abs(rows - exact)) / np.max(np.abs(exact)))
            note = f"shift {shift:.0e}, temperature {temperature:.0f}: off by {far:.0e}"
            yield classify(note, precise=far <= LOSS_TOLERANCE)


@fault("standardized logits shifted by 0 to 1e6", "KD equals float64 to 1 %")
def standardized_kd_of_shifted_logits(bench):
    """Compare the divergence of standardized logits with float64."""
    generator = np.random.default_rng(bench.seed)
    labels = generator.integers(0, CLASSES, 64).astype("int32")
    for shift in (0.0, 1e3, 1e4, 1e5, 1e6):
        student, teacher = (_logits(generator, labels, 4) + np.float32(shift) for _ in range(2))
        rows = _rows(losses.KD(temperature=2.0, standardize=True), labels, student, teacher)
        exact = _divergence(*(_standardized(logits) for logits in (student, teacher)), 2.0)
        far = float(np.max(np.abs(rows - exact)) / np.max(np.abs(exact)))
        yield classify(f"shift {shift:.0e}: off by {far:.0e}", precise=far <= LOSS_TOLERANCE)


def _standardized(logits):
    logits = logits.astype("float64")
    return (logits - logits.mean(-1, keepdims=True)) / logits.std(-1, ddof=1, keepdims=True)


@fault("DKD of equal and nearly equal networks that are certain", "never negative, always finite")
def dkd_is_not_negative(bench):
    """Look for negative rows, which the sum of two divergences cannot have."""
    for margin in (*MARGINS, 100, 1000):
        generator = np.random.default_rng([bench.seed, margin])
        labels = generator.integers(0, CLASSES, 256).astype("int32")
        teacher = _logits(generator, labels, margin)
        student = teacher + generator.normal(scale=1e-3, size=teacher.shape).astype("float32")
        student[:32] = teacher[:32]
        rows = _rows(losses.DKD(), labels, student, teacher)
        yield classify(
            f"margin {margin}: least {rows.min():.0e}", finite=np.isfinite(rows).all(), not_negative=rows.min() >= 0
        )


@fault("images, labels and weights of all examples equal, or all logits equal", "finite losses and gradients")
def degenerate_batches(bench):
    """Train on batches in which nothing varies."""
    for name, value in {"zeros": 0.0, "ones": 1.0, "large": 1e6}.items():
        x = np.full((8, material.FEATURES), value, "float32")
        y = np.zeros(8, "int32")

        def finite(x=x, y=y):
            distiller = material.distiller()
            history = distiller.fit(x, y, batch_size=4, epochs=2, verbose=0).history
            return all(np.isfinite(values).all() for values in history.values())

        yield accepted(finite, name)
