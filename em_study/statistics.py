"""Comparisons that respect question families (clusters), and correction for a judge's errors."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from em_eval.intervals import DRAWS, FloatArray, Interval, mean_interval, rate_interval, totals

__all__ = ["Interval", "corrected_rate", "holm", "mean_interval", "paired_contrasts", "rate_interval"]


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


def paired_contrasts(
    arms: dict[str, tuple[Sequence[float], Sequence[str]]], seed: int = 0
) -> list[tuple[str, str, Interval, float]]:
    """Differences of rates between all pairs of arms: (a, b, a - b with interval, Holm-adjusted p).

    `arms` maps a name to (0/1 values, their families). One bootstrap draw of families serves all arms, so that
    differences are paired by question. p is two-sided, from the bootstrap distribution.
    """
    names = sorted({family for _, families in arms.values() for family in families})
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=DRAWS)
    draws, centres = {}, {}
    for arm, (values, families) in arms.items():
        sums, sizes = totals(np.asarray(values, dtype=float), families, names=names)
        below = weights @ sizes
        draws[arm] = np.divide(weights @ sums, below, out=np.full(DRAWS, np.nan), where=below > 0)
        centres[arm] = float(sums.sum() / sizes.sum()) if sizes.sum() else float("nan")
    found = []
    for a, b in combinations(arms, 2):
        difference = draws[a] - draws[b]
        difference = difference[np.isfinite(difference)]
        if not len(difference):
            continue
        low, high = np.quantile(difference, [0.025, 0.975])
        above = (np.sum(difference >= 0) + 1) / (len(difference) + 1)
        below_zero = (np.sum(difference <= 0) + 1) / (len(difference) + 1)
        p = float(min(1.0, 2 * min(above, below_zero)))
        found.append((a, b, Interval(centres[a] - centres[b], float(low), float(high), "paired bootstrap"), p))
    return [(a, b, d, p) for (a, b, d, _), p in zip(found, holm([p for *_, p in found]), strict=True)]


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
