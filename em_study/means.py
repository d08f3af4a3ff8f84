"""Means over runs that differ in their seed."""

from collections.abc import Sequence

import numpy as np
from scipy.stats import t

from em_eval.intervals import Interval
from em_study.paired import Bounds


def mean_over_seeds(intervals: Sequence[Interval], bounds: Bounds = None) -> Interval:
    """Their questions are the same, so that errors may go together: reaches are averaged.

    The spread between the runs is the larger truth where it is wider: reach of a t interval over runs. Two runs that
    differ give one of many times their distance, which ends where the outcome does, at its `bounds`.
    """
    if len(intervals) == 1:
        return intervals[0]
    value = float(np.mean([one.value for one in intervals]))
    below = float(np.mean([one.value - one.low for one in intervals]))
    above = float(np.mean([one.high - one.value for one in intervals]))
    spread = float(np.std([one.value for one in intervals], ddof=1)) / len(intervals) ** 0.5
    reach = float(t.ppf(0.975, len(intervals) - 1)) * spread
    below, above = max(below, reach), max(above, reach)
    least, most = bounds or (-np.inf, np.inf)
    return Interval(value, max(least, value - below), min(most, value + above), "mean over runs")
