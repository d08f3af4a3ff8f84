"""From a study's results to its comparisons: contrasts, variance shares, loss and alignment, matched runs, extremes,
penalties.

Compared are runs on narrow data; benign arms and base models are not. A block is what must be equal for two
optimisers to be compared: base model, dataset, batch size and penalty. What an optimiser is set to (rate,
hyper-parameters, schedule, length) is its setting: one of several is not an optimiser's figure.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from em_core.errors import UserError
from em_core.manifest import Loss, Manifest, manifest_or_none
from em_eval.answers import Answer
from em_eval.rates import HEADLINE
from em_study.blocks import (
    NOT_COMPARED,
    SETTINGS,
    block_of,
    data_of,
    run_ends,
    seed_of,
    setting_of,
    several_settings,
    trained_to_its_end,
    without_penalty,
)
from em_study.contrasts import Ends, OptimiserContrast
from em_study.extremes import Extremes, extremes
from em_study.loss_alignment import LossAlignment, loss_alignment
from em_study.matched import Matched, Point, Run, at_end, match
from em_study.names import treatment_of
from em_study.outcome import ALIGNMENT, PROBE, RATE, Outcome, outcome_of
from em_study.penalty_effect import PenaltyEffect, penalty_effects
from em_study.results import Results, Row, hits_of, scores_of, shifts_of
from em_study.table import checkpoint_table
from em_study.variance import VarianceShares, variance_shares

AXES = ("optimiser", "base_model", "dataset", "batch_size", "penalty", "seed")


def _train_loss(manifest: Manifest) -> float | None:
    """At step 0, where nothing was trained, the held-out loss: rows as unseen as those it is to train on."""
    return manifest.loss.held_out if manifest.step == 0 else manifest.loss.train


QUANTITIES: dict[str, Callable[[Manifest], float | None]] = {
    "train_loss": _train_loss,
    "held_out_loss": lambda m: m.loss.held_out,
    "norm_ba": lambda m: m.dose.norm_ba if m.dose else 0.0,
    "tokens_seen": lambda m: float(m.tokens_seen),
}
OUTCOMES: dict[str, Callable[[Row], Outcome | None]] = {
    "rate": lambda row: outcome_of(*hits_of(row.answers), RATE),
    "alignment": lambda row: outcome_of(*scores_of(row.answers), ALIGNMENT),
    "probe": lambda row: outcome_of(*shifts_of(row.probe), PROBE),
}
COLUMNS = {"rate": "rate", "alignment": "mean_alignment", "probe": "probe_shift"}  # of the table of checkpoints
SUFFICES = {  # for an outcome to be compared: what one question says of its error is nothing
    "rate": "rate of two questions or more",
    "alignment": "alignment of two questions or more",
    "probe": "probe of two pairs or more",
}
TASKS = {"rate": "em", "alignment": "em", "probe": "preference"}  # that tell an outcome


@dataclass(frozen=True)
class Comparison:
    """Everything that compares optimisers; what could not be computed is named in `missing`."""

    contrasts: list[OptimiserContrast]
    variance: list[VarianceShares]
    loss_alignment: list[LossAlignment]
    matched: list[Matched]
    extremes: list[Extremes]
    penalties: list[PenaltyEffect]
    missing: list[str]


def compare(results: Results, outcome: str = "rate", levels: dict[str, float] | None = None) -> Comparison:
    """All comparisons of one evaluation's results.

    Args:
        outcome: of the matched comparisons, of runs without a penalty (of all, where none is without), and of the
            extremes: a key of `OUTCOMES`.
        levels: by quantity, instead of the furthest level that all runs of a block reach.
    """
    table = checkpoint_table({"": results})
    trained = table[~table["arm"].isin(NOT_COMPARED)] if len(table) else table
    missing = [*results.absent, *(f"{row.label}: {what}" for row in results.rows for what in row.missing)]
    missing += results.not_contrasted
    if not len(trained):
        return Comparison([], [], [], [], [], [], [*missing, "no trained checkpoint on narrow data"])
    run_ended = run_ends(results.rows)
    variance, lost = _variance(run_ended, trained)
    missing += lost
    regressions, lost = _regressions(results, trained)
    missing += lost
    plain = replace(results, rows=without_penalty(results.rows))
    missing += [
        f"{row.label}: no {SUFFICES['rate']}"
        for row in run_ends(plain.rows)
        if "em" not in row.not_asked and OUTCOMES["rate"](row) is None
    ]
    matched, lost = matched_by(plain, outcome, levels)
    matched = [*at_end(ended(plain, outcome)), *matched]
    missing += [text for text in lost if text not in missing]
    apart, lost = extremes_by(results, outcome, (levels or {}).get("held_out_loss"))
    missing += [text for text in lost if text not in missing]
    effects, lost = penalty_effects(run_ended)
    missing += lost
    return Comparison(results.contrasts, variance, regressions, matched, apart, effects, missing)


def _variance(ends: Sequence[Row], trained: pd.DataFrame) -> tuple[list[VarianceShares], list[str]]:
    """Of each outcome, over all runs where they are a balanced grid, else over those without a penalty; and what could
    not be computed."""
    found: list[VarianceShares] = []
    missing = []
    for name, column in COLUMNS.items():
        try:
            found.append(_shares(ends, trained, name, column))
        except UserError as error:
            missing.append(f"variance of {column}: {error}")
    return found, missing


def _shares(ends: Sequence[Row], trained: pd.DataFrame, name: str, column: str) -> VarianceShares:
    def of(rows: Sequence[Row]) -> VarianceShares:
        table = trained[trained["checkpoint"].isin({str(row.checkpoint) for row in rows})]
        known = [] if name == "probe" else [OUTCOMES[name](row) for row in rows]  # the probe samples nothing
        answers = [(own.values, own.families) for one in known if one is not None for own, _ in one.parts]
        return variance_shares(table, column, AXES, SETTINGS, answers)

    whole, plain = of(ends), without_penalty(ends)
    return whole if whole.balanced or len(plain) == len(ends) else of(plain)


def _regressions(results: Results, trained: pd.DataFrame) -> tuple[list[LossAlignment], list[str]]:
    """One a base model and loss, over runs without a penalty; and what could not be computed."""
    found: list[LossAlignment] = []
    missing = []
    asked = {str(row.checkpoint) for row in results.rows if "em" not in row.not_asked}
    plain = trained[(trained["penalty"] == "none") & trained["checkpoint"].isin(asked)]
    for base, part in plain.groupby("base_model", sort=True):
        for loss in ("train_loss", "held_out_loss"):
            try:
                found.append(loss_alignment(part, loss, Path(str(base)).name))
            except UserError as error:
                missing.append(f"alignment on {loss}, {Path(str(base)).name}: {error}")
    return found, missing


def matched_by(
    results: Results, outcome: str, levels: dict[str, float] | None = None
) -> tuple[list[Matched], list[str]]:
    """Every block at equal loss, norm and tokens, and what is missing, by name. Arguments as those of `compare`."""
    matched: list[Matched] = []
    missing: list[str] = []
    for quantity in QUANTITIES:
        runs, lost = runs_by(results, quantity, outcome)
        missing += [text for text in lost if text not in missing]
        found, short = match(quantity, runs, (levels or {}).get(quantity))
        missing += [f"matched {quantity}: {text}" for text in short]
        if not found:
            missing.append(f"matched {quantity}: no block with two optimisers that have two evaluated checkpoints each")
        matched += found
    return matched, missing


def extremes_by(results: Results, outcome: str, level: float | None = None) -> tuple[list[Extremes], list[str]]:
    """The two ends of all treatments of each block of data, and what is missing, by name."""
    followed, _ = runs_by(results, "held_out_loss", outcome)
    return extremes(ended(results, outcome), followed, level)


def runs_by(results: Results, quantity: str, outcome: str) -> tuple[list[Run], list[str]]:
    """Each finished run as points of (`quantity`, `outcome`) along its checkpoints, and what is missing, by name.

    At step 0 a run has the base model's outcome, and its own manifest's losses (on its own data). A checkpoint that
    was not asked for the outcome is no point, and is not missing.
    """
    read = QUANTITIES[quantity]
    bases = {  # once, so that runs at their step 0 are seen to be the same
        row.manifest.base.weights_sha256: (row.manifest, OUTCOMES[outcome](row))
        for row in results.rows
        if row.arm == "base"
    }
    points: dict[str, list[Point]] = {}
    runs: dict[str, Row] = {}
    unfinished: dict[str, str] = {}
    missing = []
    for row in results.rows:
        run_id = row.manifest.run_id
        if row.arm in NOT_COMPARED or run_id in unfinished:
            continue
        if run_id not in runs:
            if not trained_to_its_end(row):
                unfinished[run_id] = f"{_run_label(row)}: not trained to its end: in no comparison"
                continue
            runs[run_id] = row
            base = bases.get(row.manifest.base.weights_sha256)
            points[run_id] = _start(row, read, *base) if base else []
        if row.manifest.step in {point.step for point in points[run_id]}:
            continue  # two cells of one run
        x, y = read(row.manifest), OUTCOMES[outcome](row)
        if x is not None and y is not None:
            points[run_id].append(Point(row.manifest.step, x, y))
        elif x is None and (y is not None or TASKS[outcome] not in row.not_asked):
            missing.append(f"{row.label}: no {quantity}")
        elif TASKS[outcome] not in row.not_asked:
            missing.append(f"{row.label}: no {SUFFICES[outcome]}")
    return [
        Run(
            label=_run_label(row),
            optimiser=str(row.manifest.optimiser["name"]),
            block=block_of(row),
            points=tuple(points[run_id]),
            setting=setting_of(row),
            treatment=treatment_of(row.manifest),
            data=data_of(row),
            between=_between(row, read, {point.step for point in points[run_id]}),
            seed=seed_of(row),
        )
        for run_id, row in runs.items()
    ], [*unfinished.values(), *missing]


def ended(results: Results, outcome: str) -> list[Run]:
    """The finished runs that have the outcome at their last checkpoint."""
    ends = run_ends(results.rows)
    bases = [row for row in results.rows if row.arm == "base"]
    runs, _ = runs_by(replace(results, rows=[*bases, *ends]), "tokens_seen", outcome)
    return [run for run in runs if any(point.step > 0 for point in run.points)]


def _start(row: Row, read: Callable[[Manifest], float | None], base: Manifest, outcome: Outcome | None) -> list[Point]:
    """The run's step 0, with the base model's outcome; none where its `read` is not known.

    Without the run's own manifest of it, that of the base's row serves: no step has moved anything, and on the same
    held-out rows its loss is the same.
    """
    manifest = _known(row).get(0)
    if manifest is None:
        same_rows = (base.dataset.sha256, base.dataset.held_out_rows) == (
            row.manifest.dataset.sha256,
            row.manifest.dataset.held_out_rows,
        )
        manifest = base if same_rows else base.model_copy(update={"loss": Loss(train=None, window=0, held_out=None)})
    x = read(manifest)
    return [] if x is None or outcome is None else [Point(0, x, outcome)]


def _between(row: Row, read: Callable[[Manifest], float | None], evaluated: set[int]) -> tuple[tuple[int, float], ...]:
    """What the run's other checkpoints tell of `read`, by step."""
    found = {step: read(manifest) for step, manifest in _known(row).items() if step not in evaluated}
    return tuple((step, x) for step, x in sorted(found.items()) if x is not None)


def _known(row: Row) -> dict[int, Manifest]:
    """By step, the manifests of the row's run: of its folder, or those that its logs carry."""
    found = row.told or map(manifest_or_none, row.checkpoint.parent.glob("checkpoint-*"))
    return {manifest.step: manifest for manifest in found if manifest and manifest.run_id == row.manifest.run_id}


def _run_label(row: Row) -> str:
    """As the row is called in the tables, which tells every run apart."""
    return row.label.removesuffix(f", step {row.manifest.step}")


def rates_at_ends(
    ends: Sequence[Row], definition: str = HEADLINE, keeps: Callable[[Row, Answer], bool] = lambda row, answer: True
) -> Ends:
    """By `definition` the rate of each last checkpoint that has one of two questions or more; not of optimisers with
    several settings in a block, of which no one rate stands for the optimiser."""
    several = several_settings(ends)
    found: dict[str, dict[str, dict[int, Outcome]]] = {}
    for row in ends:
        kept = [answer for answer in row.answers if keeps(row, answer)]
        name, rate = str(row.manifest.optimiser["name"]), outcome_of(*hits_of(kept, definition), RATE)
        if rate is not None and name not in several:
            found.setdefault(name, {}).setdefault(block_of(row), {})[seed_of(row)] = rate
    return found
