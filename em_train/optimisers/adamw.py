"""AdamW (Loshchilov & Hutter 2019), torch's own."""

import torch
from pydantic import Field

from em_train.optimisers.registry import Beta, Hyperparameters, NamedParameters, optimiser


class AdamWHyperparameters(Hyperparameters):
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.01, ge=0)


@optimiser("adamw", AdamWHyperparameters, "torch.optim.AdamW")
def adamw(parameters: NamedParameters, lr: float, hyper: AdamWHyperparameters) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        [parameter for _, parameter in parameters],
        lr=lr,
        betas=hyper.betas,
        eps=hyper.eps,
        weight_decay=hyper.weight_decay,
        fused=True,
    )
