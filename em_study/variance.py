"""How much of the spread between runs each axis of a grid explains: a balanced analysis of variance."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm

from em_core.errors import UserError


@dataclass(frozen=True)
class VarianceShares:
    """Shares of the total sum of squares.

    Attributes:
        shares: by axis (main effect), then "interactions" and, with replicates, "seed" (spread within a cell).
            In a balanced grid they add up to one.
        balanced: whether every combination has equally many runs; otherwise sums of squares are of type II, which
            overlap, and the rest is "interactions" only in name.
        p: of each main effect, against interactions and seed together.
    """

    outcome: str
    runs: int
    shares: dict[str, float]
    p: dict[str, float]
    balanced: bool


def variance_shares(runs: pd.DataFrame, outcome: str, axes: Sequence[str]) -> VarianceShares:
    """Shares of `axes` in the variance of `outcome`, one row a run; axes without variation are left out.

    Raises:
        UserError: fewer than two axes' worth of data to split.
    """
    known = runs.dropna(subset=[outcome]).reset_index(drop=True)
    varied = [axis for axis in axes if known[axis].nunique() > 1]
    total = float(((known[outcome] - known[outcome].mean()) ** 2).sum())
    levels = sum(known[axis].nunique() - 1 for axis in varied)
    if not varied or len(known) < levels + 2 or total == 0:
        raise UserError(f"{len(known)} runs that vary {', '.join(varied) or 'nothing'}: too few to split the variance")
    data = known.rename(columns={outcome: "y"} | {axis: f"axis_{i}" for i, axis in enumerate(varied)})
    formula = "y ~ " + " + ".join(f"C(axis_{i})" for i in range(len(varied)))
    table = anova_lm(ols(formula, data).fit(), typ=2)
    shares = {axis: float(table.loc[f"C(axis_{i})", "sum_sq"]) / total for i, axis in enumerate(varied)}
    sizes = known.groupby(varied)[outcome].count()
    rest = float(table.loc["Residual", "sum_sq"]) / total
    if sizes.max() > 1:
        means = known.groupby(varied)[outcome].transform("mean")
        shares["seed"] = float(((known[outcome] - means) ** 2).sum()) / total
    shares["interactions"] = max(0.0, rest - shares.get("seed", 0.0))
    combinations = 1
    for axis in varied:
        combinations *= known[axis].nunique()
    return VarianceShares(
        outcome,
        len(known),
        shares,
        {axis: float(table.loc[f"C(axis_{i})", "PR(>F)"]) for i, axis in enumerate(varied)},
        balanced=len(sizes) == combinations and sizes.nunique() == 1,
    )
