"""Bias and variance of the cross-entropy: Heskes, Neural Computation 10(6), 1998; Zhou et al., ICLR 2021, eq. 1 to 3.

https://arxiv.org/abs/2102.00650
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from keras_wsl.analysis.checks import validate_labels
from keras_wsl.ops import labels_are_categorical

TERMS = ("error", "noise", "bias", "variance")
_TOLERANCE = 1e-4  # Of a sum of probabilities. Rounding in float32 is below it, in half precision above.


@dataclasses.dataclass(frozen=True, eq=False)
class Decomposition:
    """The error of an ensemble and its terms in nats, each float64 of shape `(examples,)`.

    Args:
        error: Mean cross-entropy of the runs with the label.
        noise: Entropy of the label distribution.
        bias: KL divergence from the mean distribution to the label distribution.
        variance: Mean KL divergence from the runs to the mean distribution.
        runs: Integer, the number of runs.
    """

    error: np.ndarray
    noise: np.ndarray
    bias: np.ndarray
    variance: np.ndarray
    runs: int

    @property
    def totals(self):
        """The mean of each term over the examples: a dict of four floats."""
        return {name: float(getattr(self, name).mean()) for name in TERMS}


class Interval(NamedTuple):
    """A mean over examples and its bootstrap confidence interval."""

    mean: float
    low: float
    high: float


def bias_variance(labels, log_probs):
    r"""Decompose the error of an ensemble whose runs differ in their training set $D$ into noise, bias and variance.

    $$\underbrace{-\mathbb{E}_D \sum_c y_c \log p_{D,c}}_{error}
      = \underbrace{-\sum_c y_c \log y_c}_{noise} + \underbrace{\mathrm{KL}(y \Vert \bar p)}_{bias}
      + \underbrace{\mathbb{E}_D \mathrm{KL}(\bar p \Vert p_D)}_{variance}, \qquad
      \bar p = \frac{\exp(\mathbb{E}_D \log p_D)}{\sum_c \exp(\mathbb{E}_D \log p_{D,c})}$$

    $y$ is the label distribution. The mean over $D$ is computed over the given runs. With few runs, the variance is
    therefore underestimated and the bias overestimated by the same amount: compare ensembles of the same size.

    Args:
        labels: Integers, shape `(examples,)`, or distributions $y$, shape `(examples, classes)`.
        log_probs: Finite floats $\log p_D$, shape `(runs, examples, classes)`, or one array `(examples, classes)` per
            run. Rows are normalized again in float64.

    Returns:
        `Decomposition`. The error is the sum of the other terms in float64, per example and in total.

    Raises:
        ValueError: If there are fewer than two runs, runs have different shapes, values are not finite or not
            logarithms of distributions, or labels are out of range, not distributions, or of another shape.
    """
    log_probs = _validate_log_probs(log_probs)
    mean_log = log_probs.mean(axis=0)
    log_mean = mean_log - np.logaddexp.reduce(mean_log, axis=-1, keepdims=True)
    labels = np.asarray(labels)
    if labels_are_categorical(labels, mean_log):
        y = _validate_distributions(labels)
        noise = -_sum_x_log(y, y)
        error, bias = -(y * mean_log).sum(-1), -(y * log_mean).sum(-1) - noise
    else:
        rows, y = np.arange(len(mean_log)), validate_labels(labels, mean_log.shape)
        noise = np.zeros(len(mean_log))
        error, bias = -mean_log[rows, y], -log_mean[rows, y]
    variance = (np.exp(log_mean) * (log_mean - log_probs)).sum(-1).mean(0)
    return Decomposition(error, noise, bias, variance, len(log_probs))


def compare(*, labels_only, distilled, num_resamples=10_000, confidence=0.95, seed=0):
    r"""Compute each term of `distilled` minus that of `labels_only`, with a bootstrap over examples.

    Assumption 1 of Zhou et al. is that distillation lowers the variance,
    $\mathbb{E}_D \mathrm{KL}(\bar p_{kd} \Vert p_{kd}) \le \mathbb{E}_D \mathrm{KL}(\bar p_{ce} \Vert p_{ce})$, so the
    difference of variances is at most 0. They expect it to raise the bias.

    Examples are drawn with replacement, the same ones for both. The runs are not resampled, so the interval reflects
    the variation due to the test examples, and not that due to the training sets.

    Args:
        labels_only: `Decomposition` of students trained on labels only.
        distilled: `Decomposition` of students trained with a teacher, for the same examples in the same order.
        num_resamples: Integer, the number of bootstrap samples.
        confidence: Float in (0, 1), the fraction of the samples inside the interval.
        seed: Integer.

    Returns:
        Dict of each of `TERMS` to an `Interval`, in nats.

    Raises:
        ValueError: If the numbers of examples differ, or `num_resamples` or `confidence` is out of range.
    """
    if labels_only.error.shape != distilled.error.shape:
        raise ValueError(
            "The decompositions must be of the same examples in the same order. Received: decompositions of "
            f"{len(labels_only.error)} and {len(distilled.error)} examples. Evaluate both ensembles on one test set."
        )
    differences = np.stack([getattr(distilled, name) - getattr(labels_only, name) for name in TERMS], axis=-1)
    return dict(zip(TERMS, intervals(differences, num_resamples=num_resamples, confidence=confidence, seed=seed)))


def standard_errors(labels, *, labels_only, distilled):
    r"""Compute the standard errors of the differences of `compare` due to the training sets: a jackknife over runs.

    $$\mathrm{se}^2 = \frac{n - 1}{n} \sum_i (\theta_{(i)} - \bar\theta)^2$$

    $\theta_{(i)}$ is the difference without run $i$ of both. Runs are paired: run $i$ of both ensembles should have the
    same training set.

    Args:
        labels: Same as for `bias_variance`.
        labels_only: Log-probabilities of at least three students trained on labels only, same as for `bias_variance`.
        distilled: Log-probabilities of the same number of students trained with a teacher.

    Returns:
        Dict of each of `TERMS` to a standard error, in nats.

    Raises:
        ValueError: If the numbers of runs differ, or there are fewer than three; see also `bias_variance`.
    """
    n = len(labels_only)
    if len(distilled) != n or n < 3:
        raise ValueError(
            "The ensembles must have the same number of runs, at least 3, because each is left out once. Received: "
            f"ensembles of {n} and {len(distilled)} runs."
        )
    differences = []
    for i in range(n):
        without_i = ([run for j, run in enumerate(runs) if j != i] for runs in (labels_only, distilled))
        before, after = (bias_variance(labels, runs).totals for runs in without_i)
        differences.append([after[name] - before[name] for name in TERMS])
    return dict(zip(TERMS, map(float, np.sqrt((n - 1) * np.var(differences, axis=0)))))


def intervals(values, *, num_resamples=10_000, confidence=0.95, seed=0):
    """Compute the mean of each column, with its percentile bootstrap interval over the rows.

    Args:
        values: Floats, shape `(examples, columns)`.
        num_resamples: Integer, the number of bootstrap samples.
        confidence: Float in (0, 1).
        seed: Integer.

    Returns:
        List of `Interval`, one per column.

    Raises:
        ValueError: If `num_resamples` or `confidence` is out of range.
    """
    if num_resamples < 1 or not 0 < confidence < 1:
        raise ValueError(
            "`num_resamples` must be at least 1 and `confidence` in (0, 1). Received: "
            f"num_resamples={num_resamples!r} and confidence={confidence!r}."
        )
    generator, count = np.random.default_rng(seed), len(values)
    # Count how often each row is drawn, per sample: all at once would take num_resamples * examples integers.
    samples = [
        np.bincount(generator.integers(count, size=count), minlength=count) @ values for _ in range(num_resamples)
    ]
    ends = np.quantile(np.array(samples) / count, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return [Interval(*map(float, column)) for column in zip(values.mean(0), *ends)]


def _validate_log_probs(log_probs):
    runs = [np.asarray(run, "float64") for run in log_probs]
    if len(runs) < 2:
        raise ValueError(
            f"`log_probs` must have at least 2 runs. Received: {len(runs)}. Train more networks on other training sets."
        )
    for i, run in enumerate(runs):
        if run.ndim != 2 or run.shape != runs[0].shape or 0 in run.shape:
            raise ValueError(
                "`log_probs` must have shape (examples, classes) for each run, the same for all. Received: shape "
                f"{run.shape} for run {i}, {runs[0].shape} for run 0. Evaluate all runs on one test set."
            )
    log_probs = np.stack(runs)
    if not np.isfinite(log_probs).all():
        run, example, c = np.argwhere(~np.isfinite(log_probs))[0]
        raise ValueError(
            "`log_probs` must be finite, because with a probability of 0 the error is infinite and the mean "
            f"distribution may not exist. Received: {log_probs[run, example, c]} for class {c} of example {example} in "
            f"run {run}. Use log_softmax of logits, not the logarithm of probabilities."
        )
    log_sums = np.logaddexp.reduce(log_probs, axis=-1, keepdims=True)
    if (deviations := np.abs(log_sums[..., 0])).max() > _TOLERANCE:
        run, example = np.unravel_index(deviations.argmax(), deviations.shape)
        raise ValueError(
            "`log_probs` must be logarithms of distributions. Received: probabilities that sum to "
            f"exp({log_sums[run, example, 0]:.4g}) for example {example} in run {run}. Pass log_softmax of logits at "
            "temperature 1, not logits or probabilities, and at least in float32."
        )
    return log_probs - log_sums


def _validate_distributions(labels):
    y = labels.astype("float64")
    sums = y.sum(-1, keepdims=True)
    wrong = ~np.isfinite(y).all(-1) | (y < 0).any(-1) | ~(np.abs(sums[:, 0] - 1) <= _TOLERANCE)
    if wrong.any():
        example = int(wrong.argmax())
        raise ValueError(
            "`labels` must be distributions: finite, non-negative and with a sum of 1. Received: a sum of "
            f"{sums[example, 0]:.6g} and a minimum of {y[example].min():.6g} for example {example}."
        )
    return y / sums


def _sum_x_log(x, values):
    r"""Return $\sum_c x_c \log v_c$ with $0 \log 0 = 0$: shape `(examples,)`."""
    return (x * np.log(np.where(x > 0, values, 1.0))).sum(-1)
