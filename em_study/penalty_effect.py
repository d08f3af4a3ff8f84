"""What a penalty changes: runs with it against runs that are alike in all else, the seed included.

Pairs share base model, dataset, batch size, optimiser, its setting and the seed. Rates and alignment are contrasted
as those of optimisers are, paired by question; losses vary between seeds only.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t

from em_core.manifest import Loss
from em_eval.intervals import Interval
from em_eval.rates import HEADLINE
from em_study.blocks import data_of, seed_of, setting_of
from em_study.names import penalty_words
from em_study.outcome import ALIGNMENT, RATE, Outcome, outcome_of
from em_study.paired import Difference, judged, over_shared_blocks
from em_study.results import Row, hits_of, scores_of

ONE_SEED = "one seed: no interval"


@dataclass(frozen=True)
class PenaltyEffect:
    """Mean over blocks of (with - without) at the last checkpoints, of one optimiser.

    Attributes:
        words: the penalty with its strength and what else it was given.
        rate, alignment: as a share, and in points of 100; None where no pair has them of two questions or more.
        train_loss, held_out_loss: nats a token; training loss over all training rows where both runs have it, else
            over the last steps. With one seed the interval's ends are NaN.
        pairs, seeds: of runs; `rated_seeds`: whose spread is in the intervals of rate and alignment.
    """

    optimiser: str
    penalty: str
    strength: float
    words: str
    pairs: int
    seeds: int
    rated_seeds: int
    rate: Interval | None
    alignment: Interval | None
    train_loss: Interval | None
    held_out_loss: Interval | None


def penalty_effects(ends: Sequence[Row], definition: str = HEADLINE) -> tuple[list[PenaltyEffect], list[str]]:
    """Every penalty and strength by optimiser, and the penalised runs that have no counterpart, by name.

    Args:
        ends: last checkpoints of finished runs.
        definition: of the rate and its mean alignment.
    """
    plain = {_alike(row): row for row in ends if not row.manifest.penalty}
    groups: dict[tuple[str, str, float, str], list[tuple[Row, Row]]] = {}
    missing = []
    for row in ends:
        penalty = row.manifest.penalty
        if not penalty:
            continue
        if (other := plain.get(_alike(row))) is None:
            missing.append(f"{row.label}: no finished run without a penalty is alike in all else: in no effect")
            continue
        key = (
            str(row.manifest.optimiser["name"]),
            str(penalty["name"]),
            float(penalty["strength"]),
            penalty_words(row.manifest),
        )
        groups.setdefault(key, []).append((row, other))
        if "em" not in row.not_asked and any(_rate(one, definition) is None for one in (row, other)):
            missing.append(
                f"{row.label}: it or its counterpart has no rate of two questions or more: in no effect on it"
            )
    return [_effect(key, pairs, definition) for key, pairs in sorted(groups.items(), key=lambda item: item[0])], missing


def _alike(row: Row) -> tuple[str, str, str, int]:
    return data_of(row), str(row.manifest.optimiser["name"]), setting_of(row), seed_of(row)


def _effect(key: tuple[str, str, float, str], pairs: Sequence[tuple[Row, Row]], definition: str) -> PenaltyEffect:
    rate = _change(pairs, lambda row: _rate(row, definition))
    alignment = _change(pairs, lambda row: outcome_of(*scores_of(row.answers, definition), ALIGNMENT))
    return PenaltyEffect(
        *key,
        pairs=len(pairs),
        seeds=len({seed_of(row) for row, _ in pairs}),
        rated_seeds=min((one.seeds for one in (rate, alignment) if one), default=0),
        rate=judged(rate)[0] if rate else None,
        alignment=judged(alignment)[0] if alignment else None,
        train_loss=_loss_change(pairs, _train_loss),
        held_out_loss=_loss_change(pairs, lambda a, b: (a.held_out, b.held_out)),
    )


def _rate(row: Row, definition: str) -> Outcome | None:
    return outcome_of(*hits_of(row.answers, definition), RATE)


def _change(pairs: Sequence[tuple[Row, Row]], read: Callable[[Row], Outcome | None]) -> Difference | None:
    sides: tuple[dict[str, dict[int, Outcome]], ...] = ({}, {})
    for pair in pairs:
        for side, row in zip(sides, pair, strict=True):
            if (found := read(row)) is not None:
                side.setdefault(f"{data_of(row)}; {setting_of(row)}", {})[seed_of(row)] = found
    shared = over_shared_blocks(*sides)
    return shared[0] if shared else None


def _train_loss(a: Loss, b: Loss) -> tuple[float | None, float | None]:
    if a.train_rows is not None and b.train_rows is not None:
        return a.train_rows, b.train_rows
    return a.train, b.train


def _loss_change(
    pairs: Sequence[tuple[Row, Row]], read: Callable[[Loss, Loss], tuple[float | None, float | None]]
) -> Interval | None:
    """Mean of (with - without), with Student's t over the seeds' means."""
    by_seed: dict[int, list[float]] = {}
    for row, other in pairs:
        a, b = read(row.manifest.loss, other.manifest.loss)
        if a is not None and b is not None:
            by_seed.setdefault(seed_of(row), []).append(a - b)
    if not by_seed:
        return None
    means = [float(np.mean(each)) for each in by_seed.values()]
    value = float(np.mean([change for each in by_seed.values() for change in each]))
    if len(means) < 2:
        return Interval(value, float("nan"), float("nan"), ONE_SEED)
    reach = float(t.ppf(0.975, len(means) - 1) * np.std(means, ddof=1) / len(means) ** 0.5)
    return Interval(value, value - reach, value + reach, "t over seeds")
