"""An outcome of a checkpoint (rate, mean alignment, probe), and weighted sums of outcomes.

Whatever is made of outcomes on the way to a comparison (interpolated between checkpoints, averaged over seeds, settings
or blocks) is again a weighted mean of answers. Its interval is made of these answers by the rules of a single
checkpoint's, with answers to one question together.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from em_eval.intervals import BOOTSTRAP, CLUSTERED_T, Interval, mean_interval, rate_interval, totals

LARGE = (BOOTSTRAP, CLUSTERED_T)  # methods of intervals that rest on how families differ; others on few events
FEW_FAMILIES = 10  # below, their spread is too uncertain to rest an interval on alone


@dataclass(frozen=True)
class Scale:
    """What an outcome is measured on.

    Attributes:
        interval: of a mean, from values, their question families and weights; None where these do not suffice.
        needs: how many families suffice.
        least, most: where it ends.
    """

    interval: Callable[[Sequence[float], Sequence[str], Sequence[float]], Interval | None]
    needs: int
    least: float = -np.inf
    most: float = np.inf

    @property
    def width(self) -> float:
        """How far two of its values can be apart."""
        return self.most - self.least


RATE = Scale(lambda values, families, weights: rate_interval(values, families, weights=weights), 1, 0, 1)
ALIGNMENT = Scale(lambda values, families, weights: mean_interval(values, families, (0, 100), weights), 2, 0, 100)
PROBE = Scale(lambda values, families, weights: mean_interval(values, families, None, weights), 2)


@dataclass(frozen=True, eq=False)
class Outcome:
    """A weighted mean of answers.

    Attributes:
        values, families, weights: of each answer; weights add up to one.
        influence: what each question family adds to the error. A mean is a ratio of sums over families, and linear in
            these (linearisation: Cochran 1977, Sampling Techniques, section 6.3), which add up to zero.
        fewest: question families of the checkpoint that has fewest; `answers`: of the one that has fewest answers.
    """

    scale: Scale
    values: tuple[float, ...]
    families: tuple[str, ...]
    weights: tuple[float, ...]
    influence: Mapping[str, float]
    fewest: int
    answers: int

    @property
    def value(self) -> float:
        return float(np.dot(self.values, self.weights))

    @cached_property
    def alone(self) -> Interval:
        """With the interval that it has by itself."""
        found = self.scale.interval(self.values, self.families, self.weights)
        assert found is not None  # `outcome` makes none without, and sums have no fewer families
        return found

    @property
    def few(self) -> bool:
        """Whether `alone` rests on few events or families, whose spread says too little."""
        return self.alone.method not in LARGE or self.fewest < FEW_FAMILIES


def outcome(values: Sequence[float], families: Sequence[str], scale: Scale) -> Outcome | None:
    """The mean of `values`, one an answer; None where its interval cannot be made."""
    count, names = len(values), sorted(set(families))
    if len(names) < scale.needs:
        return None
    sums, sizes = totals(np.asarray(values, dtype=float), families, names=names)
    pulls = (sums - sizes * np.mean(values)) / count
    influence = dict(zip(names, pulls.tolist(), strict=True))
    return Outcome(scale, tuple(values), tuple(families), (1 / count,) * count, influence, len(names), count)


def combine(outcomes: Sequence[Outcome], weights: Sequence[float]) -> Outcome:
    """Weighted mean of outcomes on one scale; `weights` add up to one."""
    used = [(one, weight) for one, weight in zip(outcomes, weights, strict=True) if weight]
    return Outcome(
        outcomes[0].scale,
        tuple(value for one, _ in used for value in one.values),
        tuple(family for one, _ in used for family in one.families),
        tuple(weight * own for one, weight in used for own in one.weights),
        added([(one.influence, weight) for one, weight in used]),
        min(one.fewest for one, _ in used),
        min(one.answers for one, _ in used),
    )


def mean(outcomes: Sequence[Outcome]) -> Outcome:
    return combine(outcomes, [1 / len(outcomes)] * len(outcomes))


def added(influences: Sequence[tuple[Mapping[str, float], float]]) -> dict[str, float]:
    """Weighted sum of influences."""
    found: dict[str, float] = {}
    for influence, weight in influences:
        for family, pull in influence.items():
            found[family] = found.get(family, 0.0) + weight * pull
    return found
