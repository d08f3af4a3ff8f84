"""Adafactor (Shazeer & Stern 2018, arXiv 1804.04235, algorithm 4) of transformers, its rate set by the run's schedule.

torch's own adds its stabiliser elsewhere, where it acts on gradients as small as those of a LoRA factor.
`scale_parameter` multiplies the rate by the factor's root mean square: B, which starts at zero, then crawls.
"""

import torch
from pydantic import Field

from em_train.optimisers.registry import Beta, Hyperparameters, ParameterGroups, optimiser


class AdafactorHyperparameters(Hyperparameters):
    eps: tuple[float, float] = Field((1e-30, 1e-3), description="added to g^2; least root mean square of a factor")
    clip_threshold: float = Field(1.0, ge=1, description="largest root mean square of an update, in rates")
    decay_rate: float = Field(-0.8, le=0, description="second moments decay by 1 - t^decay_rate")
    beta1: Beta | None = None
    weight_decay: float = Field(0.0, ge=0)
    scale_parameter: bool = False


@optimiser("adafactor", AdafactorHyperparameters, "transformers.optimization.Adafactor")
def adafactor(groups: ParameterGroups, hyper: AdafactorHyperparameters) -> torch.optim.Optimizer:
    from transformers.optimization import Adafactor

    made: torch.optim.Optimizer = Adafactor(groups, relative_step=False)
    return made
