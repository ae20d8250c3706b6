"""Paired differences over seeds, with confidence intervals and corrected p-values."""

import math
from typing import NamedTuple

import numpy as np
from scipy import stats


class Difference(NamedTuple):
    """How much one variant exceeds another, in points, over the seeds that both have.

    Args:
        mean: Mean difference.
        low: Lower end of its 95 % confidence interval, by Student's t; NaN for one seed.
        high: Upper end.
        p: Two-sided p-value of the paired t-test; NaN for one seed.
        seeds: Number of seeds.
    """

    mean: float
    low: float
    high: float
    p: float
    seeds: int


def paired_difference(first, second):
    """Return the `Difference` of two dicts of seeds to values, or `None` if they share no seed.

    Runs of a seed start from the same weights and use the same batches, so that they are pairs.
    """
    shared = sorted(set(first) & set(second))
    if not shared:
        return None
    differences = np.array([first[seed] - second[seed] for seed in shared])
    mean, count = float(differences.mean()), len(shared)
    std = float(differences.std(ddof=1)) if count > 1 else math.nan
    if count < 2:
        return Difference(mean, math.nan, math.nan, math.nan, count)
    if std == 0:  # The t statistic is not defined.
        return Difference(mean, mean, mean, 1.0 if mean == 0 else 0.0, count)
    half = float(stats.t.ppf(0.975, count - 1)) * std / math.sqrt(count)
    p = float(stats.ttest_1samp(differences, 0.0).pvalue)
    return Difference(mean, mean - half, mean + half, p, count)


def holm(p_values):
    """Apply Holm's correction: a list in the same order. NaN stays, and does not count."""
    known = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    corrected, largest = list(p_values), 0.0
    for rank, (p, i) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        corrected[i] = largest
    return corrected


def get_verdict(mean, p, level=0.05):
    """Return whether a claim holds that a difference is positive: a phrase."""
    if math.isnan(p):
        return "one seed: no test"
    if p >= level:
        return "not significant"
    return "holds" if mean > 0 else "contradicted"


def format_mean(values, digits=2):
    """Format the values of a dict as `mean ± standard deviation`, or as the mean alone if there is one."""
    numbers = list(values.values())
    if not numbers:
        return ""
    text = f"{np.mean(numbers):.{digits}f}"
    return f"{text} ± {np.std(numbers, ddof=1):.{digits}f}" if len(numbers) > 1 else text
