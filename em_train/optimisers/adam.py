"""Adam (Kingma & Ba 2015), torch's own; a weight decay is an L2 term in the gradient, as in the original."""

import torch
from pydantic import Field

from em_train.optimisers.registry import Beta, Hyperparameters, ParameterGroups, optimiser


class AdamHyperparameters(Hyperparameters):
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.0, ge=0)


@optimiser("adam", AdamHyperparameters, "torch.optim.Adam")
def adam(groups: ParameterGroups, hyper: AdamHyperparameters) -> torch.optim.Optimizer:
    return torch.optim.Adam(groups, fused=True)
