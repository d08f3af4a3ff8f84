"""Entropy of the singular values as the measure of flatness."""

import math

from torch import Tensor
from torch.special import xlogy

from em_train.penalties.registry import of_spectrum


@of_spectrum("entropy", "effective rank, Roy & Vetterli 2007; entropy as in Evil Spectra, app. G.1")
def entropy(sigma: Tensor) -> Tensor:
    """ln r - H(p) with p = sigma / sum sigma: 0 where the spectrum is flat, ln r at rank one."""
    p = sigma / sigma.sum(-1, keepdim=True)
    gap: Tensor = xlogy(p, p).sum(-1) + math.log(sigma.shape[-1])
    return gap
