"""SignSGD, and with momentum Signum (Bernstein et al. 2018), of pytorch_optimizer; the decay is decoupled."""

import torch
from pydantic import Field

from em_train.optimisers.registry import Hyperparameters, ParameterGroups, optimiser


class SignSGDHyperparameters(Hyperparameters):
    momentum: float = Field(0.0, ge=0, lt=1, description="0: SignSGD; above: Signum")
    weight_decay: float = Field(0.0, ge=0)


@optimiser("signsgd", SignSGDHyperparameters, "pytorch_optimizer.SignSGD")
def signsgd(groups: ParameterGroups, hyper: SignSGDHyperparameters) -> torch.optim.Optimizer:
    from pytorch_optimizer import SignSGD  # a second to import

    return SignSGD(groups, foreach=torch.cuda.is_available())
