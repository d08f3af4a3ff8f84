"""The mean over modules of any function of the singular values of BA, with its gradient in closed form.

With the Cholesky factors L_B L_B' = B'B, L_A L_A' = AA' and the r x r decomposition X S Y' = L_B' L_A, the
singular vectors of BA are B L_B^-T X and A' L_A^-T Y, so that for h(sigma) with g = dh/dsigma

    dh/dB = B [L_B^-T X diag(g) Y' L_A']        dh/dA = [L_B X diag(g) Y' L_A^-1] A

Nothing larger than r x r is decomposed, BA is never formed, and no 1/(sigma_i^2 - sigma_j^2) appears, so that equal
singular values do no harm.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from em_train.spectra import LoraPair

Flatness = Callable[[Tensor], Tensor]
RIDGE = 1e-12  # relative to the trace: a factor without full rank has a Cholesky factor too


def mean_over_modules(function: Flatness, modules: Sequence[LoraPair], gate: float) -> tuple[Tensor | None, int]:
    """(mean of `function` over modules with ||B||_F above `gate`, number of the others).

    Args:
        function: from singular values (modules, r), float64 and descending, to one number a module.
        modules: of one rank r.
        gate: where B is smaller, BA has no direction and a scale-free function no gradient.

    Returns:
        A float64 scalar that autograd can go through, or None where every module is below the gate.
    """
    with torch.no_grad():
        grams_a = torch.stack([_gram(pair.a.mT) for pair in modules])
        grams_b = torch.stack([_gram(pair.b) for pair in modules])
        squares = zip(_traces(grams_a).tolist(), _traces(grams_b).tolist(), strict=True)
        # Weights that are no longer numbers are silent too: the loss is the one to report them.
        loud = [place for place, (a, b) in enumerate(squares) if 0 < a < math.inf and gate**2 < b < math.inf]
    silent = len(modules) - len(loud)
    if not loud:
        return None, silent
    factors = [factor for place in loud for factor in (modules[place].a, modules[place].b)]
    value: Tensor = _Mean.apply(  # type: ignore[no-untyped-call]
        function, grams_a[loud], grams_b[loud], *factors
    )
    return value, silent


class _Mean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Flatness, grams_a: Tensor, grams_b: Tensor, *factors: Tensor) -> Tensor:
        root_a, root_b = _cholesky(grams_a), _cholesky(grams_b)
        x, sigma, y = torch.linalg.svd(root_b.mT @ root_a)
        with torch.enable_grad():
            values = sigma.requires_grad_()
            found = function(values).mean()
            (slope,) = torch.autograd.grad(found, values)
        core = x * slope[:, None, :] @ y  # X diag(g) Y', the mean's 1/modules included
        of_b = torch.linalg.solve_triangular(root_b.mT, core @ root_a.mT, upper=True)
        of_a = torch.linalg.solve_triangular(root_a, root_b @ core, upper=False, left=False)
        ctx.save_for_backward(of_a, of_b, *factors)
        return found.detach()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        of_a, of_b, *factors = ctx.saved_tensors
        gradients: list[Tensor] = []
        with torch.autocast(upstream[0].device.type, enabled=False):
            for place in range(len(of_a)):
                a, b = factors[2 * place], factors[2 * place + 1]
                gradients.append((upstream[0] * of_a[place]).to(a.dtype) @ a)
                gradients.append(b @ (upstream[0] * of_b[place]).to(b.dtype))
        return (None, None, None, *gradients)


def _gram(factor: Tensor) -> Tensor:
    """X'X of a (d, r) factor in float64: the square of its condition number stays within what Cholesky can take."""
    wide = factor.detach().double()
    gram: Tensor = wide.mT @ wide
    return gram


def _cholesky(grams: Tensor) -> Tensor:
    ridge = RIDGE * _traces(grams)[:, None, None] * torch.eye(grams.shape[-1], device=grams.device, dtype=grams.dtype)
    factors: Tensor = torch.linalg.cholesky(grams + ridge)
    return factors


def _traces(grams: Tensor) -> Tensor:
    return grams.diagonal(dim1=-2, dim2=-1).sum(-1)
