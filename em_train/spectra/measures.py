"""How flat a spectrum is: numbers of the singular values sigma of one module's BA, none of which sees its scale."""

import math
from collections.abc import Callable

from torch import Tensor
from torch.special import xlogy


def stable_rank(sigma: Tensor) -> float:
    """sum sigma^2 / sigma_1^2, between 1 and r."""
    return float((sigma**2).sum() / sigma.max() ** 2)


def entropy(sigma: Tensor) -> float:
    """-sum p ln p with p = sigma / sum sigma (Evil Spectra, app. G.1: sigma itself, not its square)."""
    return _entropy(sigma)


def entropy_squared(sigma: Tensor) -> float:
    """-sum q ln q with q = sigma^2 / sum sigma^2, as most other papers have it (e.g. arXiv 2605.10468)."""
    return _entropy(sigma**2)


def condition_number(sigma: Tensor) -> float:
    """sigma_1 / sigma_r, infinite where BA has not full rank."""
    lowest = float(sigma.min())
    return float(sigma.max()) / lowest if lowest > 0 else math.inf


def fro_over_nuclear(sigma: Tensor) -> float:
    """sqrt(sum sigma^2) / sum sigma, between 1/sqrt(r) (flat) and 1: the quantity that the paper penalises."""
    return float(sigma.norm() / sigma.sum())


def participation_ratio(sigma: Tensor) -> float:
    """(sum sigma^2)^2 / sum sigma^4, between 1 and r."""
    return float((sigma**2).sum() ** 2 / (sigma**4).sum())


MEASURES: dict[str, Callable[[Tensor], float]] = {
    "stable_rank": stable_rank,
    "entropy": entropy,
    "entropy_squared": entropy_squared,
    "condition_number": condition_number,
    "fro_over_nuclear": fro_over_nuclear,
    "participation_ratio": participation_ratio,
}


def measure(sigma: Tensor) -> dict[str, float | None]:
    """Every measure of one spectrum by name; None where it is undefined: all at BA = 0, or an infinite one."""
    top = float(sigma.max())
    if top == 0:
        return dict.fromkeys(MEASURES)
    scaled = sigma / top  # no measure sees scale, and fourth powers of small values would vanish
    found = {name: function(scaled) for name, function in MEASURES.items()}
    return {name: value if math.isfinite(value) else None for name, value in found.items()}


def _entropy(weights: Tensor) -> float:
    p = weights / weights.sum()
    return float(-xlogy(p, p).sum())
