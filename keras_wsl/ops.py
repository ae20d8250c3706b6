"""Numerics that losses, weightings and analyses share.

Labels are integers `(...)` or distributions `(..., classes)`.
"""

from keras import ops


def labels_are_distributions(labels, logits):
    """Whether `labels` hold a probability for each class, rather than one integer an example.

    Args:
        labels: Shape `(...)`, `(..., 1)` or `(..., classes)`.
        logits: Shape `(..., classes)`.

    Raises:
        ValueError: If the shape is none of these.
    """
    rank, classes = len(logits.shape), logits.shape[-1]
    if len(labels.shape) == rank - 1 or (len(labels.shape) == rank and labels.shape[-1] == 1 != classes):
        return False
    if len(labels.shape) == rank and labels.shape[-1] == classes:
        return True
    raise ValueError(
        f"Labels of shape {tuple(labels.shape)} do not fit logits of shape {tuple(logits.shape)}. Expected integers of "
        f"shape {tuple(logits.shape[:-1])}, or one probability for each of the {classes} classes."
    )


def label_classes(labels, logits):
    """The class of each label, the likeliest one of a distribution: integers, shape `(...)`."""
    if labels_are_distributions(labels, logits):
        return ops.cast(ops.argmax(labels, axis=-1), "int32")
    return ops.cast(ops.reshape(labels, ops.shape(logits)[:-1]), "int32")


def expected_at_label(labels, values):
    r"""$\sum_c y_c v_c$: the value at the label, or its mean under a distribution of labels.

    Args:
        labels: Integers, shape `(...)`, or distributions $y$, shape `(..., classes)`.
        values: Floats $v$, shape `(..., classes)`.

    Returns:
        Floats, shape `(...)`.
    """
    if labels_are_distributions(labels, values):
        return ops.sum(ops.cast(labels, values.dtype) * values, axis=-1)
    return ops.squeeze(ops.take_along_axis(values, label_classes(labels, values)[..., None], axis=-1), axis=-1)


def cross_entropy(labels, logits):
    r"""$\mathrm{CE} = -\sum_c y_c \log \mathrm{softmax}(z)_c$, at temperature 1.

    Args:
        labels: Integers, shape `(...)`, or distributions $y$, shape `(..., classes)`.
        logits: Floats $z$, shape `(..., classes)`.

    Returns:
        Nats, shape `(...)`.
    """
    if labels_are_distributions(labels, logits):
        return -expected_at_label(labels, ops.log_softmax(logits, axis=-1))
    # softplus(log sum_{c != y} exp(z_c - z_y)): as precise for a certain network, whose cross-entropy is a tiny
    # difference of large numbers in log_softmax. The ratio of two such is WSL's weight.
    gaps = logits - expected_at_label(labels, logits)[..., None]
    is_label = ops.equal(ops.arange(logits.shape[-1]), label_classes(labels, logits)[..., None])
    return ops.softplus(ops.logsumexp(ops.where(is_label, -1e30, gaps), axis=-1))


def entropy(logits):
    r"""$H = -\sum_c p_c \log p_c$ of $p = \mathrm{softmax}(z)$: `(..., classes)` to nats, shape `(...)`."""
    return -ops.sum(ops.softmax(logits, axis=-1) * ops.log_softmax(logits, axis=-1), axis=-1)


def kl_divergence(teacher_logits, student_logits):
    r"""$\mathrm{KL}(p \Vert q) = \sum_c p_c (\log p_c - \log q_c)$ of the two softmaxes, in log space throughout.

    Args:
        teacher_logits: Floats, whose softmax is $p$, shape `(..., classes)`.
        student_logits: Floats, whose softmax is $q$, shape `(..., classes)`.

    Returns:
        Nats, shape `(...)`.
    """
    log_p, log_q = ops.log_softmax(teacher_logits, axis=-1), ops.log_softmax(student_logits, axis=-1)
    return ops.sum(ops.exp(log_p) * (log_p - log_q), axis=-1)


def mean_over_positions(values, mask=None):
    """The mean of each row over its unmasked positions: `(batch, ...)` to `(batch,)`; 0 for a row with none."""
    values = ops.reshape(values, (ops.shape(values)[0], -1))
    if mask is None:
        return ops.mean(values, axis=-1)
    mask = ops.reshape(ops.cast(mask, values.dtype), (ops.shape(values)[0], -1))
    # `where`, not a product: what stands in a padded position may be infinite.
    kept = ops.sum(ops.where(mask > 0, values, 0.0), axis=-1)
    return kept / ops.maximum(ops.sum(mask, axis=-1), 1.0)


def check_temperature(temperature):
    """`temperature` as a float. Raises `ValueError` unless it is a positive number."""
    if not isinstance(temperature, (int, float)) or not 0 < temperature < float("inf"):
        raise ValueError(f"`temperature` must be a positive number. Received: temperature={temperature!r}.")
    return float(temperature)
