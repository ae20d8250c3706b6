"""Calibration of a classifier: Guo et al., ICML 2017, https://arxiv.org/abs/1706.04599."""

import numpy as np
from scipy.special import log_softmax

from keras_wsl.analysis.checks import validate_labels, validate_logits
from keras_wsl.argument_checks import check_positive_int


def calibration(labels, logits, bins=15):
    r"""Compute the calibration error of a classifier, and two scores of its probabilities.

    $$\mathrm{ECE} = \sum_{m=1}^M \frac{|B_m|}{n} \left| \mathrm{acc}(B_m) - \mathrm{conf}(B_m) \right|, \qquad
      \mathrm{NLL} = -\frac{1}{n} \sum_i \log p_{i y_i}, \qquad
      \mathrm{Brier} = \frac{1}{n} \sum_{i, c} (p_{ic} - [c = y_i])^2$$

    $p$ is the softmax of the logits, in float64; an example's confidence is its largest probability. $B_m$ holds the
    examples whose confidence is in $((m - 1) / M, m / M]$. The bins of the adaptive ECE hold $n / M$ examples each, in
    order of confidence (Nguyen and O'Connor, EMNLP 2015, https://arxiv.org/abs/1508.05154). There, examples with equal
    confidence count with their mean accuracy, so that the result does not depend on the order of the examples.

    Args:
        labels: Integers $y$ in `[0, classes)`, shape `(n,)`.
        logits: Floats, shape `(n, classes)`. Logarithms of probabilities are valid logits.
        bins: Positive integer, $M$.

    Returns:
        Dict of floats: `accuracy`, `mean_confidence`, `ece` and `adaptive_ece` in `[0, 1]`, `nll` in nats, `brier` in
        `[0, 2]`; and `reliability`, the table of $B_m$, a dict of arrays: `edges`, shape `(bins + 1,)`; `count`,
        `confidence` and `accuracy`, shape `(bins,)`. The means of an empty bin are NaN.

    Raises:
        ValueError: If a shape or dtype is invalid, a label is out of range, a logit is not finite, the rows are
            probabilities, there is no example, or `bins` is not a positive integer.
    """
    logits = validate_logits("logits", logits)
    labels = validate_labels(labels, logits.shape)
    bins = check_positive_int(bins, "bins")
    log_p = log_softmax(logits, axis=-1)
    p = np.exp(log_p)
    correct = (logits.argmax(axis=-1) == labels).astype("float64")
    confidence = p.max(axis=-1)
    is_label = labels[:, None] == np.arange(logits.shape[1])
    edges = np.linspace(0, 1, bins + 1)
    count, mean_confidence, mean_correct = _means(np.searchsorted(edges, confidence) - 1, confidence, correct, bins)
    return {
        "accuracy": float(correct.mean()),
        "mean_confidence": float(confidence.mean()),
        "ece": _gap(count, mean_confidence, mean_correct),
        "adaptive_ece": _gap(*_equal_count_means(confidence, correct, bins)),
        "nll": -float(np.take_along_axis(log_p, labels[:, None], axis=-1).mean()),
        "brier": float(((p - is_label) ** 2).sum(axis=-1).mean()),
        "reliability": {"edges": edges, "count": count, "confidence": mean_confidence, "accuracy": mean_correct},
    }


def fit_temperature(labels, logits):
    r"""Compute the temperature that maximizes the likelihood of held-out examples: section 4.2 of the paper.

    $$T = \arg\min_T -\sum_i \log \mathrm{softmax}(z_i / T)_{y_i}$$

    The sum is convex in $\beta = 1 / T$. Its derivative with respect to $\beta$,
    $\sum_i (\sum_c \mathrm{softmax}(\beta z_i)_c z_{ic} - z_{i y_i})$, is therefore increasing, and its root gives $T$.
    Dividing by $T$ does not change the accuracy.

    Args:
        labels: Integers $y$ in `[0, classes)`, shape `(n,)`, of examples that were not used for training.
        logits: Floats $z$, shape `(n, classes)`.

    Returns:
        Positive float, $T$; above 1 if the network is overconfident.

    Raises:
        ValueError: See `calibration`; also if there is no optimal positive temperature, because every label has the
            highest logit of its row, or labels do not have higher logits than the other classes on average.
    """
    from scipy import optimize

    z = validate_logits("logits", logits)
    labels = validate_labels(labels, z.shape)
    scale = -z.min() or 1.0
    z /= scale
    at_label = np.take_along_axis(z, labels[:, None], axis=-1)[:, 0]
    remedy = "Fit on more held-out examples, some of which the network misclassifies."
    if not at_label.any():
        raise ValueError(
            f"`logits` must misclassify some examples, otherwise the optimal temperature is 0. Received: every label "
            f"has the highest logit of its row. {remedy}"
        )

    def slope(beta):
        return float(((np.exp(log_softmax(beta * z, axis=-1)) * z).sum(axis=-1) - at_label).mean())

    if slope(0.0) >= 0:
        raise ValueError(
            "`logits` of the labels must be higher than those of the other classes on average, otherwise the optimal "
            f"temperature is infinite. Received: lower or equal ones. {remedy}"
        )
    beta = 1.0
    while slope(beta) <= 0:
        beta *= 2
    root = optimize.brentq(slope, 0.0, beta, xtol=1e-300, rtol=1e-14, maxiter=1000)
    return float(scale / root)


def _equal_count_means(confidence, correct, bins):
    """Return `_means` for bins whose numbers of examples differ by at most one."""
    _, group, size = np.unique(confidence, return_inverse=True, return_counts=True)
    correct = (np.bincount(group, correct) / size)[group]
    minimum, remainder = divmod(len(confidence), bins)
    bin_index = np.empty(len(confidence), "int64")
    bin_index[np.argsort(confidence)] = np.repeat(np.arange(bins), minimum + (np.arange(bins) < remainder))
    return _means(bin_index, confidence, correct, bins)


def _means(bin_index, confidence, correct, bins):
    """Return the number of examples, mean confidence and accuracy of each bin: three arrays, shape `(bins,)`."""
    count = np.bincount(bin_index, minlength=bins)
    size = np.where(count, count, np.nan)
    return count, np.bincount(bin_index, confidence, bins) / size, np.bincount(bin_index, correct, bins) / size


def _gap(count, confidence, accuracy):
    """Return the mean over examples of the absolute difference of accuracy and confidence in their bin."""
    return float(np.nansum(count * np.abs(accuracy - confidence)) / count.sum())
