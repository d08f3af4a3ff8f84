"""The polar factor of a thin matrix from its small Gram matrix.

For X of shape r x d, r <= d, with K = XX', every odd matrix polynomial of X is P X with P a polynomial of K. So five
steps of Newton-Schulz cost two thin products (K and P X) and small ones of r x r, which all modules share in one
batch, where the plain iteration multiplies the thin matrix ten times.
"""

import torch
from torch import Tensor

# Jordan et al. 2024, the coefficients of torch.optim.Muon.
COEFFICIENTS = (3.4445, -4.775, 2.0315)


def newton_schulz(grams: Tensor, steps: int = 5, eps: float = 1e-7) -> Tensor:
    """P (..., r, r) such that P X is the Newton-Schulz iterate of X after `steps` steps, for K = XX' (..., r, r).

    The iterate X <- a X + b (XX') X + c (XX')^2 X is P <- p P and K <- p K p with p = a I + b K + c K^2. All of these
    commute, being polynomials of the first K. Four buffers serve all steps: fresh memory would cost more than the
    products.
    """
    a, b, c = COEFFICIENTS
    norm = grams.diagonal(dim1=-2, dim2=-1).sum(-1).sqrt().clamp(min=eps)[..., None, None]
    k = grams / norm.square()
    p, spare, product = torch.empty_like(k), torch.empty_like(k), torch.empty_like(k)
    for step in range(steps):
        torch.matmul(k, k, out=p).mul_(c).add_(k, alpha=b)
        p.diagonal(dim1=-2, dim2=-1).add_(a)
        if step == 0:
            torch.div(p, norm, out=product)
        else:
            product, spare = torch.matmul(p, product, out=spare), product
        if step < steps - 1:
            torch.matmul(p, torch.matmul(k, p, out=spare), out=k)
    return product


def inverse_root(grams: Tensor, damping: float = 0.0, floor: float = 1e-12) -> Tensor:
    """K^(-1/2) (..., r, r) by eigendecomposition; on its null space, and for K = 0, zero.

    With K = XX' the exact polar factor of X is K^(-1/2) X. Form K in float64: its condition is that of X squared.

    Args:
        damping: added to every eigenvalue, as a share of the largest.
        floor: eigenvalues up to this share of the largest count as zero. 1e-12 is singular values of X below 1e-6 of
            the largest, which in float32 are rounding.
    """
    values, vectors = torch.linalg.eigh(grams)
    largest = values[..., -1:].clamp(min=0)
    values = values + damping * largest
    used = values > floor * largest
    roots = torch.where(used, torch.where(used, values, 1.0).rsqrt(), 0.0)
    root: Tensor = (vectors * roots[..., None, :]) @ vectors.mT
    return root
