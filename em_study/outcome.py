"""An outcome of a checkpoint (rate, mean alignment, probe), and weighted means of outcomes.

Whatever is made of outcomes on the way to a comparison (interpolated between checkpoints, averaged over seeds, settings
or blocks) is again an outcome: what each question adds to its error is known, and its interval follows from that, or,
of rates, from all the answers behind it by the rules of a single checkpoint's.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from em_eval.intervals import BOOTSTRAP, CLUSTERED_T, Interval, rate_interval, t_interval, totals

LARGE = (BOOTSTRAP, CLUSTERED_T)  # methods of intervals that rest on how families differ; others on few events
ENOUGH = 10  # families; the spread of fewer is too uncertain to rest an interval on alone


@dataclass(frozen=True)
class Scale:
    """What an outcome is measured on: where it ends, and whether its answers are 0 or 1."""

    least: float = -np.inf
    most: float = np.inf
    rate: bool = False

    @property
    def width(self) -> float:
        """How far two of its values can be apart."""
        return self.most - self.least

    @property
    def bounds(self) -> tuple[float, float] | None:
        return (self.least, self.most) if np.isfinite(self.width) else None


RATE, ALIGNMENT, PROBE = Scale(0, 1, rate=True), Scale(0, 100), Scale()


@dataclass(frozen=True, eq=False)
class Answers:
    """What one checkpoint's outcome is the mean of: a value an answer, and the question family of each."""

    values: tuple[float, ...]
    families: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Outcome:
    """A checkpoint's, or a weighted mean of several.

    Attributes:
        influence: what each question family adds to the error. A mean is a ratio of sums over families, and linear in
            these (linearisation: Cochran 1977, Sampling Techniques, section 6.3). Their squares add up to that of the
            error, with each checkpoint's finite-cluster factor.
        families: how many a checkpoint has: the harmonic mean by weight.
        answers: the fewest of a checkpoint.
        parts: the answers behind it with their weights, which add up to one.
    """

    scale: Scale
    value: float
    influence: Mapping[str, float]
    families: float
    answers: int
    parts: tuple[tuple[Answers, float], ...]

    @cached_property
    def alone(self) -> Interval:
        """With the interval that it has by itself."""
        if not self.scale.rate:
            return t_interval(self.value, length(self.influence), self.families, self.scale.bounds)
        values = [value for answers, _ in self.parts for value in answers.values]
        families = [family for answers, _ in self.parts for family in answers.families]
        weights = [weight / len(answers.values) for answers, weight in self.parts for _ in answers.values]
        found = rate_interval(values, families, weights=weights)
        assert found is not None  # there are answers
        return found

    @cached_property
    def spread(self) -> float:
        """Over how many families it spreads: the effective number by their weights (Kish 1965)."""
        shares = [(_shares(answers), weight) for answers, weight in self.parts]
        return 1 / sum(share**2 for share in added(shares).values())

    @property
    def few(self) -> bool:
        """Whether `alone` rests on few events or families, whose spread says too little."""
        return self.alone.method not in LARGE or self.families < ENOUGH


def _shares(answers: Answers) -> dict[str, float]:
    """By family, of a checkpoint's answers."""
    return {family: count / len(answers.families) for family, count in Counter(answers.families).items()}


def outcome_of(values: Sequence[float], families: Sequence[str], scale: Scale) -> Outcome | None:
    """The mean of `values`, one an answer; None with fewer than two families, whose error nothing shows."""
    names, count = sorted(set(families)), len(values)
    if len(names) < 2:
        return None
    sums, sizes = totals(np.asarray(values, dtype=float), families, names=names)
    mean = float(np.mean(values))
    pulls = (sums - sizes * mean) / count * np.sqrt(len(names) / (len(names) - 1))
    influence = dict(zip(names, pulls.tolist(), strict=True))
    return Outcome(scale, mean, influence, len(names), count, ((Answers(tuple(values), tuple(families)), 1.0),))


def combine(outcomes: Sequence[Outcome], weights: Sequence[float]) -> Outcome:
    """Weighted mean of outcomes on one scale; `weights` add up to one."""
    used = [(one, weight) for one, weight in zip(outcomes, weights, strict=True) if weight]
    return Outcome(
        outcomes[0].scale,
        sum(weight * one.value for one, weight in used),
        added([(one.influence, weight) for one, weight in used]),
        1 / sum(weight / one.families for one, weight in used),
        min(one.answers for one, _ in used),
        tuple((answers, weight * own) for one, weight in used for answers, own in one.parts),
    )


def mean(outcomes: Sequence[Outcome]) -> Outcome:
    return combine(outcomes, [1 / len(outcomes)] * len(outcomes))


def added(influences: Sequence[tuple[Mapping[str, float], float]]) -> dict[str, float]:
    """Weighted sum of influences, or of shares."""
    found: dict[str, float] = {}
    for influence, weight in influences:
        for family, pull in influence.items():
            found[family] = found.get(family, 0.0) + weight * pull
    return found


def length(influence: Mapping[str, float]) -> float:
    """The standard error that influences make."""
    return float(np.linalg.norm(list(influence.values())))
