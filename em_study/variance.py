"""How much of the spread between runs each axis of a grid explains: a balanced analysis of variance."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm

from em_core.errors import UserError


@dataclass(frozen=True)
class VarianceShares:
    """Shares of the total sum of squares.

    Attributes:
        shares: by axis (main effect), then, where runs differ in them, "settings" (spread between the settings that
            are nested in a combination of axes, such as learning rates) and "seed" (spread between runs alike in
            both), and "interactions". In a balanced grid they add up to one.
        balanced: whether every combination has equally many runs; otherwise sums of squares are of type II, which
            overlap, and the rest is "interactions" only in name.
        p: of each main effect, against all else together.
    """

    outcome: str
    runs: int
    shares: dict[str, float]
    p: dict[str, float]
    balanced: bool


def variance_shares(
    runs: pd.DataFrame, outcome: str, axes: Sequence[str], settings: Sequence[str] = ()
) -> VarianceShares:
    """Shares of `axes` in the variance of `outcome`, one row a run; axes without variation are left out.

    Args:
        settings: columns whose values mean something within one combination of axes only: a learning rate of one
            optimiser is none of another.

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
    nested = known.groupby([*varied, *settings], dropna=False)[outcome]
    within, seed = (_within(groups, known[outcome]) / total for groups in (known.groupby(varied)[outcome], nested))
    if nested.ngroups > len(sizes):
        shares["settings"] = within - seed
    if nested.ngroups < len(known):
        shares["seed"] = seed
    shares["interactions"] = max(0.0, rest - within)
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


def _within(groups: Any, values: "pd.Series[float]") -> float:
    """Sum of squares about the means of the groups."""
    return float(((values - groups.transform("mean")) ** 2).sum())
