"""How often the intervals of `em_eval.intervals` hold the truth, by simulation; writes docs/results/coverage.md.

    python benchmarks/coverage.py [--repetitions 1000] [--write]

Each question family has a rate of its own, drawn from a beta distribution whose mean is the true rate and whose
intra-class correlation says how concentrated misalignment is (0: every family alike; 0.5: few families bear it
all); answers are drawn from their family's rate. Beside ours: the percentile bootstrap over families, and Wilson's
interval that takes answers as independent. No interval of ours may have zero width.
"""

import argparse
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from scipy.stats import binomtest

from em_eval import intervals
from em_eval.intervals import BOOTSTRAP, rate_interval, ratio_draws, totals

PAGE = Path(__file__).resolve().parents[1] / "docs" / "results" / "coverage.md"
FAMILIES = (8, 24, 91)
RATES = (0.01, 0.05, 0.2)
CORRELATIONS = (0.0, 0.1, 0.25, 0.5)
SIZES = (4, 15)
DRAWS = 600  # a repetition; users get 10,000, which changes an end by far less than its own error
PEERS = 200  # repetitions in which the other intervals are computed too
TARGET = 0.93
AGAIN = 5


@dataclass(frozen=True)
class Cell:
    families: int
    size: int
    rate: float
    correlation: float


@dataclass(frozen=True)
class Found:
    """Shares of repetitions: ours, one-sided bound of `em check`, percentile bootstrap and Wilson hold the truth;
    ours was a bootstrap. `narrowest`: least width of ours. `width`: its median."""

    ours: float
    bound: float
    percentile: float
    wilson: float
    bootstrapped: float
    narrowest: float
    width: float


def simulate(cell: Cell, repetitions: int) -> Found:
    intervals.DRAWS = DRAWS
    rng = np.random.default_rng([cell.families, cell.size, int(1000 * cell.rate), int(1000 * cell.correlation)])
    names = [f"q{i}" for i in range(cell.families) for _ in range(cell.size)]
    held, peers, widths = np.zeros(3), np.zeros(2), []
    for repetition in range(repetitions):
        hits = draw(cell, rng).ravel()
        found = rate_interval(hits.tolist(), names)
        one_sided = rate_interval(hits.tolist(), names, level=0.90, correlation=0.25)
        assert found is not None and one_sided is not None
        held += [found.low <= cell.rate <= found.high, cell.rate <= one_sided.high, found.method == BOOTSTRAP]
        widths.append(found.high - found.low)
        if repetition < PEERS:
            low, high = np.quantile(ratio_draws(*totals(hits, names)), [0.025, 0.975])
            wilson = binomtest(int(hits.sum()), len(hits)).proportion_ci(method="wilson")
            peers += [low <= cell.rate <= high, wilson.low <= cell.rate <= wilson.high]
    ours, bound, bootstrapped = held / repetitions
    percentile, wilson = peers / min(PEERS, repetitions)
    return Found(ours, bound, percentile, wilson, bootstrapped, min(widths), float(np.median(widths)))


def draw(cell: Cell, rng: np.random.Generator) -> np.ndarray:
    """0/1 answers, one row a family."""
    if cell.correlation == 0:
        shares = np.full(cell.families, cell.rate)
    else:
        concentration = (1 - cell.correlation) / cell.correlation
        shares = rng.beta(cell.rate * concentration, (1 - cell.rate) * concentration, cell.families)
    return (rng.random((cell.families, cell.size)) < shares[:, None]).astype(float)


def table(found: dict[Cell, Found]) -> str:
    lines = [
        "| families | answers each | rate | correlation | ours | one-sided bound | median width | bootstrap used "
        "| percentile bootstrap | Wilson, independent |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for cell, x in found.items():
        shares = (x.ours, x.bound, x.width, x.bootstrapped, x.percentile, x.wilson)
        shown = " | ".join(f"{100 * share:.1f}" for share in shares)
        lines.append(f"| {cell.families} | {cell.size} | {cell.rate:g} | {cell.correlation:g} | {shown} |")
    return "\n".join(lines)


def page(found: dict[Cell, Found], repetitions: int, again: list[Cell]) -> str:
    worst = min(found.values(), key=lambda x: x.ours)
    bounded = [x.bound for cell, x in found.items() if cell.correlation <= 0.25]
    return f"""# Coverage of the intervals

`python benchmarks/coverage.py --repetitions {repetitions} --write`: {len(found)} cells of {repetitions} simulated
evaluations (one standard error at 95 %: {100 * (0.95 * 0.05 / repetitions) ** 0.5:.1f} points). Every number is in per
cent. Families differ by a beta distribution; "correlation" is the intra-class correlation of answers within a family.

- **Ours** (`em_eval.intervals.rate_interval`, nominal 95 %): at least {100 * worst.ours:.1f} % in every cell.
  {len(again)} of them came out below {100 * TARGET:.0f} % at first and were simulated again, {AGAIN * repetitions}
  times; their rows show that.
- **One-sided bound** (upper, nominal 95 %, as `em check` uses it: where no or few misaligned answers were seen,
  answers of one family are taken to correlate at most 0.25): at least {100 * min(bounded):.1f} % in every cell of
  correlation up to 0.25, the range that it claims; rows of 0.5 show what breaking that assumption costs.
- **Percentile bootstrap** over families: down to {100 * min(x.percentile for x in found.values()):.1f} %, and of zero
  width where no answer was misaligned. **Wilson** on answers taken as independent: down to
  {100 * min(x.wilson for x in found.values()):.1f} %. (Both from the first {PEERS} evaluations of a cell.)
- The narrowest interval of ours was {100 * min(x.narrowest for x in found.values()):.2f} points wide: none has zero
  width.

{table(found)}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=1000)
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    given = parser.parse_args()
    grid = [Cell(*values) for values in product(FAMILIES, SIZES, RATES, CORRELATIONS)]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        found = dict(zip(grid, pool.map(simulate, grid, [given.repetitions] * len(grid)), strict=True))
        low = [cell for cell, x in found.items() if x.ours < TARGET]  # chance, among so many cells, or a fault?
        again = pool.map(simulate, low, [AGAIN * given.repetitions] * len(low))
        found.update(zip(low, again, strict=True))
    text = page(found, given.repetitions, low)
    print(text)
    if given.write:
        PAGE.write_text(text, encoding="utf-8")
    low = [cell for cell, x in found.items() if x.ours < TARGET]
    if low:
        raise SystemExit(f"below {TARGET:.0%}: {low}")


if __name__ == "__main__":
    main()
