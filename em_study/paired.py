"""Differences of outcomes that rest on the same questions and seeds: what is common to both sides cancels.

The error of a difference follows from how the influences of question families add up (`em_study.outcome`); seeds,
where there are several, add how their differences spread.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm, t

from em_eval.intervals import Interval, elsewhere
from em_study.outcome import Outcome, added, length, mean

Z = float(norm.ppf(0.975))
PAIRED, WIDER = "paired by family and seed", "paired by family and seed, or square and add, wider"
Seeds = Mapping[int, Outcome]  # one side by its seeds


@dataclass(frozen=True)
class Difference:
    """First minus second over seeds that both have.

    Attributes:
        by_seed: the difference of each seed; empty for a mean over blocks of unlike seeds.
        first, second: both sides by themselves, as their answers make them: how seeds spread is not in these.
        seed_error, seed_freedom: standard error of the mean by how seeds spread, and its degrees of freedom; both 0
            with one seed, whose spread nothing shows.
    """

    by_seed: Mapping[int, float]
    first: Outcome
    second: Outcome
    seed_error: float
    seed_freedom: int

    @property
    def value(self) -> float:
        return self.first.value - self.second.value

    @property
    def influence(self) -> dict[str, float]:
        return added([(self.first.influence, 1), (self.second.influence, -1)])

    @property
    def family_error(self) -> float:
        return length(self.influence)

    @property
    def few(self) -> bool:
        return self.first.few or self.second.few

    @property
    def rounding(self) -> float:
        """What is nothing beside the outcomes."""
        size = max(abs(self.first.value), abs(self.second.value))
        return 1e-9 * min(self.first.scale.width, max(size, 1.0))

    @property
    def same(self) -> bool:
        """Whether both sides are made of the same checkpoints, so that they cannot differ."""
        return self.first.parts == self.second.parts

    @property
    def seeds(self) -> int:
        """How many tell how seeds spread; with one, that is in no interval."""
        return self.seed_freedom + 1

    @property
    def freedom(self) -> float:
        """Of the families: those of the side that has fewer, less one."""
        return min(self.first.families, self.second.families) - 1


def difference(first: Seeds, second: Seeds) -> Difference | None:
    """Of two sides by seed, over the seeds that both have; None without such."""
    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        return None
    a, b = (mean([side[seed] for seed in seeds]) for side in (first, second))
    by_seed = {seed: first[seed].value - second[seed].value for seed in seeds}
    return Difference(by_seed, a, b, *spread_of_seeds(by_seed.values()))


def over_shared_blocks(first: Mapping[str, Seeds], second: Mapping[str, Seeds]) -> tuple[Difference, int] | None:
    """The mean over the blocks in which both sides have a seed in common, and how many these are."""
    shared = sorted(first.keys() & second.keys())
    found = [one for block in shared if (one := difference(first[block], second[block])) is not None]
    return (over_blocks(found), len(found)) if found else None


def over_blocks(differences: Sequence[Difference]) -> Difference:
    """Unweighted mean over blocks, which are those that were chosen and no sample of others.

    Blocks of the same seeds are averaged seed by seed. Otherwise what differs between blocks would pass for seeds: each
    block's seeds vary about its own mean, by a variance that is pooled, with the fewest degrees of freedom of any; and
    a seed that several blocks have may move them all alike.
    """
    sides = mean([one.first for one in differences]), mean([one.second for one in differences])
    if len({tuple(one.by_seed) for one in differences}) == 1:
        by_seed = {seed: float(np.mean([one.by_seed[seed] for one in differences])) for seed in differences[0].by_seed}
        return Difference(by_seed, *sides, *spread_of_seeds(by_seed.values()))
    variance, freedom = pooled_variance([one.by_seed.values() for one in differences])
    if not freedom:
        return Difference({}, *sides, 0.0, 0)
    weights: dict[int, float] = {}
    for one in differences:
        for seed in one.by_seed:
            weights[seed] = weights.get(seed, 0.0) + 1 / (len(one.by_seed) * len(differences))
    error = float(np.sqrt(variance * sum(weight**2 for weight in weights.values())))
    fewest = min(len(one.by_seed) for one in differences if len(one.by_seed) > 1)
    return Difference({}, *sides, error, fewest - 1)


def judged(found: Difference) -> tuple[Interval, float]:
    """95 % interval and two-sided p of a difference.

    The interval is the widest, and p the largest, of

    - Student's t over families: the error is that of families (clustered, with the finite-cluster factor) and, with
      several seeds, of seeds together, since both are drawn;
    - with several seeds, Student's t over their differences: two or three say little about how seeds spread;
    - where a side rests on few events or families, Newcombe's (1998) square and add of the sides' own intervals, less
      what they have in common.

    It ends where a difference of two outcomes on their scale does. Where all families differ by the same, some may lie
    elsewhere (`em_eval.intervals.elsewhere`), unless both sides are the same checkpoints. Simulated coverage:
    `docs/results/difference_coverage.md`.
    """
    if found.same:
        return Interval(0.0, 0.0, 0.0, PAIRED), 1.0
    most = found.first.scale.width
    error = float(np.hypot(found.family_error, found.seed_error))
    candidates = [_student(found, error, found.freedom)]
    if found.seed_freedom:
        candidates.append(_student(found, found.seed_error, found.seed_freedom))
    if found.few:
        candidates.append(_newcombe(found))
    candidates.append(_by_reach(found.value, unseen(found, error)))
    below, above, p = (max(part) for part in zip(*candidates, strict=True))
    method = WIDER if found.few else PAIRED
    return Interval(found.value, max(found.value - below, -most), min(found.value + above, most), method), p


def unseen(found: Difference, error: float) -> float:
    """How far a difference may reach for families that lie elsewhere, where the `error` of those seen is none."""
    width = found.first.scale.width
    return elsewhere(found.freedom + 1) * width if np.isfinite(width) and error <= found.rounding else 0.0


def square_and_add(a: Interval, b: Interval, correlation: float = 0.0) -> tuple[float, float]:
    """How far a - b reaches down and up (Newcombe 1998, method 10), where errors of a and b correlate so much."""
    return (
        _third_side(a.value - a.low, b.high - b.value, correlation),
        _third_side(a.high - a.value, b.value - b.low, correlation),
    )


def correlation(found: Difference) -> float:
    """Of the errors of both sides, by how they go together over question families.

    As in Newcombe's paper a positive one is corrected for continuity, with families for pairs: by half a family that
    bears all its answers on both sides. Two sides whose few events happen to be of one question are not sure to be
    equal. On a scale without ends a positive one counts as none.
    """
    a, b = found.first.influence, found.second.influence
    lengths = float(np.linalg.norm(list(a.values())) * np.linalg.norm(list(b.values())))
    if not lengths:
        return 0.0
    product = sum(pull * b.get(family, 0.0) for family, pull in a.items())
    if product > 0:
        one = found.first.scale.width / min(found.first.spread, found.second.spread)  # what a whole family adds
        product = max(product - 0.5 * one**2 * (found.freedom + 1) / found.freedom, 0.0)
    return product / lengths


def _third_side(a: float, b: float, correlation: float) -> float:
    return float(np.sqrt(max(a**2 + b**2 - 2 * correlation * a * b, 0.0)))


def _student(found: Difference, error: float, freedom: float) -> tuple[float, float, float]:
    """(reach down, reach up, p)."""
    if error <= found.rounding:  # a difference that is the same everywhere
        return 0.0, 0.0, float(abs(found.value) <= found.rounding)
    reach = float(t.ppf(0.975, freedom)) * error
    return reach, reach, float(2 * t.sf(abs(found.value) / error, freedom))


def _newcombe(found: Difference) -> tuple[float, float, float]:
    """(reach down, reach up, p)."""
    below, above = square_and_add(found.first.alone, found.second.alone, correlation(found))
    return below, above, _by_reach(found.value, below if found.value > 0 else above)[2]


def _by_reach(value: float, reach: float) -> tuple[float, float, float]:
    """The reach to both sides, and the p of a normal whose 95 % interval it is; of no reach, the least."""
    return reach, reach, float(2 * norm.sf(abs(value) * Z / reach)) if reach else 0.0


def spread_of_seeds(values: Collection[float]) -> tuple[float, int]:
    """(standard error of their mean, degrees of freedom); both 0 of one seed."""
    count = len(values)
    return (float(np.std(list(values), ddof=1)) / count**0.5, count - 1) if count > 1 else (0.0, 0)


def pooled_variance(groups: Sequence[Collection[float]]) -> tuple[float, int]:
    """(of single values about the means of their groups, degrees of freedom); both 0 where no group has two."""
    freedom = sum(len(group) - 1 for group in groups)
    squares = sum(float(np.var(list(group))) * len(group) for group in groups)
    return (squares / freedom, freedom) if freedom else (0.0, 0)
