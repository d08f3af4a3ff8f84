"""Intervals and comparisons that respect question families (clusters), and correction for a judge's errors."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, t

FloatArray = NDArray[np.float64]
DRAWS = 10_000
FEW_FAMILIES = 20
FEW_EVENTS = 10


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval and how that was made."""

    value: float
    low: float
    high: float
    method: str


def rate_interval(hits: Sequence[float], families: Sequence[str]) -> Interval | None:
    """Share of ones among 0/1 values, clustered by family; None without values.

    With at least 20 families and 10 events: percentile bootstrap over families. Otherwise Clopper-Pearson on the
    effective n (Korn & Graubard 1998): a percentile bootstrap covers far too little there. Never of zero width.
    """
    values = np.asarray(hits, dtype=float)
    if not len(values):
        return None
    share = float(values.mean())
    events = min(values.sum(), len(values) - values.sum())
    if len(set(families)) >= FEW_FAMILIES and events >= FEW_EVENTS:
        draws = _ratio_draws(*_totals(values, families), seed=0)
        low, high = np.quantile(draws, [0.025, 0.975])
        if high > low:
            return Interval(share, float(low), float(high), "family bootstrap")
    n = effective_n(values, families)
    count = len(set(families))
    if count > 1 and n > count:  # with few families the design effect is itself uncertain (Korn & Graubard)
        few = float((t.ppf(0.975, len(values) - 1) / t.ppf(0.975, count - 1)) ** 2)
        n = max(n * few, count)
    x = share * n
    low = float(beta.ppf(0.025, x, n - x + 1)) if x > 0 else 0.0
    high = float(beta.ppf(0.975, x + 1, n - x)) if x < n else 1.0
    return Interval(share, low, high, "Clopper-Pearson, effective n")


def effective_n(values: FloatArray, families: Sequence[str]) -> float:
    """n over the design effect of clustering by family, at least the number of families, at most n.

    Design effect: clustered variance of the mean over the binomial one.
    """
    share = float(values.mean())
    count = len(set(families))
    if share in (0.0, 1.0) or count < 2:
        return float(count)
    sums, sizes = _totals(values, families)
    residuals = sums - share * sizes
    clustered = float((residuals**2).sum() * count / (count - 1) / len(values) ** 2)
    design = clustered / (share * (1 - share) / len(values))
    return float(np.clip(len(values) / max(design, 1e-9), count, len(values)))


def mean_interval(values: Sequence[float], families: Sequence[str]) -> Interval | None:
    """Mean with a t interval from family-clustered errors; None without values or with one family."""
    array = np.asarray(values, dtype=float)
    count = len(set(families))
    if not len(array) or count < 2:
        return None
    centre = float(array.mean())
    sums, sizes = _totals(array, families)
    residuals = sums - centre * sizes
    error = float(np.sqrt((residuals**2).sum() * count / (count - 1)) / len(array))
    reach = float(t.ppf(0.975, count - 1)) * error
    return Interval(centre, centre - reach, centre + reach, "clustered t")


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
        sums, sizes = _totals(np.asarray(values, dtype=float), families, names)
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


def _totals(
    values: FloatArray, families: Sequence[str], names: Sequence[str] | None = None
) -> tuple[FloatArray, FloatArray]:
    """(sum of values, number of values) a family, in the order of `names`."""
    index = {name: i for i, name in enumerate(names or sorted(set(families)))}
    places = [index[family] for family in families]
    sums = np.bincount(places, weights=values, minlength=len(index)).astype(float)
    sizes = np.bincount(places, minlength=len(index)).astype(float)
    return sums, sizes


def _ratio_draws(sums: FloatArray, sizes: FloatArray, seed: int) -> FloatArray:
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=DRAWS)
    draws: FloatArray = (weights @ sums) / np.maximum(weights @ sizes, 1)
    return draws


def _normal_draws(x: Interval, draws: int, rng: np.random.Generator) -> FloatArray:
    spread = max(x.high - x.low, 1e-9) / (2 * 1.96)
    return np.clip(rng.normal(x.value, spread, draws), 0, 1)
