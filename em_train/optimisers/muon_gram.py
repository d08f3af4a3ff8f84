"""Muon whose Newton-Schulz iteration runs on r x r Gram matrices, all LoRA factors at once.

The same update as `muon` up to rounding: torch iterates in bfloat16, this in float32. It is a name of its own, so
that the arm called `muon` stays torch's to the bit. `polar="exact"` takes the exact polar factor instead.
"""

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from em_train.optimisers.muon import MuonHyperparameters, with_adamw
from em_train.optimisers.polar import inverse_root, newton_schulz
from em_train.optimisers.registry import ParameterGroups, optimiser

Scratch = dict[tuple[torch.Size, torch.dtype], Tensor]


class MuonGramHyperparameters(MuonHyperparameters):
    polar: Literal["newton_schulz", "exact"] = "newton_schulz"


class MuonGram(torch.optim.Optimizer):
    """Matrices only. State: one momentum a parameter, as in torch.optim.Muon."""

    def __init__(self, params: Any) -> None:
        defaults = {
            "lr": 1e-3,
            "momentum": 0.95,
            "nesterov": True,
            "ns_steps": 5,
            "eps": 1e-7,
            "weight_decay": 0.1,
            "adjust_lr_fn": "original",
            "polar": "newton_schulz",
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._step_group(group)
        return loss

    def _step_group(self, group: dict[str, Any]) -> None:
        """Grams one factor at a time, their polar factors in one batch a rank, then the products one at a time.

        The direction is formed twice, in a buffer that stays in the cache, rather than kept for all modules: writing
        and reading a second copy of the adapter costs more than the interpolation.
        """
        live = [parameter for parameter in group["params"] if parameter.grad is not None]
        exact = group["polar"] == "exact"
        precision = torch.float64 if exact else torch.float32
        scratch: Scratch = {}
        grams: dict[int, list[Tensor]] = defaultdict(list)
        members: dict[int, list[Tensor]] = defaultdict(list)
        for parameter in live:
            state = self.state[parameter]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            momentum = state["momentum_buffer"].lerp_(parameter.grad, 1 - group["momentum"])
            thin = _wide(_in(precision, _direction(parameter, momentum, group, scratch), scratch))
            grams[len(thin)].append(thin @ thin.T)
            members[len(thin)].append(parameter)
        for rank, batch in grams.items():
            stacked = torch.stack(batch)
            factors = inverse_root(stacked) if exact else newton_schulz(stacked, group["ns_steps"], group["eps"])
            for parameter, factor in zip(members[rank], factors, strict=True):
                direction = _direction(parameter, self.state[parameter]["momentum_buffer"], group, scratch)
                _wide(parameter).addmm_(
                    factor.to(parameter.dtype),
                    _wide(direction),
                    beta=1 - group["lr"] * group["weight_decay"],
                    alpha=-group["lr"] * _scale(parameter, group["adjust_lr_fn"]),
                )


def _direction(parameter: Tensor, momentum: Tensor, group: dict[str, Any], scratch: Scratch) -> Tensor:
    if not group["nesterov"]:
        return momentum
    grad = parameter.grad
    assert grad is not None
    return torch.lerp(grad, momentum, group["momentum"], out=_buffer(grad, grad.dtype, scratch))


def _in(precision: torch.dtype, matrix: Tensor, scratch: Scratch) -> Tensor:
    return matrix if matrix.dtype == precision else _buffer(matrix, precision, scratch).copy_(matrix)


def _buffer(like: Tensor, precision: torch.dtype, scratch: Scratch) -> Tensor:
    """One buffer a shape: new memory for every factor would cost more in page faults than the arithmetic."""
    if (like.shape, precision) not in scratch:
        scratch[like.shape, precision] = torch.empty_like(like, dtype=precision)
    return scratch[like.shape, precision]


def _wide(matrix: Tensor) -> Tensor:
    """The orientation with at most as many rows as columns."""
    return matrix.T if matrix.shape[0] > matrix.shape[1] else matrix


def _scale(matrix: Tensor, rule: str) -> float:
    """torch.optim.Muon's factor on the rate."""
    rows, columns = matrix.shape
    return math.sqrt(max(1.0, rows / columns)) if rule == "original" else 0.2 * math.sqrt(max(rows, columns))


@optimiser(
    "muon_gram", MuonGramHyperparameters, "em_train.optimisers.muon_gram.MuonGram, torch.optim.AdamW for the rest"
)
def muon_gram(groups: ParameterGroups, hyper: MuonGramHyperparameters) -> torch.optim.Optimizer:
    return with_adamw(groups, hyper, MuonGram)
