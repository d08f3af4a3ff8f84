"""Differences of outcomes that rest on the same questions and seeds: what is common to both sides cancels.

An outcome (rate, mean) is a ratio over question families. What each family contributes to its error is its influence,
which is linear: interpolating, averaging and subtracting outcomes does the same to their influences, and the error of
the result follows from how they add up (linearisation: Cochran 1977, Sampling Techniques, section 6.3).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm, t

from em_eval.intervals import BOOTSTRAP, CLUSTERED_T, FEW_EVENTS, Interval, totals

Bounds = tuple[float, float] | None
LARGE = (BOOTSTRAP, CLUSTERED_T)  # methods of intervals that rest on how families differ; others on few events
Z = float(norm.ppf(0.975))
PAIRED, WIDER = "paired by family and seed", "paired by family and seed, or square and add, wider"


@dataclass(frozen=True)
class Outcome:
    """A figure of a checkpoint, or a weighted sum of such.

    Attributes:
        alone: with the interval that it has by itself.
        influence: what each question family adds to its error; sums to zero.
        few: whether `alone` rests on few events or families, whose spread says too little.
        answers: the fewest that stand behind one of its checkpoints.
    """

    alone: Interval
    influence: Mapping[str, float]
    few: bool
    answers: int

    @property
    def value(self) -> float:
        return self.alone.value


@dataclass(frozen=True)
class Difference:
    """First minus second over seeds that both have.

    Attributes:
        by_seed: the difference of each seed. `influence`: of the mean.
        first, second: both sides by themselves, their seeds as their answers make them.
    """

    by_seed: Mapping[int, float]
    influence: Mapping[str, float]
    first: Outcome
    second: Outcome


def outcome(values: Sequence[float], families: Sequence[str], alone: Interval | None) -> Outcome | None:
    """The mean of `values`, one an answer, with the interval that `em_eval` gives it."""
    if alone is None:
        return None
    influence: dict[str, float] = {}
    if values:
        names = sorted(set(families))
        sums, sizes = totals(np.asarray(values, dtype=float), families, names=names)
        pulls = (sums - sizes * sums.sum() / sizes.sum()) / sizes.sum()
        influence = dict(zip(names, pulls.tolist(), strict=True))
    few = alone.method not in LARGE or len(influence) < FEW_EVENTS
    return Outcome(alone, influence, few, len(values))


def combine(outcomes: Sequence[Outcome], weights: Sequence[float]) -> Outcome:
    """Weighted mean; the ends by themselves add up likewise, which holds however the errors go together."""
    value, low, high = (
        sum(weight * getattr(one.alone, end) for one, weight in zip(outcomes, weights, strict=True))
        for end in ("value", "low", "high")
    )
    methods = {one.alone.method for one in outcomes}
    alone = Interval(value, low, high, methods.pop() if len(methods) == 1 else "of several")
    influence = _sum([one.influence for one in outcomes], weights)
    return Outcome(alone, influence, any(one.few for one in outcomes), min(one.answers for one in outcomes))


def mean(outcomes: Sequence[Outcome]) -> Outcome:
    return combine(outcomes, [1 / len(outcomes)] * len(outcomes))


def difference(first: Mapping[int, Outcome], second: Mapping[int, Outcome]) -> Difference | None:
    """Of two sides by seed, over the seeds that both have; None without such."""
    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        return None
    a, b = (mean([side[seed] for seed in seeds]) for side in (first, second))
    by_seed = {seed: first[seed].value - second[seed].value for seed in seeds}
    return Difference(by_seed, _sum([a.influence, b.influence], (1, -1)), a, b)


def over_blocks(differences: Sequence[Difference]) -> Difference:
    """Unweighted mean over blocks, which are those that were chosen and no sample of others."""
    weights = [1 / len(differences)] * len(differences)
    seeds = sorted({seed for one in differences for seed in one.by_seed})
    by_seed = {
        seed: float(np.mean([one.by_seed[seed] for one in differences if seed in one.by_seed])) for seed in seeds
    }
    influence = _sum([one.influence for one in differences], weights)
    return Difference(
        by_seed, influence, mean([one.first for one in differences]), mean([one.second for one in differences])
    )


def judged(found: Difference, bounds: Bounds = None) -> tuple[Interval, float]:
    """95 % interval and two-sided p of a difference.

    The interval is the widest, and p the largest, of

    - Student's t over families: the error is that of families (clustered, with the finite-cluster factor) and, with
      several seeds, of seeds together, since both are drawn;
    - with several seeds, Student's t over their differences: two or three say little about how seeds spread;
    - where a side rests on few events or families, Newcombe's (1998) square and add of the sides by themselves.

    Args:
        bounds: of the outcome; the difference ends where it can.
    """
    value = found.first.value - found.second.value
    families, seeds = min(len(side.influence) for side in (found.first, found.second)), len(found.by_seed)
    of_seeds = float(np.std(list(found.by_seed.values()), ddof=1)) / seeds**0.5 if seeds > 1 else 0.0
    candidates = [_student(value, float(np.hypot(_family_error(found.influence), of_seeds)), families - 1)]
    if seeds > 1:
        candidates.append(_student(value, of_seeds, seeds - 1))
    few = found.first.few or found.second.few
    if few:
        candidates.append(_newcombe(value, found.first.alone, found.second.alone))
    below, above, p = (max(part) for part in zip(*candidates, strict=True))
    most = bounds[1] - bounds[0] if bounds else np.inf
    return Interval(value, max(value - below, -most), min(value + above, most), WIDER if few else PAIRED), p


def square_and_add(a: Interval, b: Interval) -> tuple[float, float]:
    """How far a - b reaches down and up (Newcombe 1998, method 10); what both have in common can only narrow it."""
    return float(np.hypot(a.value - a.low, b.high - b.value)), float(np.hypot(a.high - a.value, b.value - b.low))


def _student(value: float, error: float, freedom: int) -> tuple[float, float, float]:
    """(reach down, reach up, p)."""
    if freedom < 1:
        return float("inf"), float("inf"), 1.0
    if error <= 0:  # a checkpoint beside itself, or a difference that is the same everywhere
        return 0.0, 0.0, 0.0 if value else 1.0
    reach = float(t.ppf(0.975, freedom)) * error
    return reach, reach, float(2 * t.sf(abs(value) / error, freedom))


def _newcombe(value: float, a: Interval, b: Interval) -> tuple[float, float, float]:
    below, above = square_and_add(a, b)
    return below, above, float(2 * norm.sf(abs(value) * Z / max(below if value > 0 else above, 1e-12)))


def _family_error(influence: Mapping[str, float]) -> float:
    """As `em_eval.intervals.clustered_error` of one mean."""
    count = len(influence)
    return float(np.sqrt(sum(pull**2 for pull in influence.values()) * count / (count - 1))) if count > 1 else 0.0


def _sum(influences: Sequence[Mapping[str, float]], weights: Sequence[float]) -> dict[str, float]:
    found: dict[str, float] = {}
    for influence, weight in zip(influences, weights, strict=True):
        for family, pull in influence.items():
            found[family] = found.get(family, 0.0) + weight * pull
    return found
