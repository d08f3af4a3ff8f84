"""Optimisers at equal training loss, held-out loss, ||BA|| or tokens: is it the optimiser, or the dose?

Each run is followed along its checkpoints; where it first crosses the level, its outcome is interpolated linearly
between the two checkpoints about the crossing. Losses and norms are comparable within one base model, dataset and
batch size, so that levels are per block.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np

from em_eval.intervals import Interval

FALLING = ("train_loss", "held_out_loss")


@dataclass(frozen=True)
class Point:
    """One checkpoint of a run: the matched quantity `x` and the outcome `y` with its interval."""

    step: int
    x: float
    y: Interval


@dataclass(frozen=True)
class Run:
    """One run's checkpoints; `y` of step 0 is the base model's."""

    label: str
    optimiser: str
    block: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class MatchedRun:
    """A run at the level.

    Attributes:
        outcome: interpolated, with an interval that holds however the two checkpoints' errors correlate; None where
            the level was not reached, and `why` says how.
        step: interpolated step of the crossing.
    """

    run: Run
    outcome: Interval | None
    step: float | None
    why: str = ""


@dataclass(frozen=True)
class MatchedContrast:
    """Mean outcome over the runs of `a` minus that of `b`, at the level."""

    a: str
    b: str
    difference: Interval


@dataclass(frozen=True)
class Matched:
    """One block at one level."""

    quantity: str
    block: str
    level: float
    runs: list[MatchedRun]
    contrasts: list[MatchedContrast]


def match(quantity: str, runs: Sequence[Run], level: float | None = None) -> list[Matched]:
    """Every block at `level`, or at the furthest level that all of its runs reach."""
    found = []
    for block in sorted({run.block for run in runs}):
        own = [run for run in runs if run.block == block and run.points]
        chosen = level if level is not None else furthest_common(quantity, own)
        if chosen is None:
            continue
        matched = [at_level(run, chosen) for run in own]
        found.append(Matched(quantity, block, chosen, matched, _contrasts(matched)))
    return found


def at_end(runs: Sequence[Run]) -> list[Matched]:
    """Every block at its runs' last checkpoints: the literal comparison, by the same rules as the matched ones."""
    found = []
    for block in sorted({run.block for run in runs}):
        own = [run for run in runs if run.block == block and run.points]
        last = [max(run.points, key=lambda point: point.step) for run in own]
        ends = [MatchedRun(run, point.y, point.step) for run, point in zip(own, last, strict=True)]
        found.append(Matched("end", block, float("nan"), ends, _contrasts(ends)))
    return found


def furthest_common(quantity: str, runs: Sequence[Run]) -> float | None:
    """The lowest loss, or the largest norm or token count, that every run reaches; None without two points each."""
    if not runs or any(len(run.points) < 2 for run in runs):
        return None
    if quantity in FALLING:
        return max(min(point.x for point in run.points) for run in runs)
    return min(max(point.x for point in run.points) for run in runs)


def at_level(run: Run, level: float) -> MatchedRun:
    """The run where it first crosses `level`."""
    points = sorted(run.points, key=lambda point: point.step)
    for before, after in pairwise(points):
        if min(before.x, after.x) <= level <= max(before.x, after.x):
            weight = 0.0 if after.x == before.x else (level - before.x) / (after.x - before.x)
            step = before.step + weight * (after.step - before.step)
            return MatchedRun(run, interpolate(before.y, after.y, weight), step)
    reached = f"from {points[0].x:.4g} to {points[-1].x:.4g}" if points else "without a checkpoint"
    return MatchedRun(run, None, None, f"never reaches {level:.4g} ({reached})")


def interpolate(before: Interval, after: Interval, weight: float) -> Interval:
    """(1 - weight) before + weight after. Ends add up likewise, which holds whatever the correlation of errors."""
    value, low, high = (
        (1 - weight) * first + weight * second
        for first, second in ((before.value, after.value), (before.low, after.low), (before.high, after.high))
    )
    method = before.method if before.method == after.method else f"{before.method}; {after.method}"
    return Interval(value, low, high, f"interpolated, {method}")


def _contrasts(matched: Sequence[MatchedRun]) -> list[MatchedContrast]:
    by_optimiser: dict[str, list[Interval]] = {}
    for one in matched:
        if one.outcome is not None:
            by_optimiser.setdefault(one.run.optimiser, []).append(one.outcome)
    return [
        MatchedContrast(a, b, difference(mean(by_optimiser[a]), mean(by_optimiser[b])))
        for a, b in combinations(sorted(by_optimiser), 2)
    ]


def mean(intervals: Sequence[Interval]) -> Interval:
    """Mean over runs. Their questions are the same, so that their errors may go together: reaches are averaged.

    With several runs the spread between them is the larger truth where it is wider: reach of a t interval over runs.
    """
    value = float(np.mean([one.value for one in intervals]))
    below = float(np.mean([one.value - one.low for one in intervals]))
    above = float(np.mean([one.high - one.value for one in intervals]))
    if len(intervals) > 1:
        from scipy.stats import t

        spread = float(np.std([one.value for one in intervals], ddof=1)) / len(intervals) ** 0.5
        reach = float(t.ppf(0.975, len(intervals) - 1)) * spread
        below, above = max(below, reach), max(above, reach)
    return Interval(value, value - below, value + above, "mean over runs")


def difference(a: Interval, b: Interval) -> Interval:
    """Newcombe's (1998) square-and-add interval; pairing by question is not used, which widens it."""
    value = a.value - b.value
    low = value - float(np.hypot(a.value - a.low, b.high - b.value))
    high = value + float(np.hypot(a.high - a.value, b.value - b.low))
    return Interval(value, low, high, "square and add")
