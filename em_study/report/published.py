"""Published against measured: the figures of a paper that a study reconstructs, with criteria stated beforehand.

The figures are data (`published.yaml`); each names one of the functions here, which measures it on the study's runs
at their last checkpoints. Rates and alignment are by the paper's own definition, means over runs unweighted as there.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from pydantic import BaseModel, ConfigDict

from em_core.errors import UserError
from em_eval.intervals import Interval
from em_eval.rates import rate
from em_study.blocks import NOT_COMPARED, block_of, run_ends, without_penalty
from em_study.comparison import rates_at_ends
from em_study.contrasts import OptimiserContrast, optimiser_contrasts
from em_study.execute import LEFT_OUT
from em_study.loss_alignment import LossAlignment, loss_alignment
from em_study.names import display_name
from em_study.penalty_effect import PenaltyEffect, penalty_effects
from em_study.report.terminal import with_range
from em_study.results import Results, Row
from em_study.table import settings

FIGURES = Path(__file__).with_name("published.yaml")
DEFINITION = "evil_spectra"
PENALTY = "spectral"
FAMILY_SPREAD = 10.6  # points: a third of the published spread over optimisers, as in the criterion of the sweep
COST = 0.02  # nats: of several strengths, the largest that costs no more training loss is compared


class Figure(BaseModel):
    """One published figure; see `published.yaml`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    what: str
    place: str
    published: str
    measure: str
    of: str | None = None
    criterion: str | None = None


class Published(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str
    figures: tuple[Figure, ...]


@dataclass(frozen=True)
class Measured:
    """What a study found; `agrees` is None where there is no criterion or the data do not decide it."""

    text: str
    agrees: bool | None = None


@dataclass(frozen=True)
class Line:
    """A line of the table; `verdict` is in words."""

    figure: Figure
    measured: str
    verdict: str


@dataclass(frozen=True)
class Assessment:
    """The table, and what of the published this study did not run."""

    source: str
    lines: list[Line]
    not_run: list[str]


@dataclass(frozen=True)
class Evidence:
    """What the measures read: `ends` has one row a finished run on narrow data; the others are by the paper's rate."""

    ends: pd.DataFrame
    contrasts: list[OptimiserContrast]
    penalties: list[PenaltyEffect]


def assess(results: Results) -> Assessment | None:
    """The study's figures beside those of the paper that it reproduces; None where it reproduces none that we know."""
    known = read_published()
    if results.reproduces != known.source:
        return None
    ends = run_ends(results.rows)
    contrasts = optimiser_contrasts(rates_at_ends(without_penalty(ends), DEFINITION))
    evidence = Evidence(_table(ends), contrasts, penalty_effects(ends, DEFINITION)[0])
    lines, not_run = [], []
    partly = any(LEFT_OUT not in line for line in results.absent)
    guessed = any(one.source in ("guess", "follow-up") for one in results.assumptions)
    for figure in known.figures:
        measure = MEASURES[figure.measure]
        found = (
            (measure(evidence) if figure.of is None else measure(evidence, figure.of)) if len(evidence.ends) else None
        )
        if found is None:
            not_run.append(figure.what)
        else:
            lines.append(Line(figure, found.text, _verdict(figure, found, guessed, partly)))
    return Assessment(known.source, lines, not_run)


@cache
def read_published() -> Published:
    return Published.model_validate(yaml.safe_load(FIGURES.read_text(encoding="utf-8")))


def _verdict(figure: Figure, found: Measured, guessed: bool, partly: bool) -> str:
    if figure.criterion is None:
        words = "not judged"
    else:
        words = {True: "agrees", False: "differs", None: "undecided"}[found.agrees] + (" so far" if partly else "")
    return f"reconstruction: {words}" if guessed else words


def _table(rows: list[Row]) -> pd.DataFrame:
    """Trained rows on narrow data, with rate (in %) and alignment by the paper's definition."""
    return pd.DataFrame([_facts(row) for row in rows if row.arm not in NOT_COMPARED])


def _facts(row: Row) -> dict[str, Any]:
    found = rate(DEFINITION, row.answers)
    penalty = row.manifest.penalty or {}
    known = row.answers and found.eligible
    return settings(row) | {
        "base_name": Path(row.manifest.base.id).name,
        "block": block_of(row),
        "rate": 100 * found.value if known and found.value is not None else np.nan,
        "mean_alignment": found.mean_alignment if found.mean_alignment is not None else np.nan,
        "train_loss": row.manifest.loss.train if row.manifest.loss.train is not None else np.nan,
        "code": 100 * row.outcomes.get("code", 0) / row.total if row.total else np.nan,
        "fro_over_nuclear": row.manifest.spectrum.fro_over_nuclear,
        "penalty_name": penalty.get("name", "none"),
        "strength": penalty.get("strength", 0.0),
    }


def _plain(evidence: Evidence) -> pd.DataFrame:
    """Runs without a penalty that have a rate."""
    ends = evidence.ends
    return ends[(ends["penalty_name"] == "none") & ends["rate"].notna()]


def _sweep(evidence: Evidence) -> pd.DataFrame:
    """`_plain` of a study made like the initial sweep: several models, several optimisers, one rate each; else none."""
    data = _plain(evidence)
    like = data["base_name"].nunique() > 1 and data["optimiser"].nunique() > 1
    return data if like and data.groupby("optimiser")["lr"].nunique().max() == 1 else data.iloc[:0]


AXES = ("optimiser", "base_name", "dataset", "batch_size")


def _means(evidence: Evidence, column: str, among: Collection[str] | None = None) -> tuple[dict[str, float], str]:
    """Mean rate of each level of `column`, or of those `among` them, over the cells that all of them have, so that
    each stands for the same models and data; and how many cells those are, in words."""
    data = _sweep(evidence)
    return _over_shared(data if among is None else data[data[column].isin(among)], column, "rate")


def _over_shared(data: pd.DataFrame, column: str, value: str) -> tuple[dict[str, float], str]:
    if data.empty:
        return {}, ""
    rest = [axis for axis in AXES if axis != column]
    shared = data.pivot_table(index=rest, columns=column, values=value).dropna()
    if shared.empty:
        return {}, ""
    means = {str(name): float(mean) for name, mean in shared.mean().items()}
    return means, f"over {len(shared)} shared cell{'' if len(shared) == 1 else 's'}"


def rate_of(evidence: Evidence, optimiser: str) -> Measured | None:
    data = _sweep(evidence)
    return _mean_of(data[data["optimiser"] == optimiser]["rate"])


def rate_of_base(evidence: Evidence, base: str) -> Measured | None:
    data = _sweep(evidence)
    return _mean_of(data[data["base_name"] == base]["rate"])


def alignment_of_base(evidence: Evidence, base: str) -> Measured | None:
    data = _sweep(evidence)
    return _mean_of(data[data["base_name"] == base]["mean_alignment"])


def code_share(evidence: Evidence, optimiser: str) -> Measured | None:
    data = _sweep(evidence)
    return _mean_of(data[(data["optimiser"] == optimiser) & (data["dataset"] == "insecure")]["code"])


def _mean_of(values: "pd.Series[float]") -> Measured | None:
    """With the range over runs, which is no interval."""
    values = values.dropna()
    if not len(values):
        return None
    if len(values) == 1:
        return Measured(f"{values.mean():.1f} (one run)")
    return Measured(f"{values.mean():.1f} ({len(values)} runs, {values.min():.1f} to {values.max():.1f})")


def order(evidence: Evidence) -> Measured | None:
    means, over = _means(evidence, "optimiser")
    if not {"muon", "lion"} <= set(means) or not {"adam", "adamw"} & set(means):
        return None
    ranked = sorted(means, key=lambda name: means[name])
    text = " < ".join(f"{display_name(name)} {means[name]:.1f} %" for name in ranked) + f" ({over})"
    if (ranked[0], ranked[-1]) != ("muon", "lion"):
        return Measured(text, False)
    apart = any({one.a, one.b} == {"muon", "lion"} and one.distinguishable for one in evidence.contrasts)
    return Measured(text if apart else f"{text}; Muon and Lion are not distinguishable", True if apart else None)


def lion_over_muon(evidence: Evidence) -> Measured | None:
    means, over = _means(evidence, "optimiser", among=("muon", "lion"))
    if len(means) < 2:
        return None
    if means["muon"] == 0:
        return Measured(f"no misaligned answer under Muon ({over})", None)
    ratio = means["lion"] / means["muon"]
    return Measured(f"{ratio:.1f} ({over})", ratio > 3)


def adam_adamw(evidence: Evidence) -> Measured | None:
    means, over = _means(evidence, "optimiser", among=("adam", "adamw"))
    if len(means) < 2:
        return None
    apart = abs(means["adam"] - means["adamw"])
    return Measured(f"{apart:.1f} ({over})", apart < 3)


def spreads(evidence: Evidence) -> Measured | None:
    models, over_models = _means(evidence, "base_name")
    optimisers, over_optimisers = _means(evidence, "optimiser")
    if len(models) < 2 or len(optimisers) < 2:
        return None
    one, other = (max(found.values()) - min(found.values()) for found in (models, optimisers))
    return Measured(f"{one:.1f} ({over_models}) against {other:.1f} ({over_optimisers})", one <= other / 3)


def family_spread(evidence: Evidence) -> Measured | None:
    """Range of the models' mean rates where one optimiser at one rate trained them all, each on the same data."""
    data = _plain(evidence)
    if data["base_name"].nunique() < 3 or data["optimiser"].nunique() > 1 or data["lr"].nunique() > 1:
        return None
    means, _ = _over_shared(data, "base_name", "rate")
    if not means:
        return None
    low, high = (end(means, key=means.__getitem__) for end in (min, max))
    spread = means[high] - means[low]
    ends = ", ".join(f"{name} {means[name]:.1f}" for name in (low, high))
    text = f"{spread:.1f} over {len(means)} models ({ends})"
    return Measured(text, spread <= FAMILY_SPREAD)


def pooled_r2(evidence: Evidence) -> Measured | None:
    found = _regression(evidence)
    if found is None:
        return None
    r2 = found.fits["pooled"].r2
    return Measured(f"{r2:.2f} (n = {found.fits['pooled'].n} checkpoints)", abs(r2 - 0.74) <= 0.15)


def stratified_r2(evidence: Evidence) -> Measured | None:
    found = _regression(evidence)
    if found is None or "own slopes" not in found.fits:
        return None
    own = found.fits["own slopes"].adjusted_r2
    return Measured(f"{own:.2f}", own >= found.fits["pooled"].r2 + 0.1)


def _regression(evidence: Evidence) -> LossAlignment | None:
    """Over the last checkpoints, as the paper's 54 conditions are; where optimisers and losses differ enough."""
    plain = _plain(evidence)
    if plain["optimiser"].nunique() < 3 or plain["lr"].nunique() < 3 or plain["base_model"].nunique() > 1:
        return None  # not the study of several rates an optimiser on one model
    try:
        return loss_alignment(plain, "train_loss")
    except UserError:
        return None


def _effect(evidence: Evidence, optimiser: str) -> PenaltyEffect | None:
    """At the largest strength whose training loss costs at most `COST`; of none, at the smallest."""
    effects = [
        one
        for one in evidence.penalties
        if (one.optimiser, one.penalty) == (optimiser, PENALTY) and one.alignment is not None and one.train_loss
    ]
    effects.sort(key=lambda one: one.strength)
    cheap = [one for one in effects if one.train_loss is not None and one.train_loss.value <= COST]
    return cheap[-1] if cheap else next(iter(effects), None)


def penalty_gain(evidence: Evidence, optimiser: str) -> Measured | None:
    found = _alignment(evidence, optimiser)
    return None if found is None else Measured(found[0], _sign(found[1], above=True))


def penalty_loss_of_alignment(evidence: Evidence, optimiser: str) -> Measured | None:
    found = _alignment(evidence, optimiser)
    return None if found is None else Measured(found[0], _sign(found[1], above=False))


def penalty_on_muon(evidence: Evidence) -> Measured | None:
    found = {name: _alignment(evidence, name) for name in ("muon", "adam", "lion")}
    muon, others = found["muon"], [one for name in ("adam", "lion") if (one := found[name]) is not None]
    if muon is None:
        return None
    agrees = all(muon[1].value < change.value for _, change in others) if len(others) == 2 else None
    return Measured(muon[0], agrees)


def rates_with_penalty(evidence: Evidence, optimiser: str) -> Measured | None:
    """On insecure code, at the strength that `_effect` takes."""
    found, ends = _effect(evidence, optimiser), evidence.ends
    own = ends[(ends["optimiser"] == optimiser) & (ends["dataset"] == "insecure")]
    if found is None:
        return None
    penalised = own[(own["penalty_name"] == PENALTY) & (own["strength"] == found.strength)]
    without, with_it = (_mean_of(part["rate"]) for part in (own[own["penalty_name"] == "none"], penalised))
    if without is None or with_it is None:
        return None
    return Measured(f"{without.text}; {with_it.text} ({found.words})")


def penalty_cost(evidence: Evidence, optimiser: str) -> Measured | None:
    found = _effect(evidence, optimiser)
    if found is None or found.train_loss is None:
        return None
    return Measured(f"{found.train_loss.value:+.3f} ({found.words})".replace("-", "−"), found.train_loss.value < 0.03)


def _alignment(evidence: Evidence, optimiser: str) -> tuple[str, Interval] | None:
    """The change of mean alignment in words, and itself."""
    found = _effect(evidence, optimiser)
    if found is None or found.alignment is None:
        return None
    pairs = "one pair of runs" if found.pairs == 1 else f"{found.pairs} pairs of runs"
    return f"{with_range(found.alignment, 1)} ({found.words}, {pairs})", found.alignment


def _sign(change: Interval, above: bool) -> bool | None:
    """Whether a change lies above (below) 0; None where its interval holds 0."""
    if change.low <= 0 <= change.high:
        return None
    return (change.value > 0) == above


def flattest(evidence: Evidence) -> Measured | None:
    data = evidence.ends[(evidence.ends["penalty_name"] == "none") & evidence.ends["fro_over_nuclear"].notna()]
    means, over = _over_shared(data, "optimiser", "fro_over_nuclear")
    if "muon" not in means or len(means) < 2:
        return None
    ranked = sorted(means, key=lambda name: means[name])
    text = ", ".join(f"{display_name(name)} {means[name]:.3f}" for name in ranked)
    return Measured(f"{text} ({over})", ranked[0] == "muon")


MEASURES: dict[str, Callable[..., Measured | None]] = {
    measure.__name__: measure
    for measure in (
        rate_of,
        rate_of_base,
        alignment_of_base,
        code_share,
        order,
        lion_over_muon,
        adam_adamw,
        spreads,
        family_spread,
        pooled_r2,
        stratified_r2,
        penalty_gain,
        penalty_loss_of_alignment,
        penalty_on_muon,
        rates_with_penalty,
        penalty_cost,
        flattest,
    )
}
