"""Schedule-Free AdamW (Defazio et al. 2024, arXiv 2405.15682) of pytorch_optimizer, at a constant rate.

Gradients are taken at y; the average x is what is published. A kept checkpoint holds x, the resumable state y.
"""

from typing import Annotated

import torch
from pydantic import Field

from em_train.optimisers.evaluation_weights import by_switching
from em_train.optimisers.registry import Beta, Hyperparameters, ParameterGroups, optimiser


class ScheduleFreeAdamWHyperparameters(Hyperparameters):
    betas: tuple[Annotated[float, Field(gt=0, lt=1)], Beta] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.0, ge=0, description="of y")
    r: float = Field(0.0, ge=0, description="step t weighs t^r in the average")
    weight_lr_power: float = Field(2.0, ge=0, description="and the largest rate so far to this power")


@optimiser(
    "schedule_free_adamw",
    ScheduleFreeAdamWHyperparameters,
    "pytorch_optimizer.ScheduleFreeAdamW",
    schedule="constant",
    evaluation_weights=by_switching,
)
def schedule_free_adamw(groups: ParameterGroups, hyper: ScheduleFreeAdamWHyperparameters) -> torch.optim.Optimizer:
    from pytorch_optimizer import ScheduleFreeAdamW  # a second to import

    return ScheduleFreeAdamW(groups, foreach=torch.cuda.is_available())
