"""Numerics that losses, weightings and analyses share.

Labels are integers `(...)` or distributions `(..., classes)`.
"""

import difflib
import math
import numbers
import operator

import keras
import numpy as np
from keras import ops


def get_logits(outputs):
    """Return the logits of a network's outputs: the outputs, or their entry `"logits"`."""
    return outputs["logits"] if isinstance(outputs, dict) else outputs


def labels_are_categorical(labels, logits):
    """Whether `labels` hold a probability for each class, rather than one integer an example.

    Args:
        labels: Shape `(...)`, `(..., 1)` or `(..., classes)`.
        logits: Shape `(..., classes)`.

    Raises:
        ValueError: If the shape is none of these.
    """
    rank, classes = len(logits.shape), logits.shape[-1]
    if shapes_compatible(labels.shape[: rank - 1], logits.shape[:-1]):
        if len(labels.shape) == rank - 1 or (len(labels.shape) == rank and labels.shape[-1] == 1 != classes):
            return False
        if len(labels.shape) == rank and labels.shape[-1] == classes:
            return True
    raise ValueError(
        f"Labels of shape {tuple(labels.shape)} do not fit logits of shape {tuple(logits.shape)}. Expected integers of "
        f"shape {tuple(logits.shape[:-1])}, or one probability for each of the {classes} classes."
    )


def shapes_compatible(one, other):
    """Whether no two sizes differ that are both known."""
    return all(a == b or None in (a, b) for a, b in zip(one, other))


def class_indices(labels, logits):
    """The class of each label, the likeliest one of a distribution: integers, shape `(...)`."""
    if labels_are_categorical(labels, logits):
        return ops.cast(ops.argmax(labels, axis=-1), "int32")
    return ops.reshape(to_int32(labels), ops.shape(logits)[:-1])


def to_int32(values):
    """Cast labels or indices to int32. A value that int32 cannot hold does not wrap, but stays out of every range.

    Args:
        values: Integers, or floats. Integers beyond int32 become the nearest int32; so do floats, and those that are
            not whole numbers, NaN included, become a large number.

    Returns:
        int32, the same shape.
    """
    if isinstance(values, np.ndarray) and values.dtype.kind in "iu":  # JAX wraps 64 bits before an operation sees them.
        limits = np.iinfo(values.dtype)
        values = np.clip(values, max(limits.min, -(2**31)), min(limits.max, 2**31 - 1)).astype("int32")
    values = ops.convert_to_tensor(values)
    dtype = keras.backend.standardize_dtype(values.dtype)
    if keras.backend.is_float_dtype(dtype):
        values = ops.where(ops.equal(values, ops.floor(values)), values, float("inf"))
        values = ops.clip(ops.cast(values, "float32"), -(2.0**31), 2.0**31 - 128)  # The largest float32 in int32.
    elif dtype in ("int64", "uint32", "uint64"):
        values = ops.clip(values, -(2**31) if dtype == "int64" else 0, 2**31 - 1)
    return ops.cast(values, "int32")


def value_at_label(labels, values):
    r"""$\sum_c y_c v_c$: the value at the label, or its mean under a distribution of labels.

    Args:
        labels: Integers, shape `(...)`, or distributions $y$, shape `(..., classes)`.
        values: Floats $v$, shape `(..., classes)`.

    Returns:
        Floats, shape `(...)`. NaN, or an error of the backend, for an integer that is no class.
    """
    if labels_are_categorical(labels, values):
        return ops.sum(ops.cast(labels, values.dtype) * values, axis=-1)
    classes = class_indices(labels, values)
    found = ops.squeeze(ops.take_along_axis(values, classes[..., None], axis=-1), axis=-1)
    # Torch reads another class's value, TensorFlow on a GPU a zero.
    return ops.where(ops.logical_and(classes >= 0, classes < values.shape[-1]), found, float("nan"))


def is_class(classes, logits):
    """Return which entries of `logits` belong to these classes.

    Args:
        classes: Integers, shape `(...)`.
        logits: Floats, shape `(..., classes)`.

    Returns:
        Booleans, shape `(..., classes)`: one per row is true.
    """
    return ops.equal(ops.arange(logits.shape[-1]), classes[..., None])


def below_highest(logits):
    r"""Subtract its maximum from each row: softmax is the same, and differences keep their digits.

    Every function that softens logits subtracts it before it divides by the temperature.

    Args:
        logits: Floats $z$, shape `(..., classes)`.

    Returns:
        `(gaps, is_highest)`, each of shape `(..., classes)`: floats $z_c - \max_k z_k \le 0$, in which the maximum is a
        constant for the gradient, and booleans that are true for one maximum per row, the first of several equal ones.
    """
    is_highest = is_class(ops.argmax(logits, axis=-1), logits)
    # Not `ops.max`: on TensorFlow it refuses an empty batch.
    highest = ops.sum(ops.where(is_highest, logits, 0.0), axis=-1, keepdims=True)
    return ops.subtract(logits, ops.stop_gradient(highest)), is_highest


def softened(logits, temperature=1.0):
    r"""Compute the parts of $\log \mathrm{softmax}(z / \tau)_c = d_c - s$ without a loss of digits.

    With $m$ the class of the maximum, $d_c = (z_c - z_m) / \tau$ and $s = \log(1 + \sum_{k \ne m} e^{d_k})$. The usual
    $\log \sum_k e^{d_k}$ is 0 where the other classes have a probability of $10^{-9}$, and $s$ is $10^{-9}$ there.

    Args:
        logits: Floats $z$, shape `(..., classes)`.
        temperature: Positive float, $\tau$.

    Returns:
        `(d, s, is_highest)`: floats of shape `(..., classes)` and `(..., 1)`, with $d_c \le 0 \le s$, and the booleans
        of `below_highest`.
    """
    gaps, is_highest = below_highest(logits)
    gaps = gaps / temperature
    others = ops.exp(gaps) - ops.cast(is_highest, gaps.dtype)  # exp(0) - 1 at the maximum, with the gradient of exp.
    return gaps, ops.log1p(ops.sum(others, axis=-1, keepdims=True)), is_highest


def log_softmax(logits, temperature=1.0):
    r"""Compute $\log \mathrm{softmax}(z / \tau)$, whose values and gradients keep their digits near probability 1.

    Args:
        logits: Floats $z$, shape `(..., classes)`.
        temperature: Positive float, $\tau$.

    Returns:
        Floats of the same shape, at most 0.
    """
    gaps, log_sum, is_highest = softened(logits, temperature)
    # At the maximum the same value, -s, in a form whose gradient is not a difference 1 - q_m of numbers close to 1.
    rest = ops.sum(ops.where(is_highest, 0.0, ops.exp(gaps)), axis=-1, keepdims=True)
    at_highest = -ops.log1p(rest * ops.exp(-ops.where(is_highest, gaps, 0.0)))
    return ops.where(is_highest, at_highest, gaps - log_sum)


def softmax(logits, temperature=1.0):
    r"""Compute $\mathrm{softmax}(z / \tau)$: `(..., classes)` to floats of the same shape."""
    gaps, log_sum, _ = softened(logits, temperature)
    return ops.exp(gaps - log_sum)


def softmax_difference(log_q, log_p):
    r"""Compute $q - p$ from logarithms, which keeps the digits of a small difference of probabilities close to 1.

    Args:
        log_q: Floats, `log_softmax` of some logits, shape `(..., classes)`.
        log_p: Floats, likewise.

    Returns:
        Floats, shape `(..., classes)`. Not meant to be differentiated: the derivative at $q_c = p_c$ is lost.
    """
    gap = log_q - log_p
    return -ops.sign(gap) * ops.exp(ops.maximum(log_q, log_p)) * ops.expm1(-ops.abs(gap))


def cross_entropy(labels, logits):
    r"""$\mathrm{CE} = -\sum_c y_c \log \mathrm{softmax}(z)_c$, at temperature 1.

    Args:
        labels: Integers, shape `(...)`, or distributions $y$, shape `(..., classes)`.
        logits: Floats $z$, shape `(..., classes)`.

    Returns:
        Nats, shape `(...)`.
    """
    return -value_at_label(labels, log_softmax(logits))


def entropy(logits, temperature=1.0):
    r"""$H = -\sum_c p_c \log p_c$ of $p = \mathrm{softmax}(z / \tau)$: `(..., classes)` to nats, shape `(...)`."""
    log_p = log_softmax(logits, temperature)
    return -ops.sum(ops.exp(log_p) * log_p, axis=-1)


# x + expm1(-x) = x**2 * integral over s in [0, 1] of (1 - s) * exp(-s * x): Gauss-Jacobi nodes and positive weights,
# whose relative error is below 4e-7 for |x| < 1.
_NODES = (0.08858795951270393, 0.40946686444073477, 0.787659461760847)
_WEIGHTS = (0.2009319137389596, 0.2292411063595862, 0.06982697990145417)


def kl_divergence(teacher_logits, student_logits, temperature=1.0):
    r"""$\mathrm{KL}(p \Vert q) = \sum_c p_c (\log p_c - \log q_c)$ of the two softmaxes, as a sum of terms $\ge 0$.

    Args:
        teacher_logits: Floats, whose softmax at $\tau$ is $p$, shape `(..., classes)`.
        student_logits: Floats, whose softmax at $\tau$ is $q$, shape `(..., classes)`.
        temperature: Positive float, $\tau$.

    Returns:
        Nats, shape `(...)`; at least 0, and exactly 0 for equal logits.
    """
    (p_gaps, p_sum, _), (q_gaps, q_sum, _) = (softened(z, temperature) for z in (teacher_logits, student_logits))
    p, q = ops.exp(p_gaps - p_sum), ops.exp(q_gaps - q_sum)
    # log p - log q, in which all classes of an example share the rounding of the sums: it cancels in the gradient.
    gap = (p_gaps - q_gaps) - (p_sum - q_sum)
    # Both p and q add up to 1, so that terms p * gap + q - p have the same sum. None of them is negative, and a small
    # one is p * gap**2 / 2 to first order, of which this difference would leave few digits at high temperatures.
    near = ops.abs(gap) < 1
    small = ops.where(near, gap, 0.0)  # `where` alone would leave an infinity in the gradient.
    curvature = sum(weight * ops.exp(-node * small) for node, weight in zip(_NODES, _WEIGHTS))
    return ops.sum(ops.where(near, p * small**2 * curvature, p * gap + (q - p)), axis=-1)


def log_mean_softmax(logits, weights, temperature):
    r"""Logits of an ensemble: $z = \tau \log \sum_k w_k \mathrm{softmax}(z_k / \tau)$.

    So $\mathrm{softmax}(z / \tau)$ is the weighted mean of the members' softened probabilities.

    Args:
        logits: A list of floats $z_k$, each of shape `(..., classes)`.
        weights: As many floats $w_k$, which add up to 1.
        temperature: Positive float, $\tau$.

    Returns:
        Floats, shape `(..., classes)`.
    """
    members = [log_softmax(member, temperature) + math.log(weight) for member, weight in zip(logits, weights)]
    return temperature * ops.logsumexp(ops.stack(members), axis=0)


def label_margin(labels, logits, temperature=1.0):
    r"""$m = z_y / \tau - \log \sum_{c \ne y} e^{z_c / \tau}$, whose sigmoid is the probability of the label.

    Args:
        labels: Integers, shape `(...)`.
        logits: Floats $z$, shape `(..., classes)`.
        temperature: Positive float, $\tau$.

    Returns:
        Floats, shape `(...)`.
    """
    gaps = ops.subtract(logits, value_at_label(labels, logits)[..., None]) / temperature
    return -ops.logsumexp(mask_label_logit(labels, gaps), axis=-1)


def mask_label_logit(labels, logits):
    """`logits` with $-10^{30}$ at the label, so that no probability is left there: shape `(..., classes)`."""
    return ops.where(is_class(class_indices(labels, logits), logits), -1e30, logits)


def binary_kl_divergence(teacher_margin, student_margin):
    r"""$\mathrm{KL}$ of $[\sigma(m_t), 1 - \sigma(m_t)]$ against the student's likewise: nats, shape `(...)`."""
    margins = teacher_margin, student_margin
    return kl_divergence(*(ops.stack([margin, ops.zeros_like(margin)], axis=-1) for margin in margins))


def standardize(logits):
    r"""$Z(z) = (z - \bar z) / (s + 10^{-7})$ of each row, with $s^2$ over $n - 1$: Sun et al., CVPR 2024.

    https://arxiv.org/abs/2403.01427

    Args:
        logits: Floats, shape `(..., classes)`.

    Returns:
        Floats of the same shape.
    """
    gaps, _ = below_highest(logits)
    centered = gaps - ops.mean(gaps, axis=-1, keepdims=True)
    variance = ops.sum(centered**2, axis=-1, keepdims=True) / max(logits.shape[-1] - 1, 1)
    return centered / (safe_sqrt(variance) + 1e-7)


def safe_sqrt(x):
    r"""$\sqrt{\max(x, 10^{-24})}$, whose gradient is 0 where `x` is 0, and not infinite."""
    return ops.sqrt(ops.maximum(x, 1e-24))


def l2_normalize(x, axis=-1):
    r"""$x / \max(\lVert x \rVert_2, 10^{-12})$ along `axis`; 0 where `x` is 0."""
    return x / safe_sqrt(ops.sum(x**2, axis=axis, keepdims=True))


def correlation(a, b, axis, epsilon=1e-8):
    """Pearson's correlation of `a` and `b` along `axis`, before the sum over it: floats of the same shape."""
    a, b = (x - ops.mean(x, axis=axis, keepdims=True) for x in (a, b))
    norms = [safe_sqrt(ops.sum(x**2, axis=axis, keepdims=True)) for x in (a, b)]
    return a * b / (norms[0] * norms[1] + epsilon)


def smooth_l1(difference):
    r"""$d^2 / 2$ where $|d| < 1$, else $|d| - 1 / 2$: floats of the same shape."""
    size = ops.abs(difference)
    return ops.where(size < 1, 0.5 * size**2, size - 0.5)


def adaptive_average_pool(maps, size):
    r"""Means over `size` windows: $[\lfloor i H / h \rfloor, \lceil (i + 1) H / h \rceil)$ of each row $i < h$.

    Windows overlap where the sizes do not divide, as in `torch.nn.AdaptiveAvgPool2d`.

    Args:
        maps: Floats, shape `(batch, height, width, channels)`, whose height and width are known.
        size: `(height, width)` of the result, none of them larger.

    Returns:
        Floats, shape `(batch, *size, channels)`.
    """
    if tuple(maps.shape[1:3]) == tuple(size):
        return maps
    rows, columns = (_windows(old, new) for old, new in zip(maps.shape[1:3], size))
    maps = ops.einsum("ih,nhwc->niwc", ops.cast(rows, maps.dtype), maps)
    return ops.einsum("jw,niwc->nijc", ops.cast(columns, maps.dtype), maps)


def _windows(old, new):
    """The matrix that averages `old` values into `new`: float32, shape `(new, old)`."""
    matrix = np.zeros((new, old), "float32")
    for i in range(new):
        start, stop = i * old // new, -(-(i + 1) * old // new)
        matrix[i, start:stop] = 1 / (stop - start)
    return matrix


def match_spatial_size(student_map, teacher_map):
    """The two maps, the larger one pooled down to the smaller one's height and width: `(student, teacher)`."""
    size = common_spatial_size(student_map.shape, teacher_map.shape)
    return adaptive_average_pool(student_map, size), adaptive_average_pool(teacher_map, size)


def common_spatial_size(student_shape, teacher_shape):
    """`(height, width)` to which one of two maps is pooled.

    Raises:
        ValueError: If a size is not known, or each map is the larger one in another direction.
    """
    one, other = (tuple(shape[1:3]) for shape in (student_shape, teacher_shape))
    if None in one + other:
        raise ValueError(
            f"Maps are compared place by place, which needs their sizes. Received: a student's of {one} and a "
            f"teacher's of {other}. Build both networks with a fixed `input_shape`."
        )
    size = tuple(map(min, one, other))
    if size not in (one, other):
        raise ValueError(
            f"Neither map can be pooled to the other's size. Received: a student's of {one} and a teacher's of "
            f"{other}. Choose layers of which one is larger both ways, or resize in one of the networks."
        )
    return size


def masked_mean_over_time(values, mask=None):
    """The mean of each row over its unmasked positions: `(batch, ...)` to `(batch,)`; 0 for a row with none.

    Args:
        values: Floats, shape `(batch, ...)`.
        mask: `None`, or booleans or numbers of the same shape. As in NumPy, every number but 0 is true.
    """
    values = ops.reshape(values, (ops.shape(values)[0], -1))
    if mask is None:
        return ops.mean(values, axis=-1)
    mask = ops.reshape(ops.cast(ops.cast(mask, "bool"), values.dtype), (ops.shape(values)[0], -1))
    # `where`, not a product: what stands in a padded position may be infinite.
    kept = ops.sum(ops.where(mask > 0, values, 0.0), axis=-1)
    return kept / ops.maximum(ops.sum(mask, axis=-1), 1.0)


class InputError(ValueError):
    """What a step was given, or a part of it gave, has another shape or type than was expected.

    Keras adds paragraphs on a layer's arguments to the message of an error, once; of one that has this attribute it
    takes it that it has.
    """

    _keras_call_info_injected = True


def did_you_mean(name, known):
    """A sentence on which of the `known` names is nearly the one that came, or nothing: it follows another sentence."""
    near = difflib.get_close_matches(name, known, n=1) if isinstance(name, str) else ()
    return f" Did you mean {near[0]!r}?" if near else ""


def is_number(value):
    """Whether it is a real number, of Python or of NumPy, and no boolean."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def check_temperature(temperature, name="temperature"):
    """`temperature` as a float. Raises `ValueError` unless it is a positive number."""
    if not is_number(temperature) or not 0 < temperature < float("inf"):
        raise ValueError(
            f"`{name}` must be a positive number. Received: {name}={temperature!r}. Give 1.0, for example."
        )
    return float(temperature)


def check_positive_int(value, name):
    """The value as an integer of at least 1; else a `ValueError` that says its name."""
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1 or isinstance(value, bool):
        raise ValueError(f"`{name}` must be an integer of at least 1. Received: {value!r}. Give 1, for example.")
    return number


def check_non_negative(weight, name="weight"):
    """`weight` as a float. Raises `ValueError` unless it is a number that is not negative."""
    if not is_number(weight) or not 0 <= weight < float("inf"):
        raise ValueError(
            f"`{name}` must be a number that is not negative. Received: {name}={weight!r}. Give 0.0, for example."
        )
    return float(weight)


def check_fraction(value, name):
    """`value` as a float. Raises `ValueError` unless it is a number in [0, 1]."""
    if not is_number(value) or not 0 <= value <= 1:
        raise ValueError(f"`{name}` must be a number in [0, 1]. Received: {name}={value!r}. Give 0.5, for example.")
    return float(value)


def check_bool(value, name):
    """`value` as it is. Raises `ValueError` unless it is a boolean: of text, such as "false", all would be true."""
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"`{name}` must be True or False. Received: {name}={value!r}. Give one of these, and no text.")
    return bool(value)
