"""Singular values of the LoRA product BA without forming it: exactly, and the way of Evil Spectra.

With B'B = R_B' R_B and AA' = R_A' R_A, the r x r matrix R_B R_A' has the singular values of BA. R comes from a QR
in float64, which is exact to rounding, or, a fifth of the work, from the Cholesky factor of the Gram matrix in
float64. The latter loses digits with the square of the condition number, so it is used only where that is small.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from em_core.errors import UserError
from em_train.spectra.pairs import LoraPair

PAPER_RIDGE = 1e-8  # Evil Spectra, app. G.1: added to the diagonal of B'B
PAPER_GATE = 1e-12  # Frobenius norm of B below which the paper leaves a module out
GRAM_CONDITION = 1e3  # of a factor: above it, its R comes from QR; below, the smallest value keeps ten digits


def singular_values(a: Tensor, b: Tensor) -> Tensor:
    """The min(m, n, r) singular values of BA, float64, descending. See `exact_spectra`."""
    return exact_spectra([LoraPair("", a, b)])[0]


@torch.no_grad()
def exact_spectra(pairs: Sequence[LoraPair]) -> list[Tensor]:
    """Singular values of each module's BA: min(m, n, r) of them, float64, descending.

    A value within rounding of the product (10 r eps ||B||_F ||A||_F) cannot be told from zero and is zero, so that
    a BA without full rank has zeros and not noise. All are zero where B = 0.
    """
    roots_a = _roots([pair.a.mT for pair in pairs])
    roots_b = _roots([pair.b for pair in pairs])
    cores = [b @ a.mT for a, b in zip(roots_a, roots_b, strict=True)]
    values = _batched(torch.linalg.svdvals, cores)
    return [
        torch.where(sigma > noise_of(a, b, pair.a.shape[0]), sigma, 0.0).cpu()
        for sigma, a, b, pair in zip(values, roots_a, roots_b, pairs, strict=True)
    ]


def noise_of(root_a: Tensor, root_b: Tensor, rank: int) -> Tensor:
    """What rounding in float64 may leave of a singular value of BA that is zero: 10 r eps ||B||_F ||A||_F.

    Args:
        root_a, root_b: have the Frobenius norms of A and B.
    """
    noise: Tensor = 10 * rank * torch.finfo(torch.float64).eps * root_a.norm() * root_b.norm()
    return noise


@torch.no_grad()
def paper_spectra(pairs: Sequence[LoraPair]) -> list[Tensor]:
    """Singular values as Evil Spectra computes them (app. G.1): svdvals(L'A), L L' = B'B + 1e-8 I, in float32.

    Below its floor (see `is_resolved`) this is the spectrum of A. Modules with ||B||_F < 1e-12 have zeros.

    Raises:
        UserError: B'B is so ill-conditioned that float32 cannot factor it.
    """
    found = []
    for pair in pairs:
        a, b = pair.a.float(), pair.b.float()
        if float(b.norm()) < PAPER_GATE:
            found.append(torch.zeros(min(len(b), *a.shape), dtype=torch.float64))
            continue
        ridge = PAPER_RIDGE * torch.eye(b.shape[1], device=b.device)
        root, failed = torch.linalg.cholesky_ex(b.mT @ b + ridge)
        if bool(failed):
            raise UserError(f"{pair.name}: float32 cannot factor B'B, as the paper's way needs: use the exact way")
        found.append(torch.linalg.svdvals(root.mT @ a)[: len(b)].double().cpu())
    return found


def is_resolved(b: Tensor) -> bool:
    """Whether the mean eigenvalue of B'B lies above 100 times the ridge that the paper adds to it.

    Where it does not, the paper's way sees the ridge more than B, and its figures and ours part.
    """
    return float(b.float().norm()) ** 2 / b.shape[1] > 100 * PAPER_RIDGE


def product_norm(pairs: Sequence[LoraPair], scaling: float) -> float:
    """Root of the summed squared Frobenius norms of s BA: ||BA||_F^2 = tr(B'B AA'), in float32 at least."""
    total = 0.0
    for pair in pairs:
        a, b = _at_least_float32(pair.a), _at_least_float32(pair.b)
        total += float(((b.T @ b).double() * (a @ a.T).double()).sum())
    return float(scaling * max(total, 0.0) ** 0.5)


def _at_least_float32(factor: Tensor) -> Tensor:
    return factor.to(torch.promote_types(factor.dtype, torch.float32))


def _roots(factors: Sequence[Tensor]) -> list[Tensor]:
    """R with R'R = X'X for each X of shape (d, r); min(d, r) x r, float64."""
    wide = [factor.double() for factor in factors]
    grams = [x.mT @ x for x in wide]
    lowest_to_highest = _batched(torch.linalg.eigvalsh, grams)
    # Of a Gram matrix that cannot be factored this holds no numbers of use; those go to QR.
    choleskys = _batched(lambda gram: torch.linalg.cholesky_ex(gram).L, grams)
    return [
        root.mT if values[0] > values[-1] / GRAM_CONDITION**2 else torch.linalg.qr(x, mode="r").R
        for x, values, root in zip(wide, lowest_to_highest, choleskys, strict=True)
    ]


def _batched(function: Callable[[Tensor], Tensor], matrices: Sequence[Tensor]) -> list[Tensor]:
    """`function` of each matrix, those of one shape in one call."""
    groups: dict[torch.Size, list[int]] = {}
    for place, matrix in enumerate(matrices):
        groups.setdefault(matrix.shape, []).append(place)
    found: dict[int, Tensor] = {}
    for places in groups.values():
        results = function(torch.stack([matrices[place] for place in places]))
        found |= dict(zip(places, results, strict=True))
    return [found[place] for place in range(len(matrices))]
