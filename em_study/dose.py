"""Is it the optimiser, or the dose? Differences at the last checkpoints beside those at equal loss, norm and tokens."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from em_eval.intervals import Interval
from em_study import paired
from em_study.blocks import without_penalty
from em_study.comparison import ended, matched_by, runs_by
from em_study.matched import Matched, MatchedContrast, at_end
from em_study.paired import Difference
from em_study.results import Results
from em_study.statistics import holm

Cell = tuple[tuple[str, str], str]  # a pair of optimisers and a column
COLUMNS = {
    "end": "at the last checkpoint",
    "train_loss": "at equal training loss",
    "held_out_loss": "at equal held-out loss",
    "norm_ba": "at equal ‖BA‖",
    "tokens_seen": "at equal tokens",
}
# In words, what a value is multiplied by to be shown, its unit, and its decimals.
WORDS = {
    "rate": ("EM rate", 100.0, "points", 1),
    "alignment": ("mean alignment", 1.0, "points of 100", 1),
    "probe": ("probe shift", 1.0, "nats a token", 3),
}


@dataclass(frozen=True)
class OverBlocks:
    """Mean over blocks of the difference of a pair at one quantity's level.

    Attributes:
        p: two-sided, by Holm over the pairs at that quantity.
        seeds: how many tell how seeds spread; with one, that is not in the interval.
        settings: the most that one of the two has in a block; each then counts as a mean over them.
    """

    difference: Interval
    p: float
    blocks: int
    seeds: int
    settings: int = 1


@dataclass(frozen=True)
class DoseTable:
    """One outcome, all pairs of optimisers.

    Attributes:
        outcome: in words.
        cells: by (pair, column); a pair that no block has at that level has none.
        blocks: what the cells were averaged over, with every run at its level.
        straight: whether no run has a checkpoint between its first and its last, so that a straight line between
            the two is all that an interpolation has.
        too_few: quantities that no block could be matched on, a line each; `lost`: checkpoints without a figure.
    """

    outcome: str
    scale: float
    unit: str
    digits: int
    columns: dict[str, str]
    pairs: list[tuple[str, str]]
    cells: dict[Cell, OverBlocks]
    blocks: list[Matched]
    straight: bool
    too_few: list[str]
    lost: list[str]


def dose_table(results: Results, outcome: str) -> DoseTable:
    """The comparisons of `em compare` on one outcome, "rate", "alignment" or "probe", of runs without a penalty."""
    results = replace(results, rows=without_penalty(results.rows))
    matched, missing = matched_by(results, outcome)
    runs, _ = runs_by(results, "tokens_seen", outcome)
    cells = over_blocks([*at_end(ended(results, outcome)), *matched])
    words, scale, unit, digits = WORDS[outcome]
    followed = [run for run in runs if run.points]
    return DoseTable(
        outcome=words,
        scale=scale,
        unit=unit,
        digits=digits,
        columns=COLUMNS,
        pairs=sorted({pair for pair, _ in cells}),
        cells=cells,
        blocks=matched,
        straight=bool(matched) and all(len(run.points) <= 2 for run in followed),
        too_few=[line for line in missing if line.startswith("matched ")],
        lost=[line for line in missing if not line.startswith("matched ")],
    )


def over_blocks(matched: Sequence[Matched]) -> dict[Cell, OverBlocks]:
    """By pair and quantity: unweighted means over the blocks that have both."""
    found: dict[Cell, list[tuple[MatchedContrast, Difference]]] = {}
    for block in matched:
        for contrast in block.contrasts:
            if contrast.parts is not None:
                cell = ((contrast.a, contrast.b), block.quantity)
                found.setdefault(cell, []).append((contrast, contrast.parts))
    means = {cell: paired.over_blocks([parts for _, parts in each]) for cell, each in found.items()}
    judged = {cell: paired.judged(parts) for cell, parts in means.items()}
    adjusted: dict[Cell, float] = {}
    for quantity in {quantity for _, quantity in judged}:
        column = {cell: p for cell, (_, p) in judged.items() if cell[1] == quantity}
        adjusted |= dict(zip(column, holm(list(column.values())), strict=True))
    return {
        cell: OverBlocks(
            judged[cell][0],
            adjusted[cell],
            blocks=len(each),
            seeds=means[cell].seeds,
            settings=max(max(contrast.settings) for contrast, _ in each),
        )
        for cell, each in found.items()
    }
