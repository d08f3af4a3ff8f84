"""Correction of rates for a judge's errors, and of p-values for their number."""

from collections.abc import Sequence

import numpy as np

from em_eval.intervals import DRAWS, FloatArray, Interval


def corrected_rate(
    rate: Interval, sensitivity: Interval | None, specificity: Interval | None, draws: int = DRAWS
) -> Interval | None:
    """Rogan & Gladen (1978): (rate + specificity - 1) / (sensitivity + specificity - 1), clipped to [0, 1].

    The interval propagates the uncertainty of all three, each as a normal with the spread of its interval.
    None where the judge's figures are unknown or it does no better than chance.
    """
    if sensitivity is None or specificity is None or sensitivity.value + specificity.value <= 1.05:
        return None
    rng = np.random.default_rng(0)
    p, se, sp = (_normal_draws(x, draws, rng) for x in (rate, sensitivity, specificity))
    youden = se + sp - 1
    usable = youden > 0.02
    values = np.clip((p[usable] + sp[usable] - 1) / youden[usable], 0, 1)
    centre = (rate.value + specificity.value - 1) / (sensitivity.value + specificity.value - 1)
    low, high = np.quantile(values, [0.025, 0.975])
    return Interval(float(np.clip(centre, 0, 1)), float(low), float(high), "Rogan-Gladen")


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's (1979) step-down adjusted p-values, in the order given."""
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    adjusted = [0.0] * len(ps)
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(ps) - rank) * ps[index]))
        adjusted[index] = running
    return adjusted


def _normal_draws(x: Interval, draws: int, rng: np.random.Generator) -> FloatArray:
    spread = max(x.high - x.low, 1e-9) / (2 * 1.96)
    return np.clip(rng.normal(x.value, spread, draws), 0, 1)
