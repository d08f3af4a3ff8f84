"""Float32 layers on CPU, laid out as oneDNN multiplies them.

PyTorch multiplies float32 on CPU by MKL, which on AMD runs at less than half the machine's speed, and whose sums
depend on how many rows a batch has. oneDNN, which PyTorch carries too and its own compiler uses for linear layers,
does neither; it wants the weights in its own layout (docs/benchmarks.md has the figures).
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

LARGEST = 8 * 1024**3  # bytes: the packed weights stand beside the plain ones


def pack(model: nn.Module) -> list[nn.Linear]:
    """Let the model's float32 linear layers on CPU multiply by a packed copy of their weights; returns those layers.

    Does nothing to other layers, to models above `LARGEST`, and where PyTorch was built without oneDNN. A layer's
    weights may not change before `unpack`.
    """
    layers = [layer for layer in model.modules() if type(layer) is nn.Linear and _packable(layer.weight)]
    available = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # type: ignore[no-untyped-call]
    if not available or sum(layer.weight.nbytes for layer in layers) > LARGEST:
        return []
    for layer in layers:
        packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach())
        layer.forward = partial(_linear, weight=packed, bias=layer.bias)  # type: ignore[method-assign]
    return layers


def unpack(layers: list[nn.Linear]) -> None:
    """The layers multiply by their own weights again."""
    for layer in layers:
        del layer.forward


def _packable(weight: Tensor) -> bool:
    return weight.dtype == torch.float32 and weight.device.type == "cpu"


def _linear(input: Any, weight: Tensor, bias: Tensor | None) -> Tensor:
    result: Tensor = torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")
    return result
