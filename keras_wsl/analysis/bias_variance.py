"""Bias and variance of the cross-entropy: Heskes, Neural Computation 10(6), 1998; Zhou et al., ICLR 2021, eq. 1 to 3.

https://arxiv.org/abs/2102.00650
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from keras_wsl.analysis.checks import checked_labels
from keras_wsl.ops import labels_are_categorical

TERMS = ("error", "noise", "bias", "variance")
_TOLERANCE = 1e-4  # Of a sum of probabilities: what float32 leaves, and half precision does not.


@dataclasses.dataclass(frozen=True, eq=False)
class Decomposition:
    """The error of an ensemble and its parts: nats, each float64 of shape `(examples,)`.

    Args:
        error: The mean cross-entropy of the runs with the label.
        noise: Entropy of the label.
        bias: Divergence of the label from the mean distribution.
        variance: Mean divergence of the mean distribution from the runs.
        runs: Integer, how many runs.
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
    """A mean over examples and its bootstrap interval."""

    mean: float
    low: float
    high: float


def bias_variance(log_probs, labels):
    r"""Error = noise + bias + variance of an ensemble whose runs differ in the training set $D$ that they drew.

    $$\underbrace{-\mathbb{E}_D \sum_c y_c \log p_{D,c}}_{error}
      = \underbrace{-\sum_c y_c \log y_c}_{noise} + \underbrace{\mathrm{KL}(y \Vert \bar p)}_{bias}
      + \underbrace{\mathbb{E}_D \mathrm{KL}(\bar p \Vert p_D)}_{variance}, \qquad
      \bar p = \frac{\exp(\mathbb{E}_D \log p_D)}{\sum_c \exp(\mathbb{E}_D \log p_{D,c})}$$

    $y$ is the label's distribution. The mean over $D$ is that over the runs given, so of few runs the variance comes
    out too small, and the bias too large by as much: compare ensembles of the same size.

    Args:
        log_probs: Floats $\log p_D$, finite, shape `(runs, examples, classes)`, or as many arrays `(examples, classes)`
            as there are runs. Rows are normalised anew in float64.
        labels: Integers, shape `(examples,)`, or distributions $y$, shape `(examples, classes)`.

    Returns:
        `Decomposition`, whose terms add up in float64, for each example and in total.

    Raises:
        ValueError: Fewer than two runs, runs of different shapes, values that are not finite or not logarithms of
            distributions, or labels that are out of range, no distributions, or of another shape.
    """
    log_probs = _checked_log_probs(log_probs)
    mean_log = log_probs.mean(axis=0)
    log_mean = mean_log - np.logaddexp.reduce(mean_log, axis=-1, keepdims=True)
    labels = np.asarray(labels)
    if labels_are_categorical(labels, mean_log):
        y = _checked_distributions(labels)
        noise = -_sum_x_log(y, y)
        error, bias = -(y * mean_log).sum(-1), -(y * log_mean).sum(-1) - noise
    else:
        rows, y = np.arange(len(mean_log)), checked_labels(labels, mean_log.shape)
        noise = np.zeros(len(mean_log))
        error, bias = -mean_log[rows, y], -log_mean[rows, y]
    variance = (np.exp(log_mean) * (log_mean - log_probs)).sum(-1).mean(0)
    return Decomposition(error, noise, bias, variance, len(log_probs))


def compare(direct, distilled, *, resamples=10_000, confidence=0.95, seed=0):
    r"""What distillation changes: each term of `distilled` minus that of `direct`, with a bootstrap over examples.

    Assumption 1 of Zhou et al. is that distillation lowers the variance,
    $\mathbb{E}_D \mathrm{KL}(\bar p_{kd} \Vert p_{kd}) \le \mathbb{E}_D \mathrm{KL}(\bar p_{ce} \Vert p_{ce})$: so the
    difference of variances is at most 0. They expect it to raise the bias.

    Examples are drawn with replacement, the same ones for both; the runs stay as they are, so the interval says how far
    the difference depends on the test examples, and not how far on the draw of the training sets.

    Args:
        direct: `Decomposition` of students trained on labels alone.
        distilled: `Decomposition` of students with a teacher, over the same examples in the same order.
        resamples: Integer, bootstrap samples.
        confidence: Float in (0, 1), the part of the samples between the interval's ends.
        seed: Integer.

    Returns:
        Dict of each of `TERMS` to an `Interval`, in nats.

    Raises:
        ValueError: The two have different numbers of examples, or `resamples` or `confidence` are out of range.
    """
    if direct.error.shape != distilled.error.shape:
        raise ValueError(
            f"The decompositions are of {len(direct.error)} and {len(distilled.error)} examples. Expected the same "
            "examples in the same order: judge both ensembles on one test set."
        )
    differences = np.stack([getattr(distilled, name) - getattr(direct, name) for name in TERMS], axis=-1)
    return dict(zip(TERMS, intervals(differences, resamples=resamples, confidence=confidence, seed=seed)))


def standard_errors(direct, distilled, labels):
    r"""How far the differences of `compare` depend on the draws of the training set: the jackknife over the runs.

    $$\mathrm{se}^2 = \frac{n - 1}{n} \sum_i (\theta_{(i)} - \bar\theta)^2$$

    $\theta_{(i)}$ is the difference without run $i$ of both. So run $i$ of the one is paired with run $i$ of the other:
    let them draw the same training set.

    Args:
        direct: Log-probabilities of students trained on labels alone, as of `bias_variance`, of three runs or more.
        distilled: Likewise of students with a teacher, as many.
        labels: As of `bias_variance`.

    Returns:
        Dict of each of `TERMS` to a standard error, in nats.

    Raises:
        ValueError: The ensembles have different numbers of runs, or fewer than three; and as `bias_variance`.
    """
    n = len(direct)
    if len(distilled) != n or n < 3:
        raise ValueError(
            f"Received ensembles of {n} and {len(distilled)} runs. Expected as many in both, and at least 3: each is "
            "left out once."
        )
    found = []
    for i in range(n):
        parts = ([run for j, run in enumerate(runs) if j != i] for runs in (direct, distilled))
        one, other = (bias_variance(part, labels).totals for part in parts)
        found.append([other[name] - one[name] for name in TERMS])
    return dict(zip(TERMS, map(float, np.sqrt((n - 1) * np.var(found, axis=0)))))


def intervals(values, *, resamples=10_000, confidence=0.95, seed=0):
    """The mean of each column, with its percentile bootstrap interval over the rows.

    Args:
        values: Floats, shape `(examples, columns)`.
        resamples: Integer, bootstrap samples.
        confidence: Float in (0, 1).
        seed: Integer.

    Returns:
        A list of `Interval`, one a column.

    Raises:
        ValueError: `resamples` or `confidence` are out of range.
    """
    if resamples < 1 or not 0 < confidence < 1:
        raise ValueError(
            f"Received resamples={resamples!r} and confidence={confidence!r}. Expected at least 1, and a float in "
            "(0, 1)."
        )
    generator, count = np.random.default_rng(seed), len(values)
    # How often each row is drawn, one sample at a time: all at once would take resamples * examples integers.
    samples = [np.bincount(generator.integers(count, size=count), minlength=count) @ values for _ in range(resamples)]
    ends = np.quantile(np.array(samples) / count, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return [Interval(*map(float, column)) for column in zip(values.mean(0), *ends)]


def _checked_log_probs(log_probs):
    runs = [np.asarray(run, "float64") for run in log_probs]
    if len(runs) < 2:
        raise ValueError(
            f"Received {len(runs)} run. A variance over training sets needs at least 2: train others on other draws."
        )
    for i, run in enumerate(runs):
        if run.ndim != 2 or run.shape != runs[0].shape or 0 in run.shape:
            raise ValueError(
                f"Run {i} has log-probabilities of shape {run.shape}, run 0 of shape {runs[0].shape}. Expected "
                "(examples, classes), the same for all: judge all runs on one test set."
            )
    log_probs = np.stack(runs)
    if not np.isfinite(log_probs).all():
        run, example, c = np.argwhere(~np.isfinite(log_probs))[0]
        raise ValueError(
            f"Run {run} gives class {c} of example {example} the log-probability {log_probs[run, example, c]}. "
            "Expected finite ones: with a probability of 0 the error is infinite and the mean distribution may not "
            "exist. Take log_softmax of logits, not the logarithm of probabilities."
        )
    log_sums = np.logaddexp.reduce(log_probs, axis=-1, keepdims=True)
    if (off := np.abs(log_sums[..., 0])).max() > _TOLERANCE:
        run, example = np.unravel_index(off.argmax(), off.shape)
        raise ValueError(
            f"Run {run}'s probabilities of example {example} add up to exp({log_sums[run, example, 0]:.4g}). Expected "
            "1: pass log_softmax of logits at temperature 1, not logits or probabilities, and in float32 at least."
        )
    return log_probs - log_sums


def _checked_distributions(labels):
    y = labels.astype("float64")
    sums = y.sum(-1, keepdims=True)
    wrong = ~np.isfinite(y).all(-1) | (y < 0).any(-1) | ~(np.abs(sums[:, 0] - 1) <= _TOLERANCE)
    if wrong.any():
        example = int(wrong.argmax())
        raise ValueError(
            f"The label of example {example} adds up to {sums[example, 0]:.6g}, with {y[example].min():.6g} as its "
            "least value. Expected a distribution: finite, not negative, and 1 in sum."
        )
    return y / sums


def _sum_x_log(x, values):
    r"""$\sum_c x_c \log v_c$ with $0 \log 0 = 0$: shape `(examples,)`."""
    return (x * np.log(np.where(x > 0, values, 1.0))).sum(-1)
