"""Paired differences, Holm's correction, verdicts."""

import math

import pytest
from scipy import stats

from reproduction import statistics


def test_differences_are_paired():
    one, other = {0: 3.0, 1: 5.0, 2: 4.5, 7: 9.0}, {0: 2.0, 1: 3.5, 2: 4.0}
    found = statistics.paired_difference(one, other)
    reference = stats.ttest_rel([3.0, 5.0, 4.5], [2.0, 3.5, 4.0])
    interval = reference.confidence_interval()
    assert found.mean == pytest.approx(1.0) and found.seeds == 3
    assert (found.low, found.high, found.p) == pytest.approx((interval.low, interval.high, reference.pvalue))
    assert statistics.paired_difference({0: 1.0}, {1: 2.0}) is None
    single = statistics.paired_difference({0: 3.0}, {0: 1.0})
    assert single.mean == 2.0 and math.isnan(single.p)
    assert statistics.paired_difference({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0}).p == 1.0


def test_holms_correction():
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert statistics.holm([0.5, math.nan, 0.6])[::2] == [1.0, 1.0] and math.isnan(statistics.holm([math.nan])[0])


@pytest.mark.parametrize(
    "mean, p, expected",
    [
        (1.0, 0.01, "holds"),
        (-1.0, 0.01, "contradicted"),
        (1.0, 0.2, "not significant"),
        (1.0, math.nan, "one seed: no test"),
    ],
)
def test_verdicts(mean, p, expected):
    assert statistics.get_verdict(mean, p) == expected
