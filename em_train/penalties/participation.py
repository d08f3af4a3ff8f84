"""Inverse participation ratio of the squared singular values as the measure of peakedness."""

from torch import Tensor

from em_train.penalties.registry import of_spectrum


@of_spectrum("participation", "inverse participation ratio of the squared singular values")
def participation(sigma: Tensor) -> Tensor:
    """sum sigma^4 / (sum sigma^2)^2 - 1/r: 0 where the spectrum is flat, 1 - 1/r at rank one."""
    squares = sigma**2 / (sigma**2).sum(-1, keepdim=True)
    return (squares**2).sum(-1) - 1 / sigma.shape[-1]
