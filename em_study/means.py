"""Means over runs that differ in their seed."""

from collections.abc import Sequence

import numpy as np
from scipy.stats import t

from em_eval.intervals import Interval
from em_study.outcome import Outcome, mean
from em_study.paired import Z, spread_of_seeds


def mean_over_seeds(outcomes: Sequence[Outcome]) -> Interval:
    """The mean with an interval for new answers and new seeds.

    Of several it is the wider of: its interval by its answers, with the spread between seeds added to that error; and
    Student's t over seeds. Two runs that differ give one of many times their distance, which ends where the scale does.
    """
    pooled = mean(outcomes)
    alone, scale = pooled.alone, pooled.scale
    if len(outcomes) == 1:
        return alone
    error, freedom = spread_of_seeds([one.value for one in outcomes])
    over_seeds = float(t.ppf(0.975, freedom)) * error
    below, above = (
        max(float(np.hypot(reach, Z * error)), over_seeds)
        for reach in (alone.value - alone.low, alone.high - alone.value)
    )
    low, high = max(scale.least, alone.value - below), min(scale.most, alone.value + above)
    return Interval(alone.value, low, high, "mean over runs")
