"""Weights to publish that are not the weights that training holds (Schedule-Free: x is published, y is trained)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from em_train.optimisers.registry import OptimiserPlugin


@contextmanager
def published(plugin: OptimiserPlugin, optimiser: Any) -> Iterator[None]:
    """Within, the parameters hold the weights to publish; afterwards those of training again, to the last bit.

    Args:
        optimiser: the optimiser of the run, as accelerate wraps it or bare; None before training.
    """
    if plugin.evaluation_weights is None or optimiser is None:
        yield
        return
    values = plugin.evaluation_weights(getattr(optimiser, "optimizer", optimiser))
    kept = {parameter: parameter.detach().clone() for parameter in values}
    _write(values)
    try:
        yield
    finally:
        _write(kept)


def by_switching(optimiser: Any) -> dict[Tensor, Tensor]:
    """Evaluation weights of an optimiser that swaps them in by its own `eval()` and out by `train()`.

    Its way back rounds, so the training weights are put back from a copy.
    """
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    kept = {parameter: parameter.detach().clone() for parameter in parameters}
    optimiser.eval()
    values = {parameter: parameter.detach().clone() for parameter in parameters}
    optimiser.train()
    _write(kept)
    return values


@torch.no_grad()
def _write(values: dict[Tensor, Tensor]) -> None:
    for parameter, value in values.items():
        parameter.copy_(value)
