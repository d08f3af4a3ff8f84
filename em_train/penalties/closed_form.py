"""The mean over modules of any function of the singular values of BA, with its gradient in closed form.

With the Cholesky factor LL' = AA' and the r x r decomposition Y diag(sigma^2) Y' = L' B'B L, the singular vectors of BA
are B L Y diag(1/sigma) and A' L^-T Y. For h(sigma) with g = dh/dsigma and P = Y diag(g/sigma) Y' that gives

    dh/dB = B [L P L']        dh/dA = [B'B L P L^-1] A

Nothing larger than r x r is decomposed, BA is never formed, and no 1/(sigma_i^2 - sigma_j^2) appears, so that equal
singular values do no harm.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from em_train.penalties.gradient import OfFactors
from em_train.spectra import LoraPair

Flatness = Callable[[Tensor], Tensor]
# Of squared singular values, relative to the largest: what float64 resolves. Below 1e-7 of it a value counts as that.
FLOOR = 1e-14
TOGETHER = 16
RIDGE = 1e-12  # relative to the trace: a factor without full rank has a Cholesky factor too


@dataclass(frozen=True)
class Mean:
    """The value, a float64 scalar, and its gradient; both None where every module is silent.

    Attributes:
        silent: modules left out, ||B||_F at or below the gate.
    """

    value: Tensor | None
    gradient: OfFactors | None
    silent: int


@torch.no_grad()
def mean_over_modules(function: Flatness, modules: Sequence[LoraPair], gate: float) -> Mean:
    """The mean of `function` over the modules with ||B||_F above `gate`.

    Args:
        function: from singular values (modules, r), float64 and descending, to one number a module.
        modules: of one rank r.
        gate: where B is smaller, BA has no direction and a scale-free function no gradient.

    Raises:
        torch.linalg.LinAlgError: a decomposition failed.
    """
    rank = len(modules[0].a)
    grams_a = _grams([pair.a for pair in modules], rank, lambda a: a @ a.mT)
    grams_b = _grams([pair.b for pair in modules], rank, lambda b: b.mT @ b)
    squares = zip(_traces(grams_a).tolist(), _traces(grams_b).tolist(), strict=True)
    # Weights that are no longer numbers are silent too: the loss is the one to report them.
    loud = [place for place, (a, b) in enumerate(squares) if 0 < a < math.inf and gate**2 < b < math.inf]
    if not loud:
        return Mean(None, None, len(modules))
    if len(loud) < len(modules):
        grams_a, grams_b = grams_a[loud], grams_b[loud]
    root = _cholesky(grams_a)
    half = grams_b @ root  # B'B L
    squared, y = torch.linalg.eigh(root.mT @ half)
    squared, y = squared.flip(-1), y.flip(-1)
    sigma = squared.clamp(min=FLOOR * squared[:, :1]).sqrt()
    value, slope = _value_and_slope(function, sigma)
    core = (y * (slope / sigma)[:, None, :]) @ y.mT  # P, the mean's 1/modules included
    of_a = torch.linalg.solve_triangular(root, half @ core, upper=False, left=False)
    gradient = OfFactors([modules[place] for place in loud], of_a, root @ core @ root.mT, grams_a, grams_b)
    return Mean(value, gradient, len(modules) - len(loud))


@torch.enable_grad()
def _value_and_slope(function: Flatness, sigma: Tensor) -> tuple[Tensor, Tensor]:
    values = sigma.requires_grad_()
    found = function(values).mean()
    (slope,) = torch.autograd.grad(found, values)
    return found.detach(), slope


def _grams(factors: Sequence[Tensor], rank: int, product: Callable[[Tensor], Tensor]) -> Tensor:
    """The Gram matrix (r, r) of each factor by `product`, in float64: the square of a factor's condition number stays
    within what Cholesky can take. Some factors of one shape are multiplied together."""
    places = defaultdict(list)
    for place, factor in enumerate(factors):
        places[factor.shape].append(place)
    found = torch.empty(len(factors), rank, rank, dtype=torch.float64, device=factors[0].device)
    for same in places.values():
        for start in range(0, len(same), TOGETHER):
            some = same[start : start + TOGETHER]
            found[some] = product(torch.stack([factors[place] for place in some]).double())
    return found


def _cholesky(grams: Tensor) -> Tensor:
    ridge = RIDGE * _traces(grams)[:, None, None] * torch.eye(grams.shape[-1], device=grams.device, dtype=grams.dtype)
    factors: Tensor = torch.linalg.cholesky(grams + ridge)
    return factors


def _traces(grams: Tensor) -> Tensor:
    return grams.diagonal(dim1=-2, dim2=-1).sum(-1)
