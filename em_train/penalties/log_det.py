"""Log-determinant against its bound: a barrier against the loss of rank."""

import math

from torch import Tensor

from em_train.penalties.registry import of_spectrum


@of_spectrum("log_det", "inequality of arithmetic and geometric means on the squared singular values")
def log_det(sigma: Tensor) -> Tensor:
    """ln(||BA||_F^2 / r) - ln det((BA)'BA) / r, the determinant over the r values: 0 where flat, infinite at rank loss.

    A module whose r exceeds its sides has no full rank: choose another form there.
    """
    rank = sigma.shape[-1]
    return (sigma**2).sum(-1).log() - math.log(rank) - 2 * sigma.log().mean(-1)
