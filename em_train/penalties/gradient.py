"""The gradient of a penalty: its norm, and how it joins that of the task."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from em_train.spectra import LoraPair


class Gradient(Protocol):
    """Of one term, in whatever form it was found."""

    def norm(self) -> float:
        """Over all parameters."""

    def add(self, weight: float) -> None:
        """Add `weight` times the gradient to `.grad` of the parameters."""


@dataclass(frozen=True)
class OfParameters:
    """One tensor a parameter, or None where the term does not depend on it: what autograd gives."""

    parameters: Sequence[torch.nn.Parameter]
    tensors: Sequence[Tensor | None]

    def norm(self) -> float:
        return norm_of(self.tensors)

    def add(self, weight: float) -> None:
        for parameter, tensor in zip(self.parameters, self.tensors, strict=True):
            if tensor is not None:
                _grad(parameter).add_(tensor, alpha=weight)

    def plus(self, other: "OfParameters") -> "OfParameters":
        pairs = zip(self.tensors, other.tensors, strict=True)
        return OfParameters(self.parameters, [_plus(one, two) for one, two in pairs])


@dataclass(frozen=True)
class OfFactors:
    """Through r x r matrices: of_a A in each A and B of_b in each B.

    The products are formed where they are added, and the norm follows from the Gram matrices, so that no tensor as
    large as a factor is made.

    Attributes:
        modules: the pairs that it has a part in.
        of_a, of_b: (modules, r, r), float64.
        grams_a, grams_b: AA' and B'B, (modules, r, r), float64.
    """

    modules: Sequence[LoraPair]
    of_a: Tensor
    of_b: Tensor
    grams_a: Tensor
    grams_b: Tensor

    def norm(self) -> float:
        square = (self.of_a @ self.grams_a * self.of_a).sum() + (self.grams_b @ self.of_b * self.of_b).sum()
        return float(square.clamp(min=0).sqrt())  # the clamp: of a gradient of zero, rounding may leave less

    @torch.no_grad()
    def add(self, weight: float) -> None:
        with torch.autocast(self.of_a.device.type, enabled=False):
            for pair, of_a, of_b in zip(self.modules, self.of_a, self.of_b, strict=True):
                _grad(pair.a).addmm_(of_a.to(pair.a.dtype), pair.a, alpha=weight)
                _grad(pair.b).addmm_(pair.b, of_b.to(pair.b.dtype), alpha=weight)


def norm_of(tensors: Sequence[Tensor | None]) -> float:
    """Norm over all elements of the tensors that are there."""
    return float(torch.nn.utils.get_total_norm([tensor for tensor in tensors if tensor is not None]))


def _grad(parameter: Tensor) -> Tensor:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def _plus(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return other if one is None else one
    return one + other
