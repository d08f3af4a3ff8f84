"""The penalty of Evil Spectra (arXiv 2606.31591, main form): Frobenius over nuclear norm of each BA."""

import math

import torch
from torch import Tensor

from em_train.penalties.registry import of_spectrum


def fro_over_nuclear_gap(sigma: Tensor) -> Tensor:
    """||BA||_F / ||BA||_* - 1/sqrt(r) of each module: 0 where its spectrum is flat, at most 1 - 1/sqrt(r)."""
    frobenius: Tensor = torch.linalg.vector_norm(sigma, dim=-1)
    return frobenius / sigma.sum(-1) - 1 / math.sqrt(sigma.shape[-1])


spectral = of_spectrum("spectral", "Evil Spectra (arXiv 2606.31591), main form")(fro_over_nuclear_gap)
