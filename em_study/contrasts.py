"""Differences between optimisers: paired by prompt, resampled over question families and seeds, Holm over pairs.

An optimiser's figure is the unweighted mean over blocks (base model, dataset, batch size, ...), as in the published
sweep; two optimisers are compared over the blocks that both have.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import norm

from em_eval.intervals import BOOTSTRAP, DRAWS, Interval, rate_interval
from em_study.statistics import holm

FloatArray = NDArray[np.float64]
Z = float(norm.ppf(0.975))
SIGNIFICANCE = 0.05
PAIRED = "paired bootstrap over families and seeds"
WIDER = "paired bootstrap or Newcombe, wider"
NO_DRAW = "no resample has answers of both"


@dataclass(frozen=True)
class OptimiserContrast:
    """Mean rate of `a` minus that of `b`.

    Attributes:
        p: two-sided, adjusted by Holm over all pairs.
        blocks, seeds: over how many it was averaged and resampled; with one seed, seed variance is not in it.
        only_one: blocks that one of the two lacks, by name: left out of this pair.
    """

    a: str
    b: str
    difference: Interval
    p: float
    blocks: int
    seeds: int
    only_one: tuple[str, ...]

    @property
    def distinguishable(self) -> bool:
        """Whether the two differ at 5 %, after Holm's correction."""
        return self.p < SIGNIFICANCE


def optimiser_contrasts(answers: pd.DataFrame, draws: int = DRAWS, seed: int = 0) -> list[OptimiserContrast]:
    """All pairs of optimisers.

    Args:
        answers: one row an eligible answer: `optimiser`, `block`, `seed`, `family`, `hit` (0 or 1). Equal seeds and
            families of two optimisers are the same data order and the same questions, so that both are paired.

    Where `rate_interval` would bootstrap the rate of either side (30 families that bear events, 20 effective events),
    the interval is a percentile bootstrap over families and seeds. Otherwise it is the wider of that and Newcombe's
    (1998) from the intervals of the two rates, since a percentile bootstrap covers too little there.
    """
    families, seeds = sorted(answers["family"].unique()), sorted(answers["seed"].unique())
    rng = np.random.default_rng(seed)
    weights = _Weights(_draw(rng, len(families), draws), _draw(rng, len(seeds), draws))
    blocks: dict[str, dict[str, _Counts]] = {}
    for (optimiser, block), part in answers.groupby(["optimiser", "block"], sort=True):
        blocks.setdefault(str(optimiser), {})[str(block)] = _counts(part, families, seeds)
    pairs = []
    for a, b in combinations(sorted(blocks), 2):
        shared = sorted(set(blocks[a]) & set(blocks[b]))
        if shared:
            pairs.append((a, b, shared, *_compare(answers, a, b, shared, blocks, weights)))
    adjusted = holm([p for *_, p in pairs])
    return [
        OptimiserContrast(a, b, difference, p, len(shared), len(seeds), tuple(sorted(set(blocks[a]) ^ set(blocks[b]))))
        for (a, b, shared, difference, _), p in zip(pairs, adjusted, strict=True)
    ]


@dataclass(frozen=True)
class _Counts:
    """Hits and answers of one optimiser in one block, shape (seeds, families)."""

    hits: FloatArray
    sizes: FloatArray


@dataclass(frozen=True)
class _Weights:
    """How often each draw takes each family (draws, families) and each seed (draws, seeds)."""

    families: FloatArray
    seeds: FloatArray


def _compare(
    answers: pd.DataFrame,
    a: str,
    b: str,
    shared: Sequence[str],
    blocks: dict[str, dict[str, _Counts]],
    weights: _Weights,
) -> tuple[Interval, float]:
    value = float(np.mean([_share(blocks[a][name]) - _share(blocks[b][name]) for name in shared]))
    drawn = np.mean([_draws(blocks[a][name], weights) - _draws(blocks[b][name], weights) for name in shared], axis=0)
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return Interval(value, -1.0, 1.0, NO_DRAW), 1.0
    low, high = (float(bound) for bound in np.quantile(drawn, [0.025, 0.975]))
    p = _bootstrap_p(drawn)
    sides = [answers[(answers["optimiser"] == name) & answers["block"].isin(shared)] for name in (a, b)]
    first, second = (rate_interval(side["hit"].astype(float).tolist(), side["family"].tolist()) for side in sides)
    assert first is not None and second is not None  # a block has answers
    if first.method == second.method == BOOTSTRAP:
        return Interval(value, low, high, PAIRED), p
    newcombe = _newcombe(first, second, value)
    reach = (value - newcombe.low) if value > 0 else (newcombe.high - value)
    p = max(p, float(2 * norm.sf(abs(value) / max(reach / Z, 1e-12))))
    return Interval(value, min(low, newcombe.low), max(high, newcombe.high), WIDER), p


def _newcombe(a: Interval, b: Interval, value: float) -> Interval:
    """Newcombe's (1998) square-and-add interval of a difference of two rates, about `value`."""
    low = value - float(np.hypot(a.value - a.low, b.high - b.value))
    high = value + float(np.hypot(a.high - a.value, b.value - b.low))
    return Interval(value, max(low, -1.0), min(high, 1.0), "Newcombe")


def _counts(part: pd.DataFrame, families: list[str], seeds: list[int]) -> _Counts:
    table = part.pivot_table(index="seed", columns="family", values="hit", aggfunc=["sum", "count"])
    wanted = {"index": seeds, "columns": families, "fill_value": 0}
    return _Counts(
        table["sum"].reindex(**wanted).fillna(0).to_numpy(dtype=float),
        table["count"].reindex(**wanted).fillna(0).to_numpy(dtype=float),
    )


def _share(counts: _Counts) -> float:
    return float(counts.hits.sum() / counts.sizes.sum())


def _draws(counts: _Counts, weights: _Weights) -> FloatArray:
    hits = ((weights.seeds @ counts.hits) * weights.families).sum(axis=1)
    sizes = ((weights.seeds @ counts.sizes) * weights.families).sum(axis=1)
    shares: FloatArray = np.divide(hits, sizes, out=np.full(len(hits), np.nan), where=sizes > 0)
    return shares


def _draw(rng: np.random.Generator, count: int, draws: int) -> FloatArray:
    """Multinomial resampling weights; one unit alone is not resampled."""
    return rng.multinomial(count, np.full(count, 1 / count), size=draws).astype(float)


def _bootstrap_p(drawn: FloatArray) -> float:
    above, below = (np.sum(drawn >= 0) + 1, np.sum(drawn <= 0) + 1)
    return float(min(1.0, 2 * min(above, below) / (len(drawn) + 1)))
