"""Differences between optimisers at the last checkpoints of their runs: paired by question and seed, Holm over pairs.

An optimiser's figure is the unweighted mean over blocks (base model, dataset, batch size, ...), as in the published
sweep; two optimisers are compared over the blocks and seeds that both have.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from em_eval.intervals import Interval
from em_study.paired import Seeds, judged, over_shared_blocks
from em_study.statistics import holm

SIGNIFICANCE = 0.05
Ends = Mapping[str, Mapping[str, Seeds]]  # outcomes at the last checkpoints by optimiser, block and seed


@dataclass(frozen=True)
class OptimiserContrast:
    """Mean outcome of `a` minus that of `b`.

    Attributes:
        p: two-sided, adjusted by Holm over all pairs.
        blocks: over how many the difference is a mean.
        seeds: how many tell how seeds spread; with one, seed variance is not in the interval.
        only_one: blocks, and seeds of shared blocks, in which one of the two has no outcome: left out of this pair.
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


def optimiser_contrasts(ends: Ends) -> list[OptimiserContrast]:
    """All pairs of optimisers that share a block and a seed there; intervals and p as of `em_study.paired.judged`."""
    found = []
    for a, b in combinations(sorted(ends), 2):
        if (shared := over_shared_blocks(ends[a], ends[b])) is not None:
            parts, blocks = shared
            difference, p = judged(parts)
            found.append(OptimiserContrast(a, b, difference, p, blocks, parts.seeds, _only_one(ends[a], ends[b])))
    adjusted = holm([contrast.p for contrast in found])
    return [replace(contrast, p=p) for contrast, p in zip(found, adjusted, strict=True)]


def mean_over_shared_blocks(ends: Ends) -> dict[str, float]:
    """By optimiser, lowest first: the mean over the blocks that all share, each the mean over its seeds."""
    blocks = set.intersection(*(set(own) for own in ends.values())) if ends else set()
    if not blocks:
        return {}
    means = {
        name: float(np.mean([np.mean([one.value for one in own[block].values()]) for block in blocks]))
        for name, own in ends.items()
    }
    return dict(sorted(means.items(), key=lambda item: (item[1], item[0])))


def _only_one(a: Mapping[str, Seeds], b: Mapping[str, Seeds]) -> tuple[str, ...]:
    """Blocks that one side lacks by name, and of the others the seeds."""
    whole = a.keys() ^ b.keys()
    seeds = {f"{block}, seed {seed}" for block in a.keys() & b.keys() for seed in a[block].keys() ^ b[block].keys()}
    return tuple(sorted(whole | seeds))
