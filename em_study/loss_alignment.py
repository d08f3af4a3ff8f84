"""Mean alignment over log task loss: is the optimiser more than the loss that it reaches?

The paper (as read second-hand) finds R2 0.74 for log loss alone on Qwen3-8B and adjusted R2 0.94 with the optimiser.
Here: pooled, with an intercept for each optimiser, and with a slope of its own too; prediction of optimisers and
datasets that were left out; and warnings where the slope turns round between the whole and its parts (Simpson).
Checkpoints of one run are not independent: intervals and tests are then clustered by run.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from statsmodels.formula.api import ols

from em_core.errors import UserError
from em_eval.intervals import Interval

FORMULAS = {
    "pooled": "alignment ~ log_loss",
    "common slope": "alignment ~ C(optimiser) + log_loss",
    "own slopes": "alignment ~ C(optimiser) * log_loss",
}
LEAST_POINTS = 3  # of a group, for a slope of its own


@dataclass(frozen=True)
class Fit:
    """One least-squares fit.

    Attributes:
        slope: alignment points per unit of log loss, with an interval clustered by run where a run has several
            checkpoints; None with own slopes, where there are several, and with too few runs for such an interval.
    """

    name: str
    n: int
    r2: float
    adjusted_r2: float
    slope: Interval | None


@dataclass(frozen=True)
class Line:
    """alignment = intercept + slope * log(loss)."""

    intercept: float
    slope: float


@dataclass(frozen=True)
class Observed:
    """One checkpoint of the regression; `loss` in nats a token."""

    optimiser: str
    dataset: str
    loss: float
    alignment: float


@dataclass(frozen=True)
class LeftOut:
    """Prediction of one optimiser or dataset from the others by the pooled line.

    Attributes:
        rmse: root mean square error, alignment points.
        bias: mean of (seen - predicted): what the group does beyond its loss.
    """

    group: str
    n: int
    rmse: float
    bias: float


@dataclass(frozen=True)
class LossAlignment:
    """Everything of one regression.

    Attributes:
        loss: which loss, e.g. "held_out_loss"; `base_model`: the one that all points share, its name.
        points: what was fitted; `pooled`: the line through all of them.
        lines: own line of each optimiser that has three points.
        offsets: alignment at equal loss relative to the first optimiser (common slope), with intervals.
        p_optimiser: Wald F test of the intercepts; p_slopes: of own slopes against a common one. With `clustered`
            errors its denominator has as many degrees of freedom as there are runs less one; None with too few runs.
        left_out: runs without loss or alignment, by name.
    """

    loss: str
    base_model: str
    clustered: bool
    fits: dict[str, Fit]
    points: list[Observed]
    pooled: Line
    lines: dict[str, Line]
    offsets: dict[str, Interval]
    reference: str
    p_optimiser: float | None
    p_slopes: float | None
    without_optimiser: list[LeftOut]
    without_dataset: list[LeftOut]
    warnings: list[str]
    left_out: list[str]

    @property
    def slopes(self) -> dict[str, float]:
        """Own slope of each optimiser."""
        return {name: line.slope for name, line in self.lines.items()}


def loss_alignment(checkpoints: pd.DataFrame, loss: str = "train_loss", base_model: str = "") -> LossAlignment:
    """Regressions over checkpoints of one base model, without a penalty.

    Args:
        checkpoints: `run_id`, `label`, `optimiser`, `dataset`, `mean_alignment` and the column `loss`, nats a token.
        base_model: its name, to be shown.

    Raises:
        UserError: fewer than four points with both.
    """
    usable = checkpoints[loss].gt(0) & checkpoints["mean_alignment"].notna()
    data = checkpoints[usable].assign(log_loss=lambda d: np.log(d[loss].astype(float)))
    data = data.rename(columns={"mean_alignment": "alignment"}).reset_index(drop=True)
    if len(data) < LEAST_POINTS + 1 or data["log_loss"].nunique() < 2:
        raise UserError(f"{len(data)} checkpoints have both {loss} and mean alignment: too few for a regression")
    several = data["optimiser"].nunique() > 1
    models = {name: _fit(data, name) for name in (FORMULAS if several else ["pooled"]) if _enough(data, name)}
    fits = {name: _facts(name, model) for name, model in models.items()}
    common, own = models.get("common slope"), models.get("own slopes")
    reference = str(sorted(data["optimiser"].unique())[0])
    return LossAlignment(
        loss=loss,
        base_model=base_model,
        clustered=_repeated(data),
        fits=fits,
        points=_observed(data, loss),
        pooled=_line(data),
        lines=_group_lines(data, "optimiser"),
        offsets={} if common is None else _offsets(common),
        reference=reference,
        p_optimiser=_wald(common, slopes=False) if common is not None else None,
        p_slopes=_wald(own, slopes=True) if own is not None else None,
        without_optimiser=_leave_out(data, "optimiser"),
        without_dataset=_leave_out(data, "dataset"),
        warnings=_simpson(data, "optimiser") + _simpson(data, "dataset"),
        left_out=[str(label) for label in checkpoints[~usable]["label"]],
    )


def _fit(data: pd.DataFrame, name: str) -> Any:
    """Errors clustered by run where checkpoints of one run stand beside each other.

    With as many parameters as runs or more there is no such error: `_sound` then is False.
    """
    model = ols(FORMULAS[name], data)
    runs = data["run_id"].astype("category").cat.codes
    if not _repeated(data) or runs.nunique() <= model.exog.shape[1]:
        return model.fit()
    return model.fit(cov_type="cluster", cov_kwds={"groups": runs}, use_t=True)


def _repeated(data: pd.DataFrame) -> bool:
    """Whether a run has several checkpoints."""
    return bool(data["run_id"].duplicated().any())


def _sound(model: Any) -> bool:
    """Whether the model's errors are those that its points need."""
    return model.cov_type == "cluster" or not _repeated(model.model.data.frame)


def _enough(data: pd.DataFrame, name: str) -> bool:
    """More points than parameters; two losses of one optimiser at least, and for own slopes of each."""
    each = data.groupby("optimiser")["log_loss"].nunique()
    parameters = {"pooled": 2, "common slope": 1 + len(each), "own slopes": 2 * len(each)}[name]
    losses = {"pooled": 2, "common slope": int(each.max()), "own slopes": int(each.min())}[name]
    return len(data) > parameters and losses > 1


def _facts(name: str, model: Any) -> Fit:
    slope = None if name == "own slopes" else _interval(model, "log_loss")
    return Fit(name, int(model.nobs), float(model.rsquared), float(model.rsquared_adj), slope)


def _offsets(model: Any) -> dict[str, Interval]:
    terms = [term for term in model.params.index if term.startswith("C(optimiser)[T.")]
    found = {term.removeprefix("C(optimiser)[T.").removesuffix("]"): _interval(model, term) for term in terms}
    return {name: interval for name, interval in found.items() if interval is not None}


def _interval(model: Any, term: str) -> Interval | None:
    if not _sound(model):
        return None
    low, high = model.conf_int().loc[term]
    method = "t, clustered by run" if model.cov_type == "cluster" else "t"
    return Interval(float(model.params[term]), float(low), float(high), method)


def _wald(model: Any, slopes: bool) -> float | None:
    """p of a Wald F test that the optimisers' own intercepts, or own slopes, are all those of the first.

    None where the errors say nothing of some of them, as with runs that repeat each other.
    """
    terms = [name.startswith("C(optimiser)") and name.endswith(":log_loss") == slopes for name in model.params.index]
    errors = model.cov_params().to_numpy()[np.ix_(terms, terms)]
    if not _sound(model) or np.linalg.matrix_rank(errors) < sum(terms):
        return None
    return float(model.f_test(np.eye(len(terms))[terms]).pvalue)


def _leave_out(data: pd.DataFrame, column: str) -> list[LeftOut]:
    found = []
    for group in sorted(data[column].unique()):
        rest, own = data[data[column] != group], data[data[column] == group]
        if len(rest) < LEAST_POINTS or rest["log_loss"].nunique() < 2:
            continue
        error = own["alignment"] - ols(FORMULAS["pooled"], rest).fit().predict(own)
        found.append(LeftOut(str(group), len(own), float(np.sqrt((error**2).mean())), float(error.mean())))
    return found


def _observed(data: pd.DataFrame, loss: str) -> list[Observed]:
    return [
        Observed(str(row["optimiser"]), str(row["dataset"]), float(row[loss]), float(row["alignment"]))
        for row in data.to_dict("records")
    ]


def _line(data: pd.DataFrame) -> Line:
    slope, intercept = np.polyfit(data["log_loss"], data["alignment"], 1)
    return Line(float(intercept), float(slope))


def _group_lines(data: pd.DataFrame, column: str) -> dict[str, Line]:
    return {
        str(name): _line(part)
        for name, part in data.groupby(column, sort=True)
        if len(part) >= LEAST_POINTS and part["log_loss"].nunique() > 1
    }


def _simpson(data: pd.DataFrame, column: str) -> list[str]:
    """Words of warning where the slope within groups has another sign than the pooled one."""
    if data[column].nunique() < 2:
        return []
    pooled = _line(data).slope
    centred = data[["log_loss", "alignment"]] - data.groupby(column)[["log_loss", "alignment"]].transform("mean")
    spread = float((centred["log_loss"] ** 2).sum())
    if spread < 1e-12:
        return [f"loss does not vary within any {column}: the slope is one between {column}s only"]
    within = float((centred["log_loss"] * centred["alignment"]).sum()) / spread
    found = []
    if within * pooled < 0:
        found.append(
            f"the slope turns round within {column}s ({within:+.2f} against {pooled:+.2f} pooled): Simpson's paradox"
        )
    for name, line in _group_lines(data, column).items():
        if line.slope * pooled < 0 and within * pooled >= 0:
            found.append(
                f"the slope within {column} {name} ({line.slope:+.2f}) is opposite to the pooled one ({pooled:+.2f})"
            )
    return found
