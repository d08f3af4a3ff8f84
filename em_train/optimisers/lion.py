"""Lion (Chen et al. 2023, arXiv 2302.06675, algorithm 2): the sign of an interpolated momentum.

    update = sign(b1 m + (1 - b1) g);   p <- p - lr (update + wd p);   m <- b2 m + (1 - b2) g

Every element moves by exactly the learning rate (or not at all, where the momentum is zero).
"""

from collections.abc import Callable
from typing import Any

import torch
from pydantic import Field

from em_train.optimisers.registry import Beta, Hyperparameters, ParameterGroups, optimiser


class LionHyperparameters(Hyperparameters):
    betas: tuple[Beta, Beta] = (0.9, 0.99)
    weight_decay: float = Field(0.0, ge=0)


class Lion(torch.optim.Optimizer):
    """State: one momentum a parameter, made at its first gradient."""

    def __init__(
        self, params: Any, lr: float = 1e-4, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            b1, b2 = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                momentum = state["momentum"]
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(momentum.lerp(parameter.grad, 1 - b1).sign_(), alpha=-group["lr"])
                momentum.lerp_(parameter.grad, 1 - b2)
        return loss


@optimiser("lion", LionHyperparameters, "em_train.optimisers.lion.Lion")
def lion(groups: ParameterGroups, hyper: LionHyperparameters) -> torch.optim.Optimizer:
    return Lion(groups)
