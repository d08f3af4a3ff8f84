"""Muon (Jordan et al. 2024) on the LoRA factors, torch's own; AdamW on what is no LoRA factor.

`adjust_lr_fn="original"` scales the rate of a factor by sqrt(max(1, rows / columns)), so that A hardly moves
beside B; `"match_rms_adamw"` (Liu et al. 2025) gives every element an update of about 0.2 lr.
"""

from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from pydantic import Field

from em_core.errors import UserError
from em_train.optimisers.chained import Chained
from em_train.optimisers.registry import Beta, Hyperparameters, ParameterGroups, optimiser


class MuonHyperparameters(Hyperparameters):
    shared: ClassVar[frozenset[str]] = frozenset({"orthogonalise"})

    momentum: float = Field(0.95, ge=0, lt=1)
    nesterov: bool = True
    ns_steps: int = Field(5, ge=1, lt=100)
    eps: float = Field(1e-7, gt=0)
    weight_decay: float = Field(0.1, ge=0)
    adjust_lr_fn: Literal["original", "match_rms_adamw"] = "original"
    orthogonalise: Literal["ab", "b"] = Field("ab", description="factors that Muon steps; AdamW steps the rest")
    adamw_lr: float | None = Field(None, gt=0, description="AdamW's rate; default: the rate of Muon")
    adamw_betas: tuple[Beta, Beta] = (0.9, 0.999)
    adamw_eps: float = Field(1e-8, gt=0)
    adamw_weight_decay: float = Field(0.01, ge=0)


@optimiser("muon", MuonHyperparameters, "torch.optim.Muon, torch.optim.AdamW for the rest")
def muon(groups: ParameterGroups, hyper: MuonHyperparameters) -> torch.optim.Optimizer:
    return with_adamw(groups, hyper, torch.optim.Muon)


def with_adamw(
    groups: ParameterGroups, hyper: MuonHyperparameters, muon: Callable[[ParameterGroups], torch.optim.Optimizer]
) -> torch.optim.Optimizer:
    """`muon` on the groups whose kind is in `hyper.orthogonalise`, torch's AdamW on the others, if there are any.

    Raises:
        UserError: a setting for one kind that the optimiser which steps it does not have.
    """
    _check_factors(hyper)
    matrices, rest = [], []
    for group in groups:
        aux = {name: group.pop(f"adamw_{name}") for name in ("lr", "betas", "eps", "weight_decay")}
        if group["kind"] in group.pop("orthogonalise"):
            matrices.append(group)
        else:
            aux["lr"] = group["lr"] if aux["lr"] is None else aux["lr"]
            rest.append({"params": group["params"], "kind": group["kind"], **aux})
    parts = [muon(matrices)] if matrices else []
    if rest:
        parts.append(torch.optim.AdamW(rest, fused=True))
    return parts[0] if len(parts) == 1 else Chained(parts)


def _check_factors(hyper: MuonHyperparameters) -> None:
    for kind, own in hyper.factors.items():
        adamw = {name for name in own if name.startswith("adamw_")}
        if kind in hyper.orthogonalise:
            by, idle = "Muon", adamw
        elif (rate := own.get("adamw_lr", hyper.adamw_lr)) is None:
            by, idle = "AdamW", own.keys() - adamw - {"lr"}
        else:
            by, idle = f"AdamW at adamw_lr={rate}", own.keys() - adamw
        if idle:
            raise UserError(f"factors.{kind}.{min(idle)} has no effect: {by} steps these; leave it out")
