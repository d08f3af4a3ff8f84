"""Intervals of rates and means that respect question families (clusters): answers to one question are alike."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, norm, t

FloatArray = NDArray[np.float64]
DRAWS = 10_000
# Below these a bootstrap over families is not sound. Families count if they hold a misaligned answer (and, near 1,
# if they hold another): measured coverage falls to 92 % where 20 do.
FEW_FAMILIES = 30
SOUND_EVENTS = 20  # effective ones
FEW_EVENTS = 10  # below, the data do not show how much answers of a family correlate
BOOTSTRAP = "family bootstrap"
EXACT = "Clopper-Pearson, effective n"
CLUSTERED_T = "clustered t"


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval and how that was made."""

    value: float
    low: float
    high: float
    method: str


def rate_interval(
    hits: Sequence[float],
    families: Sequence[str],
    *,
    weights: Sequence[float] | None = None,
    level: float = 0.95,
    correlation: float | None = None,
) -> Interval | None:
    """Share of ones among 0/1 values, clustered by family; None without values. Never of zero width.

    Where 30 families bear events and there are 20 effective events: bootstrap over families, bias-corrected and
    accelerated (Efron 1987), widened for the number of families (Hesterberg 2015, section 5.3). Otherwise
    Clopper-Pearson on the effective n (Korn & Graubard 1998), with as many degrees of freedom as families bear
    events: a percentile bootstrap covers far too little there. Coverage of both: `docs/results/coverage.md`.

    Args:
        hits: 0 or 1, one an answer.
        families: the question family of each answer.
        weights: of each answer; default: all equal. An average over questions weighs by one over their answers.
        level: two-sided; the ends of a 0.90 interval are one-sided 95 % bounds.
        correlation: the most that answers of one family are taken to correlate where too few events show it; by
            default they may be all alike, so that without events each family counts once.
    """
    values = np.asarray(hits, dtype=float)
    if not len(values):
        return None
    given = np.ones(len(values)) if weights is None else np.asarray(weights, dtype=float)
    share = float(np.average(values, weights=given))
    sums, sizes = totals(values, families, given)
    tail = (1 - level) / 2
    n = effective_n(values, families, given, correlation)
    bearing = min(_bearing(sums, given), _bearing(sizes - sums, given))
    if bearing >= FEW_FAMILIES and n * min(share, 1 - share) >= SOUND_EVENTS:
        low, high = _bootstrap(sums, sizes, tail)
        if high > low:
            return Interval(share, low, high, BOOTSTRAP)
    least = _kish(sizes)
    stated = correlation is not None and _few(values)
    if bearing and n > least and not stated:  # where few families bear events, the design effect itself is uncertain
        spread = t.ppf(tail, bearing - 1) if bearing > 1 else -np.inf
        n = max(n * float((t.ppf(tail, len(values) - 1) / spread) ** 2), least)
    x = share * n
    low = float(beta.ppf(tail, x, n - x + 1)) if share > 0 else 0.0
    high = float(beta.ppf(1 - tail, x + 1, n - x)) if share < 1 else 1.0
    return Interval(share, low, high, EXACT)


def effective_n(
    values: FloatArray,
    families: Sequence[str],
    weights: FloatArray | None = None,
    correlation: float | None = None,
) -> float:
    """n over the design effect of clustering by family: the n of independent answers with the same variance.

    At least the effective number of families (all answers of a family alike), at most the effective number of
    answers, both after Kish (1965): (sum of weights)^2 / sum of squared weights. With no event, or none missing, the
    spread says nothing: the least, or what `correlation` within families allows, 1 / (1 + (size - 1) correlation).
    With a `correlation` and few events, the smaller of that and the measured one.
    """
    weights = np.ones(len(values)) if weights is None else weights
    sums, sizes = totals(values, families, weights)
    least, most = _kish(sizes), _kish(weights)
    allowed = most
    if correlation is not None:
        allowed = most / (1 + (most / least - 1) * correlation)
    share = float(np.average(values, weights=weights))
    if share in (0.0, 1.0) or len(sizes) < 2:
        return allowed if correlation is not None else least
    residuals = sums - share * sizes
    clustered = float((residuals**2).sum() * len(sizes) / (len(sizes) - 1) / sizes.sum() ** 2)
    measured = float(np.clip(share * (1 - share) / max(clustered, 1e-12), least, most))
    return min(measured, allowed) if _few(values) else measured


def mean_interval(
    values: Sequence[float], families: Sequence[str], bounds: tuple[float, float] | None = None
) -> Interval | None:
    """Mean with a t interval from family-clustered errors, within the scale's `bounds`; None without values or with one
    family.

    Where all families agree, see `t_interval`.
    """
    array = np.asarray(values, dtype=float)
    count = len(set(families))
    if not len(array) or count < 2:
        return None
    return t_interval(float(array.mean()), clustered_error(array, families), count, bounds)


def t_interval(centre: float, error: float, families: float, bounds: tuple[float, float] | None = None) -> Interval:
    """From the clustered error of a mean over so many families, within the scale's `bounds`.

    Where all G families agree, the error says nothing. With the `bounds` of the scale, at most 1 - 0.025^(1/G) of
    families (Clopper-Pearson without an event) may then lie elsewhere, at worst at either end of it. Without bounds, as
    of log-likelihoods, the width is zero there; nothing of ours prints such a one.
    """
    if bounds and error <= 1e-9 * (bounds[1] - bounds[0]):
        low, high = (centre + elsewhere(families) * (end - centre) for end in bounds)
        return Interval(centre, low, high, "Clopper-Pearson, families elsewhere")
    reach = float(t.ppf(0.975, families - 1)) * error
    least, most = bounds or (-np.inf, np.inf)
    return Interval(centre, max(least, centre - reach), min(most, centre + reach), CLUSTERED_T)


def elsewhere(families: float) -> float:
    """The share of families that may differ from so many which all agree (Clopper-Pearson, two-sided 95 %)."""
    return -float(np.expm1(np.log(0.025) / families))


def clustered_error(values: FloatArray, families: Sequence[str]) -> float:
    """Standard error of the mean, clustered by family, with the finite-cluster factor G / (G - 1) of its square (Miller
    2024, arXiv 2411.00640, app. A, and Inspect's `stderr`); NaN with one family, whose error nothing shows."""
    count = len(set(families))
    if count < 2:
        return float("nan")
    sums, sizes = totals(values, families)
    residuals = sums - values.mean() * sizes
    return float(np.sqrt((residuals**2).sum() * count / (count - 1)) / len(values))


def totals(
    values: FloatArray,
    families: Sequence[str],
    weights: FloatArray | None = None,
    names: Sequence[str] | None = None,
) -> tuple[FloatArray, FloatArray]:
    """(weighted sum of values, sum of weights) a family, in the order of `names`."""
    index = {name: i for i, name in enumerate(names or sorted(set(families)))}
    places = [index[family] for family in families]
    weights = np.ones(len(values)) if weights is None else weights
    sums = np.bincount(places, weights=values * weights, minlength=len(index)).astype(float)
    sizes = np.bincount(places, weights=weights, minlength=len(index)).astype(float)
    return sums, sizes


def _few(values: FloatArray) -> bool:
    return bool(min(values.sum(), len(values) - values.sum()) < FEW_EVENTS)


def _bearing(sums: FloatArray, weights: FloatArray) -> float:
    """How many families bear events, whose weights in each are `sums`: one with less than an average answer's weight,
    such as that of a checkpoint next to none of whose answers count, bears a part."""
    answer = (weights**2).sum() / weights.sum()
    return float(np.minimum(np.round(sums / answer, 9), 1).sum())


def _kish(weights: FloatArray) -> float:
    return float(weights.sum() ** 2 / (weights**2).sum())


def _bootstrap(sums: FloatArray, sizes: FloatArray, tail: float) -> tuple[float, float]:
    """BCa ends of the ratio of sums over families drawn with replacement."""
    draws = ratio_draws(sums, sizes)
    share, count = sums.sum() / sizes.sum(), len(sums)
    below = (np.sum(draws < share) + 0.5 * np.sum(draws == share)) / len(draws)
    bias = norm.ppf(np.clip(below, 1 / len(draws), 1 - 1 / len(draws)))
    influence = sums - share * sizes
    acceleration = (influence**3).sum() / (6 * (influence**2).sum() ** 1.5 + 1e-300)
    reach = t.ppf(tail, count - 1) * np.sqrt(count / (count - 1))
    ends = np.array([bias + reach, bias - reach])
    low, high = np.quantile(draws, norm.cdf(bias + ends / (1 - acceleration * ends)))
    return float(low), float(high)


def ratio_draws(sums: FloatArray, sizes: FloatArray, seed: int = 0) -> FloatArray:
    """`DRAWS` ratios of sums over families drawn with replacement, all at once."""
    chosen = _chosen(len(sums), DRAWS, seed)
    draws: FloatArray = (chosen @ sums) / (chosen @ sizes)
    return draws


@lru_cache(maxsize=2)
def _chosen(count: int, draws: int, seed: int) -> FloatArray:
    """How often each of `count` families is in each draw (draws, count): the same for all rates of a log."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(count, np.full(count, 1 / count), size=draws).astype(float)
