"""Optimisers at equal training loss, held-out loss, ||BA|| or tokens: is it the optimiser, or the dose?

Each run is followed along its checkpoints to where it first crosses the level, by all checkpoints that tell the
matched quantity; its outcome there is interpolated linearly in steps between the two evaluated ones about it. Losses
and norms are comparable within one base model, dataset and batch size, so that levels are per block; and per pair of
optimisers, so that a run which does not learn makes the comparisons of its own optimiser trivial and no others. Two
optimisers are compared on the same questions and over the seeds that both have (`em_study.paired`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise

from em_eval.intervals import Interval
from em_study.outcome import Outcome, combine, mean
from em_study.paired import Difference, difference, judged
from em_study.statistics import holm

FALLING = ("train_loss", "held_out_loss")


@dataclass(frozen=True)
class Point:
    """One checkpoint of a run: the matched quantity `x` and the outcome `y`."""

    step: int
    x: float
    y: Outcome


@dataclass(frozen=True)
class Run:
    """One run's evaluated checkpoints, in order; `y` of step 0 is the base model's.

    Attributes:
        between: (step, x) of further checkpoints, whose outcome nobody asked.
        setting: what the optimiser was set to; runs of one setting differ in their `seed`.
        treatment, data: optimiser, setting and penalty in words, and what of its block is none of them.
    """

    label: str
    optimiser: str
    block: str
    points: tuple[Point, ...]
    setting: str = ""
    treatment: str = ""
    data: str = ""
    between: tuple[tuple[int, float], ...] = ()
    seed: int = 0

    @property
    def path(self) -> list[tuple[int, float]]:
        """(step, x) of every checkpoint from the first evaluated one to the last."""
        evaluated = {point.step: point.x for point in self.points}
        ends = (min(evaluated), max(evaluated)) if evaluated else (0, -1)
        inside = {step: x for step, x in self.between if ends[0] < step < ends[1]}
        return sorted((inside | evaluated).items())


@dataclass(frozen=True)
class MatchedRun:
    """A run at the level.

    Attributes:
        outcome: interpolated; None where the level was not reached, and `why` says how.
        step: interpolated step of the crossing.
    """

    run: Run
    outcome: Outcome | None
    step: float | None
    why: str = ""


@dataclass(frozen=True)
class MatchedContrast:
    """Mean outcome of `a` minus that of `b` at the level, over the seeds that both have; settings of one seed count
    alike.

    Attributes:
        difference: None where there is no such seed. `p`: two-sided, by Holm over the pairs of the block.
        level: NaN at the runs' ends. `set_by`: the run that gets no further, and whether it turns round there; empty
            where the level was given.
        runs: of both; `settings`: how many of each reach the level.
        parts: what the difference is made of, for means over blocks.
    """

    a: str
    b: str
    difference: Interval | None
    level: float
    runs: tuple[MatchedRun, ...]
    settings: tuple[int, int] = (1, 1)
    set_by: str = ""
    p: float | None = None
    parts: Difference | None = None

    @property
    def over(self) -> str:
        """How many runs and seeds the difference is a mean over, in words."""
        runs = sum(one.outcome is not None for one in self.runs)
        seeds = self.parts.seeds if self.parts else 0
        return f"{runs} runs, {seeds} seed{'' if seeds == 1 else 's'}"


@dataclass(frozen=True)
class Matched:
    """One block matched on one quantity, every pair at its own level."""

    quantity: str
    block: str
    contrasts: list[MatchedContrast]


def match(quantity: str, runs: Sequence[Run], level: float | None = None) -> tuple[list[Matched], list[str]]:
    """Every pair of optimisers in every block at `level`, or at the furthest level that all runs of the pair reach.

    Returns also a line for each run that was left out, because it has fewer than two checkpoints to follow.
    """
    found, short = [], []
    for block, own in _blocks(runs).items():
        followed = [run for run in own if len(run.points) > 1]
        short += [
            f"{run.label} ({block}): {len(run.points)} of the two checkpoints that following it takes"
            for run in own
            if len(run.points) < 2
        ]
        contrasts = []
        for a, b in combinations(sorted({run.optimiser for run in followed}), 2):
            both = [run for run in followed if run.optimiser in (a, b)]
            limit = min(both, key=lambda run: _furthest(quantity, run)) if level is None else None
            chosen = level if limit is None else abs(_furthest(quantity, limit))
            assert chosen is not None
            set_by = "" if limit is None else _set_by(quantity, limit)
            contrasts.append(_contrast(a, b, chosen, [at_level(run, chosen) for run in both], set_by))
        if contrasts:
            found.append(Matched(quantity, block, _adjusted(contrasts)))
    return found, short


def at_end(runs: Sequence[Run]) -> list[Matched]:
    """Every block at its runs' last checkpoints: the literal comparison, by the same rules as the matched ones.

    Optimisers with several settings in the block are left out: at the end those are not at one dose.
    """
    found = []
    for block, own in _blocks(runs).items():
        ends = []
        for run in own:
            if run.points and len({other.setting for other in own if other.optimiser == run.optimiser}) == 1:
                last = max(run.points, key=lambda point: point.step)
                ends.append(MatchedRun(run, last.y, last.step))
        pairs = combinations(sorted({one.run.optimiser for one in ends}), 2)
        contrasts = [
            _contrast(a, b, float("nan"), [one for one in ends if one.run.optimiser in (a, b)], "") for a, b in pairs
        ]
        if contrasts:
            found.append(Matched("end", block, _adjusted(contrasts)))
    return found


def furthest_common(quantity: str, runs: Sequence[Run]) -> float | None:
    """The lowest loss, or the largest norm or token count, that every run reaches; None without two points each."""
    if not runs or any(len(run.points) < 2 for run in runs):
        return None
    return abs(min(_furthest(quantity, run) for run in runs))


def _furthest(quantity: str, run: Run) -> float:
    """How far a run gets, larger being further: losses, which fall, are negative."""
    sign = -1 if quantity in FALLING else 1
    return max(sign * x for _, x in run.path)


def _set_by(quantity: str, run: Run) -> str:
    """Its label; a level at which a run turns round is crossed elsewhere by its other seeds, which widens intervals."""
    sign = -1 if quantity in FALLING else 1
    turns = sign * run.path[-1][1] < _furthest(quantity, run) > sign * run.path[0][1]
    return f"{run.label}, where it turns round" if turns else run.label


def _blocks(runs: Sequence[Run]) -> dict[str, list[Run]]:
    return {block: [run for run in runs if run.block == block] for block in sorted({run.block for run in runs})}


def at_level(run: Run, level: float) -> MatchedRun:
    """The run where it first crosses `level`."""
    path = run.path
    for (before, x), (after, then) in pairwise(path):
        if min(x, then) <= level <= max(x, then):
            step = before + (0.0 if then == x else (level - x) / (then - x)) * (after - before)
            return MatchedRun(run, _outcome_at(run, step), step)
    reached = f"from {path[0][1]:.4g} to {path[-1][1]:.4g}" if path else "without a checkpoint"
    return MatchedRun(run, None, None, f"never reaches {level:.4g} ({reached})")


def _outcome_at(run: Run, step: float) -> Outcome:
    """Between the two evaluated checkpoints about `step`, which lies within them."""
    points = sorted(run.points, key=lambda point: point.step)
    before, after = next(pair for pair in pairwise(points) if pair[0].step <= step <= pair[1].step)
    weight = (step - before.step) / (after.step - before.step)
    return combine([before.y, after.y], [1 - weight, weight])


def _contrast(a: str, b: str, level: float, runs: Sequence[MatchedRun], set_by: str) -> MatchedContrast:
    sides = {name: _by_seed([one for one in runs if one.run.optimiser == name]) for name in (a, b)}
    parts = difference(sides[a], sides[b])
    apart, p = judged(parts) if parts else (None, None)
    listed = tuple(replace(one, outcome=None, why=why) if (why := _left_out(one, sides)) else one for one in runs)
    counted = [one for one in listed if one.outcome is not None]
    first, second = (len({one.run.setting for one in counted if one.run.optimiser == name}) for name in (a, b))
    return MatchedContrast(a, b, apart, level, listed, (first, second), set_by, p, parts)


def _by_seed(runs: Sequence[MatchedRun]) -> dict[int, Outcome]:
    """One outcome a seed: the mean over settings, each the mean over its runs; seeds that all settings have."""
    found: dict[int, dict[str, list[Outcome]]] = {}
    for one in runs:
        if one.outcome is not None:
            found.setdefault(one.run.seed, {}).setdefault(one.run.setting, []).append(one.outcome)
    every = {setting for settings in found.values() for setting in settings}
    return {
        seed: mean([mean(same) for same in settings.values()])
        for seed, settings in found.items()
        if len(settings) == len(every)
    }


def _left_out(one: MatchedRun, sides: dict[str, dict[int, Outcome]]) -> str:
    """Why a run that is at the level does not count; empty where it does."""
    own = sides[one.run.optimiser]
    (other,) = (side for name, side in sides.items() if name != one.run.optimiser)
    if one.outcome is None or not other:
        return ""
    if one.run.seed not in own:
        return "has a seed that not all settings of its optimiser have there"
    return "" if one.run.seed in other else "has a seed that the other lacks there"


def _adjusted(contrasts: Sequence[MatchedContrast]) -> list[MatchedContrast]:
    """With p by Holm over those that have one."""
    known = {(one.a, one.b): one.p for one in contrasts if one.p is not None}
    adjusted = dict(zip(known, holm(list(known.values())), strict=True))
    return [replace(one, p=adjusted.get((one.a, one.b))) for one in contrasts]
