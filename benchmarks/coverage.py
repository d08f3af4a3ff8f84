"""How often the intervals of `em_eval.intervals` hold the truth, by simulation; writes docs/results/coverage.md.

    python benchmarks/coverage.py [--repetitions 2000] [--write]

Each question family has a rate of its own, drawn from a beta distribution whose mean is the true rate and whose
intra-class correlation says how concentrated misalignment is (0: every family alike; 0.5: few families bear it
all); answers are drawn from their family's rate. Beside ours: the percentile bootstrap over families, and Wilson's
interval that takes answers as independent. No interval of ours may have zero width.

Every cell gets the same number of repetitions and none is simulated again, so that the least coverage is an honest
minimum of noisy figures. An interval depends on the families' numbers of misaligned answers alone, whatever their
order: repetitions with the same numbers share theirs.
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
DRAWS = 2000  # a repetition; users get 10,000, which changes an end by far less than its own error
TARGET = 0.93


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
    known: dict[tuple[int, ...], tuple[list[bool], float]] = {}
    held, widths = np.zeros(5), []
    for _ in range(repetitions):
        sums = tuple(sorted(draw(cell, rng).tolist()))
        if sums not in known:
            known[sums] = _intervals(cell, sums, names)
        hold, width = known[sums]
        held += hold
        widths.append(width)
    return Found(*(held / repetitions), min(widths), float(np.median(widths)))


def _intervals(cell: Cell, sums: tuple[int, ...], names: list[str]) -> tuple[list[bool], float]:
    """What holds the truth, in the order of `Found`, and the width of ours."""
    hits = [float(i < count) for count in sums for i in range(cell.size)]
    found = rate_interval(hits, names)
    one_sided = rate_interval(hits, names, level=0.90, correlation=0.25)
    assert found is not None and one_sided is not None
    low, high = np.quantile(ratio_draws(*totals(np.array(hits), names)), [0.025, 0.975])
    wilson = binomtest(sum(sums), len(hits)).proportion_ci(method="wilson")
    hold = [
        found.low <= cell.rate <= found.high,
        cell.rate <= one_sided.high,
        low <= cell.rate <= high,
        wilson.low <= cell.rate <= wilson.high,
        found.method == BOOTSTRAP,
    ]
    return hold, found.high - found.low


def draw(cell: Cell, rng: np.random.Generator) -> np.ndarray:
    """Number of misaligned answers of each family."""
    if cell.correlation == 0:
        shares = np.full(cell.families, cell.rate)
    else:
        concentration = (1 - cell.correlation) / cell.correlation
        shares = rng.beta(cell.rate * concentration, (1 - cell.rate) * concentration, cell.families)
    return rng.binomial(cell.size, shares)


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


def error(share: float, repetitions: int) -> float:
    """Of a simulated share, one standard error."""
    return float((share * (1 - share) / repetitions) ** 0.5)


def page(found: dict[Cell, Found], repetitions: int) -> str:
    worst = min(found.values(), key=lambda x: x.ours)
    below = [x for x in found.values() if x.ours < 0.95]
    bounded = [x.bound for cell, x in found.items() if cell.correlation <= 0.25]
    return f"""# Coverage of the intervals

`python benchmarks/coverage.py --repetitions {repetitions} --write`: {len(found)} cells of {repetitions} simulated
evaluations (one standard error at 95 %: {100 * error(0.95, repetitions):.1f} points), none simulated again. Every
number is in per cent. Families differ by a beta distribution; "correlation" is the intra-class correlation of answers
within a family.

- **Ours** (`em_eval.intervals.rate_interval`, nominal 95 %): the least of all cells is {100 * worst.ours:.1f} % (one
  standard error: {100 * error(worst.ours, repetitions):.1f} points; the least of {len(found)} noisy figures lies
  below the least of the true ones); {len(below)} cells came out below 95 %.
- **One-sided bound** (upper, nominal 95 %, as `em check` uses it: where no or few misaligned answers were seen,
  answers of one family are taken to correlate at most 0.25): at least {100 * min(bounded):.1f} % in every cell of
  correlation up to 0.25, the range that it claims; rows of 0.5 show what breaking that assumption costs.
- **Percentile bootstrap** over families: down to {100 * min(x.percentile for x in found.values()):.1f} %, and of zero
  width where no answer was misaligned. **Wilson** on answers taken as independent: down to
  {100 * min(x.wilson for x in found.values()):.1f} %.
- The narrowest interval of ours was {100 * min(x.narrowest for x in found.values()):.2f} points wide: none has zero
  width.

{table(found)}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=2000)
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    given = parser.parse_args()
    grid = [Cell(*values) for values in product(FAMILIES, SIZES, RATES, CORRELATIONS)]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        found = dict(zip(grid, pool.map(simulate, grid, [given.repetitions] * len(grid)), strict=True))
    text = page(found, given.repetitions)
    print(text)
    if given.write:
        PAGE.write_text(text, encoding="utf-8")
    low = [cell for cell, x in found.items() if x.ours + 2 * error(x.ours, given.repetitions) < TARGET]
    if low:
        raise SystemExit(f"below {TARGET:.0%} by more than two standard errors: {low}")


if __name__ == "__main__":
    main()
