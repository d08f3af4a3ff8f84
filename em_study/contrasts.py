"""Differences between optimisers: paired by prompt and seed, resampled over families and seeds, Holm over pairs.

An optimiser's figure is the unweighted mean over blocks (base model, dataset, batch size, ...), as in the published
sweep; two optimisers are compared over the blocks and seeds that both have.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import norm, t

from em_eval.intervals import BOOTSTRAP, DRAWS, Interval, rate_interval
from em_study.paired import Z, square_and_add
from em_study.statistics import holm

FloatArray = NDArray[np.float64]
SIGNIFICANCE = 0.05
PAIRED = "paired bootstrap over families"
SEEDS = "paired bootstrap or t over seeds, wider"
WIDER = "paired bootstrap or Newcombe, wider"
WIDEST = "paired bootstrap, t over seeds or Newcombe, widest"
NO_DRAW = "no resample has answers of both"


@dataclass(frozen=True)
class OptimiserContrast:
    """Mean rate of `a` minus that of `b`.

    Attributes:
        p: two-sided, adjusted by Holm over all pairs.
        blocks, seeds: of the pair: over how many it was averaged and resampled; with one seed, seed variance is not
            in it.
        only_one: blocks, and seeds of shared blocks, in which one of the two has no answers: left out of this pair.
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


def optimiser_contrasts(
    answers: pd.DataFrame, draws: int = DRAWS, seed: int = 0, value: str = "hit"
) -> list[OptimiserContrast]:
    """All pairs of optimisers that share a block and a seed there.

    Args:
        answers: one row an eligible answer: `optimiser`, `block`, `seed`, `family`, and `value`. Equal seeds and
            families of two optimisers are the same data order and the same questions, so that both are paired.
        value: "hit" (0 or 1), or a column with scores.

    The interval is the widest, and p the largest, of

    - a percentile bootstrap over families and seeds, both sides drawn alike; of scores, its reach is that of a t
      distribution over families (Hesterberg 2015, section 5.3);
    - with several seeds, Student's t over the seeds' differences (means over blocks): a bootstrap of two or three
      seeds reaches far less than they allow;
    - of rates, unless `rate_interval` would bootstrap both sides (30 families that bear events, 20 effective events),
      Newcombe's (1998) from the intervals of the two rates.
    """
    families = sorted(answers["family"].unique())
    rng = np.random.default_rng(seed)
    family_weights = _draw(rng, len(families), draws)
    sums = answers.groupby(["optimiser", "block", "seed", "family"])[value].agg(["sum", "count"])
    wide = sums.unstack("family", fill_value=0)
    held = {str(name): {(block, at) for _, block, at in part.index} for name, part in wide.groupby(level="optimiser")}
    found = []
    for a, b in combinations(sorted(held), 2):
        shared = sorted(held[a] & held[b])
        if shared:
            first, second = (_side(wide, name, shared, families) for name in (a, b))
            paired = _Pair(first, second, family_weights, _draw(rng, first.hits.shape[1], draws))
            difference, p = _compare(paired, _intervals(answers, (a, b), shared) if value == "hit" else None)
            counts = (len({block for block, _ in shared}), len({at for _, at in shared}))
            found.append((a, b, difference, p, *counts, _only_one(held[a], held[b])))
    adjusted = holm([p for _, _, _, p, *_ in found])
    return [
        OptimiserContrast(a, b, difference, p, blocks, seeds, only_one)
        for (a, b, difference, _, blocks, seeds, only_one), p in zip(found, adjusted, strict=True)
    ]


@dataclass(frozen=True)
class _Side:
    """Sums and numbers of answers of one optimiser, shape (blocks, seeds, families); 0 where a pair shares nothing."""

    hits: FloatArray
    sizes: FloatArray


@dataclass(frozen=True)
class _Pair:
    """Both sides, and how often each draw takes each family (draws, families) and each seed (draws, seeds)."""

    a: _Side
    b: _Side
    families: FloatArray
    seeds: FloatArray


def _side(wide: pd.DataFrame, name: str, shared: Sequence[tuple[str, int]], families: Sequence[str]) -> _Side:
    blocks, seeds = (sorted(set(part)) for part in zip(*shared, strict=True))
    own = wide.loc[[(name, *cell) for cell in shared]]
    tables = []
    for part in ("sum", "count"):
        table = np.zeros((len(blocks), len(seeds), len(families)))
        for (block, at), line in zip(shared, own[part][list(families)].to_numpy(dtype=float), strict=True):
            table[blocks.index(block), seeds.index(at)] = line
        tables.append(table)
    return _Side(*tables)


def _only_one(a: set[tuple[str, int]], b: set[tuple[str, int]]) -> tuple[str, ...]:
    """Blocks that one side lacks by name, and of the others the seeds."""
    both = {block for block, _ in a} & {block for block, _ in b}
    return tuple(sorted({f"{block}, seed {at}" if block in both else str(block) for block, at in a ^ b}))


def _compare(pair: _Pair, rates: tuple[Interval, Interval] | None) -> tuple[Interval, float]:
    """The difference with its interval, and p.

    Args:
        rates: of both sides; None where values are scores.
    """
    value = float(np.mean(_shares(pair.a.hits, pair.a.sizes) - _shares(pair.b.hits, pair.b.sizes)))
    drawn = _bootstrap(pair)
    if not len(drawn):
        return Interval(value, -np.inf if rates is None else -1.0, np.inf if rates is None else 1.0, NO_DRAW), 1.0
    low, high = (float(bound) for bound in np.quantile(drawn, [0.025, 0.975]))
    if rates is None:
        count = pair.families.shape[1]
        wider = float(t.ppf(0.975, count - 1) / Z * np.sqrt(count / (count - 1))) if count > 1 else np.inf
        low, high = value - wider * (value - low), value + wider * (high - value)
    p = _bootstrap_p(drawn)
    over_seeds = _over_seeds(pair, value)
    if over_seeds is not None:
        reach, p_seeds = over_seeds
        low, high, p = min(low, value - reach), max(high, value + reach), max(p, p_seeds)
    few = rates is not None and not rates[0].method == rates[1].method == BOOTSTRAP
    if rates is not None and few:
        newcombe = _newcombe(*rates, value)
        reach = (value - newcombe.low) if value > 0 else (newcombe.high - value)
        low, high = min(low, newcombe.low), max(high, newcombe.high)
        p = max(p, float(2 * norm.sf(abs(value) / max(reach / Z, 1e-12))))
    if rates is not None:
        low, high = max(low, -1.0), min(high, 1.0)
    return Interval(value, low, high, _method(few, over_seeds is not None)), p


def _method(few: bool, seeds: bool) -> str:
    return (WIDEST if seeds else WIDER) if few else (SEEDS if seeds else PAIRED)


def _over_seeds(pair: _Pair, value: float) -> tuple[float, float] | None:
    """Reach of Student's t over the seeds' differences, each a mean over the blocks that have it, and p."""
    each = np.nanmean(
        _shares(pair.a.hits, pair.a.sizes, (2,)) - _shares(pair.b.hits, pair.b.sizes, (2,)), axis=0
    )  # every seed is shared in some block
    freedom = len(each) - 1
    if freedom < 1:
        return None
    error = max(float(np.std(each, ddof=1)) / len(each) ** 0.5, 1e-12)
    return float(t.ppf(0.975, freedom)) * error, float(2 * t.sf(abs(value) / error, freedom))


def _intervals(
    answers: pd.DataFrame, names: tuple[str, str], shared: Sequence[tuple[str, int]]
) -> tuple[Interval, Interval]:
    cells = pd.MultiIndex.from_frame(answers[["block", "seed"]]).isin(shared)
    sides = [answers[cells & (answers["optimiser"] == name).to_numpy()] for name in names]
    first, second = (rate_interval(side["hit"].astype(float).tolist(), side["family"].tolist()) for side in sides)
    assert first is not None and second is not None  # what is shared has answers
    return first, second


def _newcombe(a: Interval, b: Interval, value: float) -> Interval:
    """Newcombe's (1998) square-and-add interval of a difference of two rates, about `value`."""
    below, above = square_and_add(a, b)
    return Interval(value, max(value - below, -1.0), min(value + above, 1.0), "Newcombe")


def _shares(hits: FloatArray, sizes: FloatArray, over: tuple[int, ...] = (1, 2)) -> FloatArray:
    """Means over the axes `over`; NaN where there is no answer."""
    return _ratio(hits.sum(axis=over), sizes.sum(axis=over))


def _bootstrap(pair: _Pair) -> FloatArray:
    """A difference a draw: mean over the blocks in which both sides have answers in that draw."""
    blocks = range(len(pair.a.hits))
    each = np.array([_draws(pair.a, block, pair) - _draws(pair.b, block, pair) for block in blocks])
    known = np.isfinite(each).any(axis=0)
    drawn: FloatArray = np.nanmean(each[:, known], axis=0)
    return drawn


def _draws(side: _Side, block: int, pair: _Pair) -> FloatArray:
    """The mean of a side in one block, a value a draw."""
    hits, sizes = (((pair.seeds @ table[block]) * pair.families).sum(axis=1) for table in (side.hits, side.sizes))
    return _ratio(hits, sizes)


def _ratio(hits: FloatArray, sizes: FloatArray) -> FloatArray:
    ratio: FloatArray = np.divide(hits, sizes, out=np.full(hits.shape, np.nan), where=sizes > 0)
    return ratio


def _draw(rng: np.random.Generator, count: int, draws: int) -> FloatArray:
    """Multinomial resampling weights; one unit alone is not resampled."""
    return rng.multinomial(count, np.full(count, 1 / count), size=draws).astype(float)


def _bootstrap_p(drawn: FloatArray) -> float:
    above, below = (np.sum(drawn >= 0) + 1, np.sum(drawn <= 0) + 1)
    return float(min(1.0, 2 * min(above, below) / (len(drawn) + 1)))
