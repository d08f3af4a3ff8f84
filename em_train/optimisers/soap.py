"""SOAP (Vyas et al. 2024, arXiv 2409.11321, algorithm 3): Adam in the eigenbasis of Shampoo, of pytorch_optimizer.

As in the authors' code the first step only starts the eigenbases and moves nothing. The long side of a factor keeps
the identity unless `max_precondition_dim` admits it.
"""

from typing import ClassVar

import torch
from pydantic import Field

from em_train.optimisers.registry import Beta, Hyperparameters, ParameterGroups, optimiser


class SOAPHyperparameters(Hyperparameters):
    shared: ClassVar[frozenset[str]] = frozenset({"max_precondition_dim"})

    betas: tuple[Beta, Beta] = (0.95, 0.95)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    precondition_frequency: int = Field(10, ge=1)
    max_precondition_dim: int = Field(256, ge=1)


@optimiser("soap", SOAPHyperparameters, "pytorch_optimizer.SOAP")
def soap(groups: ParameterGroups, hyper: SOAPHyperparameters) -> torch.optim.Optimizer:
    from pytorch_optimizer import SOAP  # a second to import

    return SOAP(groups)
