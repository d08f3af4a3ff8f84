"""Differences of outcomes that rest on the same questions and seeds: what is common to both sides cancels.

An outcome (rate, mean) is a ratio over question families. What each family contributes to its error is its influence,
which is linear: interpolating, averaging and subtracting outcomes does the same to their influences, and the error of
the result follows from how they add up (linearisation: Cochran 1977, Sampling Techniques, section 6.3).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm, t

from em_eval.intervals import BOOTSTRAP, CLUSTERED_T, Interval, totals

Bounds = tuple[float, float] | None
LARGE = (BOOTSTRAP, CLUSTERED_T)  # methods of intervals that rest on how families differ; others on few events
FEW_FAMILIES = 10  # below, their spread is too uncertain to rest an interval on alone
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
        by_seed: the difference of each seed; empty for a mean over blocks of unlike seeds.
        influence: of the mean.
        first, second: both sides by themselves, their seeds as their answers make them.
        seed_error, seed_freedom: standard error of the mean by how seeds spread, and its degrees of freedom; both 0
            with one seed, whose spread nothing shows.
    """

    by_seed: Mapping[int, float]
    influence: Mapping[str, float]
    first: Outcome
    second: Outcome
    seed_error: float
    seed_freedom: int

    @property
    def value(self) -> float:
        return self.first.value - self.second.value

    @property
    def few(self) -> bool:
        return self.first.few or self.second.few

    @property
    def freedom(self) -> int:
        """Of the families: those of the side that has fewer, less one."""
        return min(len(side.influence) for side in (self.first, self.second)) - 1


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
    few = alone.method not in LARGE or len(influence) < FEW_FAMILIES
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
    return Difference(by_seed, _sum([a.influence, b.influence], (1, -1)), a, b, *_over_seeds(by_seed))


def over_blocks(differences: Sequence[Difference]) -> Difference:
    """Unweighted mean over blocks, which are those that were chosen and no sample of others.

    Blocks of the same seeds are averaged seed by seed. Otherwise what differs between blocks would pass for seeds: each
    block's seeds vary about its own mean, by a variance that is pooled, with the fewest degrees of freedom of any.
    """
    count = len(differences)
    influence = _sum([one.influence for one in differences], [1 / count] * count)
    sides = mean([one.first for one in differences]), mean([one.second for one in differences])
    if len({tuple(one.by_seed) for one in differences}) == 1:
        by_seed = {seed: float(np.mean([one.by_seed[seed] for one in differences])) for seed in differences[0].by_seed}
        return Difference(by_seed, influence, *sides, *_over_seeds(by_seed))
    several = [list(one.by_seed.values()) for one in differences if len(one.by_seed) > 1]
    if not several:
        return Difference({}, influence, *sides, 0.0, 0)
    variance = sum(float(np.var(each)) * len(each) for each in several) / sum(len(each) - 1 for each in several)
    error = float(np.sqrt(sum(variance / len(one.by_seed) for one in differences))) / count
    return Difference({}, influence, *sides, error, min(len(each) for each in several) - 1)


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
    candidates = [_student(found.value, float(np.hypot(family_error(found), found.seed_error)), found.freedom)]
    if found.seed_freedom:
        candidates.append(_student(found.value, found.seed_error, found.seed_freedom))
    if found.few:
        candidates.append(_newcombe(found.value, found.first.alone, found.second.alone))
    below, above, p = (max(part) for part in zip(*candidates, strict=True))
    most = bounds[1] - bounds[0] if bounds else np.inf
    method = WIDER if found.few else PAIRED
    return Interval(found.value, max(found.value - below, -most), min(found.value + above, most), method), p


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


def family_error(found: Difference) -> float:
    """As `em_eval.intervals.clustered_error` of one mean."""
    count = len(found.influence)
    squares = sum(pull**2 for pull in found.influence.values())
    return float(np.sqrt(squares * count / (count - 1))) if count > 1 else 0.0


def _over_seeds(by_seed: Mapping[int, float]) -> tuple[float, int]:
    """(standard error of the mean, degrees of freedom)."""
    count = len(by_seed)
    return (float(np.std(list(by_seed.values()), ddof=1)) / count**0.5, count - 1) if count > 1 else (0.0, 0)


def _sum(influences: Sequence[Mapping[str, float]], weights: Sequence[float]) -> dict[str, float]:
    found: dict[str, float] = {}
    for influence, weight in zip(influences, weights, strict=True):
        for family, pull in influence.items():
            found[family] = found.get(family, 0.0) + weight * pull
    return found
