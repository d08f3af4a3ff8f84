"""Stochastic gradient descent with momentum, torch's own."""

import torch
from pydantic import Field, model_validator

from em_train.optimisers.registry import Hyperparameters, ParameterGroups, optimiser


class SGDHyperparameters(Hyperparameters):
    momentum: float = Field(0.9, ge=0, lt=1)
    dampening: float = Field(0.0, ge=0, le=1)
    nesterov: bool = False
    weight_decay: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _nesterov_needs_plain_momentum(self) -> "SGDHyperparameters":
        if self.nesterov and (self.momentum == 0 or self.dampening != 0):
            raise ValueError("nesterov needs momentum above 0 and dampening 0")
        return self


@optimiser("sgd", SGDHyperparameters, "torch.optim.SGD")
def sgd(groups: ParameterGroups, hyper: SGDHyperparameters) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups)
