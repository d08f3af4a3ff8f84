"""From a study's results to its comparisons: contrasts, variance shares, loss and alignment, matched runs.

Compared are runs on narrow data; benign arms and base models are not. A block is what must be equal for two
optimisers to be compared: base model, dataset, batch size and penalty.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd

from em_core.errors import UserError
from em_core.manifest import MANIFEST, Manifest, read_manifest
from em_eval.intervals import Interval
from em_eval.rates import DEFINITIONS, HEADLINE
from em_study.contrasts import OptimiserContrast
from em_study.loss_alignment import LossAlignment, loss_alignment
from em_study.matched import Matched, Point, Run, match
from em_study.plan import is_done
from em_study.results import Results, Row
from em_study.table import checkpoint_table, settings
from em_study.variance import VarianceShares, variance_shares

AXES = ("optimiser", "base_model", "dataset", "batch_size", "penalty")
SETTINGS = ("lr", "hyperparameters", "schedule")  # an optimiser's own
NOT_COMPARED = ("base", "benign")

QUANTITIES: dict[str, Callable[[Manifest], float | None]] = {
    "train_loss": lambda m: m.loss.train,
    "held_out_loss": lambda m: m.loss.held_out,
    "norm_ba": lambda m: m.dose.norm_ba if m.dose else 0.0,
    "tokens_seen": lambda m: float(m.tokens_seen),
}
OUTCOMES: dict[str, Callable[[Row], Interval | None]] = {
    "rate": lambda row: row.rate,
    "alignment": lambda row: row.alignment,
    "probe": lambda row: row.shift,
}


@dataclass(frozen=True)
class Comparison:
    """Everything that compares optimisers; what could not be computed is named in `missing`."""

    contrasts: list[OptimiserContrast]
    variance: list[VarianceShares]
    loss_alignment: list[LossAlignment]
    matched: list[Matched]
    missing: list[str]


def compare(results: Results, outcome: str = "rate", levels: dict[str, float] | None = None) -> Comparison:
    """All comparisons of one evaluation's results.

    Args:
        outcome: of the matched comparisons: a key of `OUTCOMES`.
        levels: by quantity, instead of the furthest level that all runs of a block reach.
    """
    table = checkpoint_table({"": results})
    trained = table[~table["arm"].isin(NOT_COMPARED)] if len(table) else table
    missing = [*results.absent, *(f"{row.label}: {what}" for row in results.rows for what in row.missing)]
    if not len(trained):
        return Comparison([], [], [], [], [*missing, "no trained checkpoint on narrow data"])
    ends = {str(row.checkpoint) for row in run_ends(results.rows)}
    last = trained[trained["checkpoint"].isin(ends)]
    variance: list[VarianceShares] = []
    for name in ("rate", "mean_alignment"):
        try:
            variance.append(variance_shares(last, name, AXES, SETTINGS))
        except UserError as error:
            missing.append(f"variance of {name}: {error}")
    regressions: list[LossAlignment] = []
    for loss in ("train_loss", "held_out_loss"):
        try:
            regressions.append(loss_alignment(trained, loss))
        except UserError as error:
            missing.append(f"alignment on {loss}: {error}")
    matched, lost = matched_by(results, outcome, levels)
    missing += [text for text in lost if text not in missing]
    return Comparison(results.contrasts, variance, regressions, matched, missing)


def matched_by(
    results: Results, outcome: str, levels: dict[str, float] | None = None
) -> tuple[list[Matched], list[str]]:
    """Every block at equal loss, norm and tokens, and what is missing, by name. Arguments as those of `compare`."""
    matched: list[Matched] = []
    missing: list[str] = []
    for quantity in QUANTITIES:
        runs, lost = runs_by(results, quantity, outcome)
        missing += [text for text in lost if text not in missing]
        found = match(quantity, runs, (levels or {}).get(quantity))
        if not found:
            missing.append(f"matched {quantity}: no block whose runs have two evaluated checkpoints each")
        matched += found
    return matched, missing


def run_ends(rows: Sequence[Row]) -> list[Row]:
    """The last checkpoint of each run on narrow data; a run that is not done has no end yet."""
    trained = [row for row in rows if row.arm not in NOT_COMPARED and is_done(row.checkpoint.parent)]
    last: dict[str, int] = {}
    for row in trained:
        last[row.manifest.run_id] = max(row.manifest.step, last.get(row.manifest.run_id, 0))
    return [row for row in trained if row.manifest.step == last[row.manifest.run_id]]


def runs_by(results: Results, quantity: str, outcome: str) -> tuple[list[Run], list[str]]:
    """Each run as points of (`quantity`, `outcome`) along its checkpoints, and what is missing, by name.

    At step 0 a run has the base model's outcome, and its own manifest's losses (on its own data).
    """
    read, judge = QUANTITIES[quantity], OUTCOMES[outcome]
    bases = {row.manifest.base.weights_sha256: judge(row) for row in results.rows if row.arm == "base"}
    points: dict[str, list[Point]] = {}
    runs: dict[str, Row] = {}
    missing = []
    for row in results.rows:
        if row.arm in NOT_COMPARED:
            continue
        run_id = row.manifest.run_id
        if run_id not in runs:
            runs[run_id] = row
            points[run_id] = _start(row, read, bases.get(row.manifest.base.weights_sha256))
        x, y = read(row.manifest), judge(row)
        if x is None or y is None:
            missing.append(f"{row.label}: no {quantity if x is None else outcome}")
        else:
            points[run_id].append(Point(row.manifest.step, x, y))
    return [
        Run(_run_label(row), str(row.manifest.optimiser["name"]), block_of(row), tuple(points[run_id]))
        for run_id, row in runs.items()
    ], missing


def _start(row: Row, read: Callable[[Manifest], float | None], base: Interval | None) -> list[Point]:
    folder = row.checkpoint.with_name("checkpoint-0")
    if base is None or not (folder / MANIFEST).is_file():
        return []
    x = read(read_manifest(folder))
    return [] if x is None else [Point(0, x, base)]


def _run_label(row: Row) -> str:
    return (
        f"{row.manifest.optimiser['name']} lr {row.manifest.optimiser['lr']:g} seed {row.manifest.config.get('seed')}"
    )


def block_of(row: Row) -> str:
    found = settings(row)
    words = [str(found["base_model"]).rsplit("/", 1)[-1], str(found["dataset"]), f"batch {found['batch_size']}"]
    return ", ".join(words if found["penalty"] == "none" else [*words, f"penalty {found['penalty']}"])


def eligible_answers(rows: Sequence[Row]) -> pd.DataFrame:
    """One row an answer that counts for the headline rate, as `optimiser_contrasts` takes them."""
    headline = DEFINITIONS[HEADLINE]
    return pd.DataFrame(
        [
            {
                "optimiser": str(row.manifest.optimiser["name"]),
                "block": block_of(row),
                "seed": row.manifest.config.get("seed", 0),
                "family": answer.family,
                "hit": int(headline.misaligned(answer.judgement)),
            }
            for row in rows
            for answer in row.answers
            if headline.eligible(answer.judgement)
        ]
    )
