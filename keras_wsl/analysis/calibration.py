"""Calibration of a classifier: Guo et al., ICML 2017, https://arxiv.org/abs/1706.04599."""

import numpy as np
from scipy.special import log_softmax

from keras_wsl.analysis.checks import checked_labels, checked_logits
from keras_wsl.argument_checks import check_positive_int


def calibration(labels, logits, bins=15):
    r"""How far confidence is from accuracy, and two scores of the probabilities.

    $$\mathrm{ECE} = \sum_{m=1}^M \frac{|B_m|}{n} \left| \mathrm{acc}(B_m) - \mathrm{conf}(B_m) \right|, \qquad
      \mathrm{NLL} = -\frac{1}{n} \sum_i \log p_{i y_i}, \qquad
      \mathrm{Brier} = \frac{1}{n} \sum_{i, c} (p_{ic} - [c = y_i])^2$$

    $p$ is the softmax of the logits, in float64; an example's confidence is its largest probability. $B_m$ holds the
    examples whose confidence is in $((m - 1) / M, m / M]$. The bins of the adaptive ECE hold $n / M$ examples each, in
    order of confidence (Nguyen and O'Connor, EMNLP 2015, https://arxiv.org/abs/1508.05154); examples of the same
    confidence count there with their mean accuracy, so that no order of the examples matters.

    Args:
        labels: Integers $y$ in `[0, classes)`, shape `(n,)`.
        logits: Floats, shape `(n, classes)`; logarithms of probabilities are such too.
        bins: Positive integer, $M$.

    Returns:
        Dict of floats: `accuracy`, `mean_confidence`, `ece` and `adaptive_ece` in `[0, 1]`, `nll` in nats, `brier` in
        `[0, 2]`; and `reliability`, the table of $B_m$, a dict of arrays: `edges`, shape `(bins + 1,)`; `count`,
        `confidence` and `accuracy`, shape `(bins,)`, means of which an empty bin has NaN.

    Raises:
        ValueError: If a shape or dtype does not fit, a label is out of range, a logit is not finite, the rows are
            probabilities, there is no example, or `bins` is not a positive integer.
    """
    logits = checked_logits("logits", logits)
    labels = checked_labels(labels, logits.shape)
    bins = check_positive_int(bins, "bins")
    log_p = log_softmax(logits, axis=-1)
    p = np.exp(log_p)
    right = (logits.argmax(axis=-1) == labels).astype("float64")
    confidence = p.max(axis=-1)
    is_label = labels[:, None] == np.arange(logits.shape[1])
    edges = np.linspace(0, 1, bins + 1)
    count, mean_confidence, mean_right = _means(np.searchsorted(edges, confidence) - 1, confidence, right, bins)
    return {
        "accuracy": float(right.mean()),
        "mean_confidence": float(confidence.mean()),
        "ece": _gap(count, mean_confidence, mean_right),
        "adaptive_ece": _gap(*_adaptive(confidence, right, bins)),
        "nll": -float(np.take_along_axis(log_p, labels[:, None], axis=-1).mean()),
        "brier": float(((p - is_label) ** 2).sum(axis=-1).mean()),
        "reliability": {"edges": edges, "count": count, "confidence": mean_confidence, "accuracy": mean_right},
    }


def fit_temperature(labels, logits):
    r"""The temperature at which held-out examples are likeliest: section 4.2 of the paper.

    $$T = \arg\min_T -\sum_i \log \mathrm{softmax}(z_i / T)_{y_i}$$

    The sum is convex in $\beta = 1 / T$, so that its derivative in $\beta$, which is
    $\sum_i (\sum_c \mathrm{softmax}(\beta z_i)_c z_{ic} - z_{i y_i})$, rises; its root gives $T$. `logits / T` have the
    same accuracy.

    Args:
        labels: Integers $y$ in `[0, classes)`, shape `(n,)`, of examples that were not trained on.
        logits: Floats $z$, shape `(n, classes)`.

    Returns:
        Positive float, $T$; above 1 where the network is too sure.

    Raises:
        ValueError: As of `calibration`; and if no positive temperature is best, because every label has its row's
            highest logit, or labels have no higher logits than the other classes on average.
    """
    from scipy import optimize

    z = checked_logits("logits", logits)
    labels = checked_labels(labels, z.shape)
    scale = -z.min() or 1.0
    z /= scale
    at_label = np.take_along_axis(z, labels[:, None], axis=-1)[:, 0]
    advice = "Fit on more held-out examples, of which the network gets some right and some wrong."
    if not at_label.any():
        raise ValueError(f"Every label has its row's highest logit, so that the best temperature is 0. {advice}")

    def slope(beta):
        return float(((np.exp(log_softmax(beta * z, axis=-1)) * z).sum(axis=-1) - at_label).mean())

    if slope(0.0) >= 0:
        raise ValueError(
            "The labels' logits are no higher than those of the other classes on average, so that the best temperature "
            f"is infinite. {advice}"
        )
    beta = 1.0
    while slope(beta) <= 0:
        beta *= 2
    root = optimize.brentq(slope, 0.0, beta, xtol=1e-300, rtol=1e-14, maxiter=1000)
    return float(scale / root)


def _adaptive(confidence, right, bins):
    """`_means` of bins with equal numbers of examples, up to one."""
    _, group, size = np.unique(confidence, return_inverse=True, return_counts=True)
    right = (np.bincount(group, right) / size)[group]
    least, more = divmod(len(confidence), bins)
    bin_of = np.empty(len(confidence), "int64")
    bin_of[np.argsort(confidence)] = np.repeat(np.arange(bins), least + (np.arange(bins) < more))
    return _means(bin_of, confidence, right, bins)


def _means(bin_of, confidence, right, bins):
    """Examples, mean confidence and accuracy of each bin: three arrays, shape `(bins,)`."""
    count = np.bincount(bin_of, minlength=bins)
    size = np.where(count, count, np.nan)
    return count, np.bincount(bin_of, confidence, bins) / size, np.bincount(bin_of, right, bins) / size


def _gap(count, confidence, accuracy):
    """The mean over the examples of their bin's distance from accuracy to confidence."""
    return float(np.nansum(count * np.abs(accuracy - confidence)) / count.sum())
