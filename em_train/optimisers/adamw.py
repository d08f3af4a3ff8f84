"""AdamW (Loshchilov & Hutter 2019), torch's own."""

import torch
from pydantic import Field

from em_train.optimisers.registry import Beta, Hyperparameters, ParameterGroups, optimiser


class AdamWHyperparameters(Hyperparameters):
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.01, ge=0)


@optimiser("adamw", AdamWHyperparameters, "torch.optim.AdamW")
def adamw(groups: ParameterGroups, hyper: AdamWHyperparameters) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, fused=True)
