"""Runs that differ in their seed alone, as one line: what a reader wants to see before every checkpoint."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from em_eval.intervals import Interval
from em_study.blocks import data_of, once, setting_of
from em_study.comparison import OUTCOMES
from em_study.means import mean_over_seeds
from em_study.names import treatment_of
from em_study.report.rows import last
from em_study.results import Row


@dataclass(frozen=True)
class Mean:
    """Means over the last checkpoints of `runs`; None where a run of them lacks the figure."""

    data: str
    treatment: str
    arm: str
    runs: int
    rate: Interval | None
    alignment: Interval | None
    shift: Interval | None
    held_out: float | None
    norm: float | None
    flatness: float | None
    sample: Row


def means_over_seeds(rows: Sequence[Row]) -> list[Mean]:
    """One line a treatment of each block of data, where any has several seeds; else none."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in once(last(rows)):
        penalty = str(row.manifest.config.get("penalty"))
        groups.setdefault((data_of(row), str(row.manifest.optimiser["name"]), setting_of(row), penalty), []).append(row)
    if all(len(group) < 2 for group in groups.values()):
        return []
    return [
        Mean(
            data_of(group[0]),
            treatment_of(group[0].manifest),
            group[0].arm,
            len(group),
            _mean(group, "rate"),
            _mean(group, "alignment"),
            _mean(group, "probe"),
            _plain(group, lambda row: row.manifest.loss.held_out),
            _plain(group, lambda row: row.manifest.dose.norm_ba if row.manifest.dose else None),
            _plain(group, lambda row: row.manifest.spectrum.fro_over_nuclear),
            group[0],
        )
        for group in groups.values()
    ]


def _mean(group: Sequence[Row], outcome: str) -> Interval | None:
    found = [x for row in group if (x := OUTCOMES[outcome](row)) is not None]
    return mean_over_seeds(found) if len(found) == len(group) else None


def _plain(group: Sequence[Row], read: Callable[[Row], float | None]) -> float | None:
    found = [x for row in group if (x := read(row)) is not None]
    return float(np.mean(found)) if len(found) == len(group) else None
