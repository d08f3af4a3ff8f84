"""How much of the spread between runs each axis of a grid explains: a balanced analysis of variance."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm

from em_core.errors import UserError
from em_eval.intervals import totals

REST = "interactions and sampling"
FEW = 20  # degrees of freedom, below which the variance of answers to one question is not known


@dataclass(frozen=True)
class VarianceShares:
    """Shares of the total sum of squares.

    Attributes:
        shares: by axis (main effect), then, where runs differ in them, "settings" (spread between the settings that
            are nested in a combination of axes, such as learning rates), and the rest, which interactions and the
            sampling of answers make together. In a balanced grid they add up to one.
        balanced: whether every combination has equally many runs; otherwise sums of squares are of type II, which
            overlap.
        p: of each main effect, against all else together.
        sampling: the share that the sampling of answers would make alone, were all runs equal: above one, where the
            runs differ by less than that. None where outcomes are not sampled.
    """

    outcome: str
    runs: int
    shares: dict[str, float]
    p: dict[str, float]
    balanced: bool
    sampling: float | None = None


def variance_shares(
    runs: pd.DataFrame,
    outcome: str,
    axes: Sequence[str],
    settings: Sequence[str] = (),
    answers: Sequence[tuple[Sequence[float], Sequence[str]]] = (),
) -> VarianceShares:
    """Shares of `axes` in the variance of `outcome`, one row a run; axes without variation are left out.

    Args:
        settings: columns whose values mean something within one combination of axes only: a learning rate of one
            optimiser is none of another.
        answers: of each row that has the outcome, the values that it is the mean of, with their question families.

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
    nested = known.groupby([*varied, *settings], dropna=False)[outcome]
    rest = float(table.loc["Residual", "sum_sq"]) / total
    if nested.ngroups > len(sizes):
        groups = (known.groupby(varied)[outcome], nested)
        within, of_one_setting = (_within(each, known[outcome]) / total for each in groups)
        shares["settings"] = within - of_one_setting
        rest -= shares["settings"]
    shares[REST] = max(0.0, rest)
    combinations = 1
    for axis in varied:
        combinations *= known[axis].nunique()
    noise = sampling_variance(answers)
    return VarianceShares(
        outcome,
        len(known),
        shares,
        {axis: float(table.loc[f"C(axis_{i})", "PR(>F)"]) for i, axis in enumerate(varied)},
        balanced=len(sizes) == combinations and sizes.nunique() == 1,
        sampling=None if noise is None else noise * (len(known) - 1) / total,
    )


def sampling_variance(answers: Sequence[tuple[Sequence[float], Sequence[str]]]) -> float | None:
    """Mean over runs of the variance that drawing answers anew to the same questions gives a run's mean.

    The variance of answers to one question is pooled over questions and runs. None where too few have two answers.
    """
    squares, freedom = 0.0, 0
    for values, families in answers:
        array = np.asarray(values, dtype=float)
        sums, sizes = totals(array, families)
        squares += float((array**2).sum() - (sums**2 / sizes).sum())
        freedom += len(array) - len(sizes)
    return squares / freedom * float(np.mean([1 / len(values) for values, _ in answers])) if freedom >= FEW else None


def _within(groups: Any, values: "pd.Series[float]") -> float:
    """Sum of squares about the means of the groups."""
    return float(((values - groups.transform("mean")) ** 2).sum())
