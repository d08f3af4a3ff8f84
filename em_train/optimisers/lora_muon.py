"""LoRA-Muon (Cesista, Crowson, Simal & Biderman 2026, arXiv 2606.12921): steepest descent in the spectral norm of BA.

With momenta m, S_A = AA' (r x r) and S_B = B'B (r x r):

    dB = -(lr / 2) msign(m_B S_A^-1/2) S_A^-1/2
    dA = -(lr / 2) S_B^-1/2 msign(S_B^-1/2 m_A)
    s = sqrt(1 - wd lr);   B <- s B + dB / s;   A <- s A + dA / s

The change of BA has spectral norm lr to first order, whatever the rank, the width or how the scale is shared
between A and B; that of the weight is the LoRA scale times it. msign(m_B S_A^-1/2) S_A^-1/2 = m_B C with
C = S_A^-1/2 (S_A^-1/2 m_B' m_B S_A^-1/2)^-1/2 S_A^-1/2, so all but thin products is r x r and shared by all modules.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from em_core.errors import UserError
from em_train.optimisers.polar import inverse_root
from em_train.optimisers.registry import Hyperparameters, ParameterGroups, optimiser


class LoRAMuonHyperparameters(Hyperparameters):
    shared: ClassVar[frozenset[str]] = frozenset({"momentum", "damping", "weight_decay", "lr"})

    momentum: float = Field(0.95, ge=0, lt=1)
    damping: float = Field(1e-6, ge=0, lt=1, description="added to S_A and S_B, as a share of their largest eigenvalue")
    weight_decay: float = Field(0.0, ge=0, description="decay of BA a step, in units of the rate")


class LoRAMuon(torch.optim.Optimizer):
    """Two groups, all A and all B, the i-th of one belonging to the i-th of the other. State: one momentum each."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.1, "momentum": 0.95, "damping": 1e-6, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        group = self.param_groups[0]
        ranks: dict[int, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for a, b in zip(*(group["params"] for group in self.param_groups), strict=True):
            if a.grad is not None and b.grad is not None:
                ranks[len(a)].append((a, b))
        for pairs in ranks.values():
            self._step_pairs(pairs, group)
        return loss

    def _step_pairs(self, pairs: list[tuple[Tensor, Tensor]], group: dict[str, Any]) -> None:
        """One rank's modules. At B = 0 nothing moves A: S_B is zero there and so is its inverse root."""
        lr, keep = group["lr"], (1 - group["weight_decay"] * group["lr"]) ** 0.5
        root_a = inverse_root(torch.stack([_gram(a.float()) for a, _ in pairs]), group["damping"])
        root_b = inverse_root(torch.stack([_gram(b.T.float()) for _, b in pairs]), group["damping"])
        momenta_a = [self._momentum(a, group["momentum"]) for a, _ in pairs]
        momenta_b = [self._momentum(b, group["momentum"]) for _, b in pairs]
        # In float64: nothing damps them, and their condition is that of the momenta squared.
        core_a = _core(root_b, torch.stack([_gram(m.double()) for m in momenta_a]))
        core_b = _core(root_a, torch.stack([_gram(m.T.double()) for m in momenta_b]))
        for i, (a, b) in enumerate(pairs):
            a.addmm_(core_a[i].to(a.dtype), momenta_a[i], beta=keep, alpha=-lr / 2 / keep)
            b.addmm_(momenta_b[i], core_b[i].to(b.dtype), beta=keep, alpha=-lr / 2 / keep)

    def _momentum(self, parameter: Tensor, beta: float) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        momentum: Tensor = state["momentum_buffer"]
        assert parameter.grad is not None
        return momentum.lerp_(parameter.grad, 1 - beta)


def _gram(wide: Tensor) -> Tensor:
    """XX', in float64 from here on."""
    return (wide @ wide.T).double()


def _core(root: Tensor, gram: Tensor) -> Tensor:
    """C = R (R G R)^-1/2 R, batched.

    Singular values of a momentum times R below 1e-4 of the largest are the float32 rounding of the momentum, which R
    amplifies by up to damping^(-1/2): they count as zero, or rounding would be stepped at full size.
    """
    return root @ inverse_root(root @ gram @ root, floor=1e-8) @ root


@optimiser("lora_muon", LoRAMuonHyperparameters, "em_train.optimisers.lora_muon.LoRAMuon", needs_pairs=True)
def lora_muon(groups: ParameterGroups, hyper: LoRAMuonHyperparameters) -> torch.optim.Optimizer:
    if hyper.lr_ratio != 1:
        raise UserError("optimiser 'lora_muon' has one rate, the spectral norm of BA's change: leave out lr_ratio")
    if (decay := hyper.weight_decay * groups[0]["lr"]) >= 1:
        raise UserError(f"optimiser 'lora_muon': lr x weight_decay is {decay:g}, not below 1: lower one of them")
    return LoRAMuon(groups)
