"""Numerical functions of losses, weightings and analyses.

Labels are integers `(...)` or distributions `(..., classes)`.
"""

import math

import keras
import numpy as np
from keras import ops


def get_logits(outputs):
    """Return the logits of a network's outputs: the outputs, or their entry `"logits"`."""
    return outputs["logits"] if isinstance(outputs, dict) else outputs


def labels_are_categorical(labels, logits):
    """Return whether `labels` have a probability per class, and not one integer per example.

    Args:
        labels: Shape `(...)`, `(..., 1)` or `(..., classes)`.
        logits: Shape `(..., classes)`.

    Raises:
        ValueError: If the shape is none of these.
    """
    ndim, classes = len(logits.shape), logits.shape[-1]
    if shapes_compatible(labels.shape[: ndim - 1], logits.shape[:-1]):
        if len(labels.shape) == ndim - 1 or (len(labels.shape) == ndim and labels.shape[-1] == 1 != classes):
            return False
        if len(labels.shape) == ndim and labels.shape[-1] == classes:
            return True
    raise ValueError(
        f"Labels of shape {tuple(labels.shape)} do not fit logits of shape {tuple(logits.shape)}. Expected integers of "
        f"shape {tuple(logits.shape[:-1])}, or one probability for each of the {classes} classes."
    )


def shapes_compatible(shape1, shape2):
    """Return whether all sizes are equal that both shapes know."""
    return all(a == b or None in (a, b) for a, b in zip(shape1, shape2))


def class_indices(labels, logits):
    """Return the class of each label, the most probable one of a distribution: integers, shape `(...)`."""
    if labels_are_categorical(labels, logits):
        return ops.cast(ops.argmax(labels, axis=-1), "int32")
    return ops.reshape(to_int32(labels), ops.shape(logits)[:-1])


def to_int32(values):
    """Cast labels or indices to int32. A value that int32 cannot hold does not wrap around, and stays out of range.

    Args:
        values: Integers or floats. Values beyond int32 become the nearest int32. Floats that are no whole numbers, such
            as NaN, become a large number.

    Returns:
        int32, the same shape.
    """
    if isinstance(values, np.ndarray) and values.dtype.kind in "iu":  # JAX wraps 64 bits before any operation.
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
    r"""Return $\sum_c y_c v_c$: the value at the label, or its mean under a distribution of labels.

    Args:
        labels: Integers, shape `(...)`, or distributions $y$, shape `(..., classes)`.
        values: Floats $v$, shape `(..., classes)`.

    Returns:
        Floats, shape `(...)`. An integer that is no class gives NaN, or an error of the backend.
    """
    if labels_are_categorical(labels, values):
        return ops.sum(ops.cast(labels, values.dtype) * values, axis=-1)
    classes = class_indices(labels, values)
    selected = ops.squeeze(ops.take_along_axis(values, classes[..., None], axis=-1), axis=-1)
    # For an integer that is no class, Torch returns the value of another class, and TensorFlow on a GPU returns 0.
    return ops.where(ops.logical_and(classes >= 0, classes < values.shape[-1]), selected, float("nan"))


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
    # Not `ops.max`, which raises an error on an empty batch on TensorFlow.
    highest = ops.sum(ops.where(is_highest, logits, 0.0), axis=-1, keepdims=True)
    return ops.subtract(logits, ops.stop_gradient(highest)), is_highest


def softened(logits, temperature=1.0):
    r"""Compute the parts of $\log \mathrm{softmax}(z / \tau)_c = d_c - s$ without a loss of digits.

    With $m$ the class of the maximum, $d_c = (z_c - z_m) / \tau$ and $s = \log(1 + \sum_{k \ne m} e^{d_k})$. If the
    other classes have a probability of $10^{-9}$, $s$ is $10^{-9}$, and the usual $\log \sum_k e^{d_k}$ is 0.

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
    # At the maximum, -s again, but with a gradient that is no difference 1 - q_m of numbers close to 1.
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
        log_q: Floats, `log_softmax` of logits, shape `(..., classes)`.
        log_p: Floats, `log_softmax` of other logits, shape `(..., classes)`.

    Returns:
        Floats, shape `(..., classes)`. Not meant to be differentiated: the derivative at $q_c = p_c$ is lost.
    """
    gap = log_q - log_p
    return -ops.sign(gap) * ops.exp(ops.maximum(log_q, log_p)) * ops.expm1(-ops.abs(gap))


def cross_entropy(labels, logits):
    r"""Compute $\mathrm{CE} = -\sum_c y_c \log \mathrm{softmax}(z)_c$, at temperature 1.

    Args:
        labels: Integers, shape `(...)`, or distributions $y$, shape `(..., classes)`.
        logits: Floats $z$, shape `(..., classes)`.

    Returns:
        Nats, shape `(...)`.
    """
    return -value_at_label(labels, log_softmax(logits))


def entropy(logits, temperature=1.0):
    r"""Compute $H = -\sum_c p_c \log p_c$ of $p = \mathrm{softmax}(z / \tau)$: `(..., classes)` to nats `(...)`."""
    log_p = log_softmax(logits, temperature)
    return -ops.sum(ops.exp(log_p) * log_p, axis=-1)


# x + expm1(-x) = x**2 * integral over s in [0, 1] of (1 - s) * exp(-s * x): Gauss-Jacobi nodes and positive weights,
# whose relative error is below 4e-7 for |x| < 1.
_NODES = (0.08858795951270393, 0.40946686444073477, 0.787659461760847)
_WEIGHTS = (0.2009319137389596, 0.2292411063595862, 0.06982697990145417)


def kl_divergence(teacher_logits, student_logits, temperature=1.0):
    r"""Compute $\mathrm{KL}(p \Vert q) = \sum_c p_c (\log p_c - \log q_c)$ as a sum of terms $\ge 0$.

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
    r"""Compute logits of an ensemble, $z = \tau \log \sum_k w_k \mathrm{softmax}(z_k / \tau)$.

    $\mathrm{softmax}(z / \tau)$ is the weighted mean of the members' softened probabilities.

    Args:
        logits: A list of floats $z_k$, each of shape `(..., classes)`.
        weights: List of floats $w_k$, one per member, which sum to 1.
        temperature: Positive float, $\tau$.

    Returns:
        Floats, shape `(..., classes)`.
    """
    members = [log_softmax(member, temperature) + math.log(weight) for member, weight in zip(logits, weights)]
    return temperature * ops.logsumexp(ops.stack(members), axis=0)


def label_margin(labels, logits, temperature=1.0):
    r"""Compute $m = z_y / \tau - \log \sum_{c \ne y} e^{z_c / \tau}$, whose sigmoid is the probability of the label.

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
    """Replace the logit of the label by $-10^{30}$, so that its probability is 0: shape `(..., classes)`."""
    return ops.where(is_class(class_indices(labels, logits), logits), -1e30, logits)


def binary_kl_divergence(teacher_margin, student_margin):
    r"""Compute the KL divergence of $[\sigma(m_t), 1 - \sigma(m_t)]$ from that of $m_s$: nats, shape `(...)`."""
    margins = teacher_margin, student_margin
    return kl_divergence(*(ops.stack([margin, ops.zeros_like(margin)], axis=-1) for margin in margins))


def standardize(logits):
    r"""Compute $Z(z) = (z - \bar z) / (s + 10^{-7})$ of each row, where $s^2$ is divided by $n - 1$.

    Sun et al., CVPR 2024, https://arxiv.org/abs/2403.01427

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
    r"""Compute $\sqrt{\max(x, 10^{-24})}$, whose gradient at 0 is 0 and not infinite."""
    return ops.sqrt(ops.maximum(x, 1e-24))


def l2_normalize(x, axis=-1):
    r"""Compute $x / \max(\lVert x \rVert_2, 10^{-12})$ along `axis`; 0 where `x` is 0."""
    return x / safe_sqrt(ops.sum(x**2, axis=axis, keepdims=True))


def correlation(a, b, axis, epsilon=1e-8):
    """Compute the terms whose sum over `axis` is Pearson's correlation of `a` and `b`: floats of the same shape."""
    a, b = (x - ops.mean(x, axis=axis, keepdims=True) for x in (a, b))
    norms = [safe_sqrt(ops.sum(x**2, axis=axis, keepdims=True)) for x in (a, b)]
    return a * b / (norms[0] * norms[1] + epsilon)


def smooth_l1(difference):
    r"""Compute $d^2 / 2$ if $|d| < 1$, else $|d| - 1 / 2$: floats of the same shape."""
    size = ops.abs(difference)
    return ops.where(size < 1, 0.5 * size**2, size - 0.5)


def adaptive_average_pool(maps, size):
    r"""Compute means over windows. Row $i < h$ is of $[\lfloor i H / h \rfloor, \lceil (i + 1) H / h \rceil)$.

    Windows overlap if the sizes do not divide, as in `torch.nn.AdaptiveAvgPool2d`.

    Args:
        maps: Floats, shape `(batch, height, width, channels)`, whose height and width are known.
        size: `(height, width)` of the result, at most those of the maps.

    Returns:
        Floats, shape `(batch, *size, channels)`.
    """
    if tuple(maps.shape[1:3]) == tuple(size):
        return maps
    rows, columns = (_pooling_matrix(old, new) for old, new in zip(maps.shape[1:3], size))
    maps = ops.einsum("ih,nhwc->niwc", ops.cast(rows, maps.dtype), maps)
    return ops.einsum("jw,niwc->nijc", ops.cast(columns, maps.dtype), maps)


def _pooling_matrix(old, new):
    """Return the matrix that averages `old` values into `new`: float32, shape `(new, old)`."""
    matrix = np.zeros((new, old), "float32")
    for i in range(new):
        start, stop = i * old // new, -(-(i + 1) * old // new)
        matrix[i, start:stop] = 1 / (stop - start)
    return matrix


def match_spatial_size(student_map, teacher_map):
    """Pool the larger of two maps to the height and width of the smaller one: `(student, teacher)`."""
    size = common_spatial_size(student_map.shape, teacher_map.shape)
    return adaptive_average_pool(student_map, size), adaptive_average_pool(teacher_map, size)


def common_spatial_size(student_shape, teacher_shape):
    """Return the `(height, width)` to which the larger of two maps is pooled.

    Raises:
        ValueError: If a size is not known, or if one map has the larger height and the other the larger width.
    """
    student, teacher = (tuple(shape[1:3]) for shape in (student_shape, teacher_shape))
    if None in student + teacher:
        raise ValueError(
            f"Both maps must have a fixed height and width. Received: a student's map of {student} and a teacher's of "
            f"{teacher}. Build both networks with a fixed `input_shape`."
        )
    size = tuple(map(min, student, teacher))
    if size not in (student, teacher):
        raise ValueError(
            f"One map must be the larger one in height and width. Received: a student's map of {student} and a "
            f"teacher's of {teacher}. Choose other layers, or resize in one of the networks."
        )
    return size


def masked_mean_over_time(values, mask=None):
    """Compute the mean of each row over its unmasked positions: `(batch, ...)` to `(batch,)`; 0 if all are masked.

    Args:
        values: Floats, shape `(batch, ...)`.
        mask: `None`, or booleans or numbers of the same shape. Every number other than 0 is true, as in NumPy.
    """
    values = ops.reshape(values, (ops.shape(values)[0], -1))
    if mask is None:
        return ops.mean(values, axis=-1)
    mask = ops.reshape(ops.cast(ops.cast(mask, "bool"), values.dtype), (ops.shape(values)[0], -1))
    # `where` and not a product, because values at masked positions may be infinite.
    total = ops.sum(ops.where(mask > 0, values, 0.0), axis=-1)
    return total / ops.maximum(ops.sum(mask, axis=-1), 1.0)
