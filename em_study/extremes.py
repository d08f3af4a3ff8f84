"""How far apart can a trainer drive misalignment on the same model, data and batch size?

Every choice counts as a treatment: optimiser, rate, momentum and other hyper-parameters, schedule, penalty. Of each
block of data the treatments with the lowest and the highest outcome are compared, at the last checkpoints and at one
common held-out loss. Picking the two ends of many exaggerates their difference, which its interval allows for.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import studentized_range, t

from em_eval.intervals import Interval
from em_study import paired
from em_study.matched import MatchedRun, Run, at_level, furthest_common
from em_study.means import mean_over_seeds
from em_study.outcome import Outcome, mean

LEARNS = 0.5  # of the best run's fall in held-out loss: runs that fall less do not set the common level
TUKEY = "studentised range"


@dataclass(frozen=True)
class Reached:
    """One treatment: its outcome as a mean over the `runs` that count, which differ in their seeds.

    Attributes:
        answers: the fewest that stand behind one of its checkpoints.
    """

    treatment: str
    outcome: Interval
    runs: int
    answers: int


@dataclass(frozen=True)
class Extremes:
    """The two ends of the treatments of one block of data.

    Attributes:
        level: the common held-out loss; None at the last checkpoints.
        difference: highest minus lowest, with an interval for the range of all `treatments` (Tukey 1949).
        short: runs that never reach the level, and why.
    """

    data: str
    level: float | None
    lowest: Reached
    highest: Reached
    difference: Interval
    treatments: int
    short: tuple[str, ...] = ()


def extremes(
    ends: Sequence[Run], followed: Sequence[Run], level: float | None = None
) -> tuple[list[Extremes], list[str]]:
    """Each block of data with several treatments, at the end and at one held-out loss; and what is missing, by name.

    Args:
        ends: finished runs, with the outcome at their last checkpoints.
        followed: the same along their held-out loss.
        level: the held-out loss; default: the furthest that every run reaches whose own falls at least half as much
            as the best one's.
    """
    found, missing = [], []
    for data in sorted({run.data for run in [*ends, *followed]}):
        last = [(run, max(run.points, key=lambda point: point.step)) for run in ends if run.data == data and run.points]
        found += _ends_of(data, None, [MatchedRun(run, point.y, point.step) for run, point in last])
        own = [run for run in followed if run.data == data]
        if len({run.treatment for run in own}) < 2:
            continue
        chosen = _common(own) if level is None else level
        if chosen is None:
            missing.append(f"extremes at equal held-out loss, {data}: no two runs whose loss falls along checkpoints")
            continue
        both = _ends_of(data, chosen, [at_level(run, chosen) for run in own])
        if not both:
            missing.append(f"extremes at equal held-out loss, {data}: fewer than two treatments reach {chosen:.4g}")
        found += both
    return found, missing


def _common(runs: Sequence[Run]) -> float | None:
    falls = {run.label: _fall(run) for run in runs}
    best = max(falls.values())
    learning = [run for run in runs if best > 0 and falls[run.label] >= LEARNS * best]
    return furthest_common("held_out_loss", learning) if len(learning) > 1 else None


def _fall(run: Run) -> float:
    """From the first checkpoint to the lowest; 0 where there is no second."""
    losses = [x for _, x in run.path]
    return losses[0] - min(losses) if losses else 0.0


def _ends_of(data: str, level: float | None, runs: Sequence[MatchedRun]) -> list[Extremes]:
    """One entry, or none where there are fewer than two treatments."""
    outcomes: dict[str, list[Outcome]] = {}
    for one in runs:
        if one.outcome is not None:
            outcomes.setdefault(one.run.treatment, []).append(one.outcome)
    if len(outcomes) < 2:
        return []
    ranked = sorted(
        (
            Reached(name, mean_over_seeds(seeds), len(seeds), min(one.answers for one in seeds))
            for name, seeds in outcomes.items()
        ),
        key=lambda reached: reached.outcome.value,
    )
    lowest, highest = ranked[0], ranked[-1]
    short = tuple(f"{one.run.label}: {one.why}" for one in runs if one.outcome is None)
    apart = _range(highest, lowest, outcomes)
    return [Extremes(data, level, lowest, highest, apart, len(outcomes), short)]


def _range(highest: Reached, lowest: Reached, outcomes: dict[str, list[Outcome]]) -> Interval:
    """Highest minus lowest of several treatments: Tukey's honest difference, of the same questions.

    The error is that of question families and, where treatments have several seeds, of seeds together, whose variance
    within treatments is pooled; by the studentised range over families, and at least that over seeds. Where a side
    rests on few events or families, square and add is stretched likewise.
    """
    groups, count = list(outcomes.values()), len(outcomes)
    sides = [{0: mean(outcomes[reached.treatment])} for reached in (highest, lowest)]
    parts = paired.difference(*sides)
    assert parts is not None  # both sides are under one key: seeds are added here
    variance, seeds = paired.pooled_variance([[one.value for one in group] for group in groups])
    of_seeds = float(np.sqrt(variance * (1 / highest.runs + 1 / lowest.runs)))
    error = float(np.hypot(parts.family_error, of_seeds))
    reach = max(_tukey(count, parts.freedom) * error, paired.unseen(parts, error))
    below = above = max(reach, _tukey(count, seeds) * of_seeds) if seeds else reach
    if parts.few:
        stretch = _tukey(count, parts.freedom) / float(t.ppf(0.975, parts.freedom))
        added = paired.square_and_add(parts.first.alone, parts.second.alone, paired.correlation(parts))
        below, above = max(below, stretch * added[0]), max(above, stretch * added[1])
    most = parts.first.scale.width
    ends = max(parts.value - below, -most), min(parts.value + above, most)
    return Interval(parts.value, *ends, f"{TUKEY} of {count} treatments")


def _tukey(count: int, freedom: float) -> float:
    """What a t quantile is for two, for the range of `count` treatments."""
    return float(studentized_range.ppf(0.95, count, freedom) / np.sqrt(2))
