"""Muon (Jordan et al. 2024), torch's own, on every LoRA factor.

`adjust_lr_fn="original"` scales the rate of a factor by sqrt(max(1, rows / columns)), so that A hardly moves
beside B; `"match_rms_adamw"` (Liu et al. 2025) gives every element an update of about 0.2 lr.
"""

from typing import Literal

import torch
from pydantic import Field

from em_core.errors import UserError
from em_train.optimisers.registry import Hyperparameters, NamedParameters, optimiser


class MuonHyperparameters(Hyperparameters):
    momentum: float = Field(0.95, ge=0, lt=1)
    nesterov: bool = True
    ns_steps: int = Field(5, ge=1, lt=100)
    eps: float = Field(1e-7, gt=0)
    weight_decay: float = Field(0.1, ge=0)
    adjust_lr_fn: Literal["original", "match_rms_adamw"] = "original"


@optimiser("muon", MuonHyperparameters, "torch.optim.Muon")
def muon(parameters: NamedParameters, lr: float, hyper: MuonHyperparameters) -> torch.optim.Optimizer:
    odd = [name for name, parameter in parameters if parameter.ndim != 2]
    if odd:
        raise UserError(f"optimiser 'muon' takes matrices only, but {odd[0]} is not one: choose other target modules")
    return torch.optim.Muon(
        [parameter for _, parameter in parameters],
        lr=lr,
        momentum=hyper.momentum,
        nesterov=hyper.nesterov,
        ns_steps=hyper.ns_steps,
        eps=hyper.eps,
        weight_decay=hyper.weight_decay,
        adjust_lr_fn=hyper.adjust_lr_fn,
    )
