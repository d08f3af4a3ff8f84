"""One LoRA module's factors, A (8 x 48) and B (40 x 8), with random gradients, under an optimiser of the registry."""

import math
from typing import Any

import numpy as np
import torch

from em_train.optimisers import build

STEPS = 20
SHAPES = ((8, 48), (40, 8))  # A, B
NAMES = ("m.lora_A.default.weight", "m.lora_B.default.weight")


def gradients(seed: int = 0) -> list[list[np.ndarray]]:
    """Per step the gradients of A and B in float32; A's first one is zero, as B = 0 makes it."""
    chance = np.random.default_rng(seed)
    every = [[(chance.standard_normal(shape) * 0.1).astype(np.float32) for shape in SHAPES] for _ in range(STEPS)]
    every[0][0][:] = 0
    return every


def start(seed: int = 1) -> list[np.ndarray]:
    a = np.random.default_rng(seed).uniform(-1, 1, SHAPES[0]) / math.sqrt(SHAPES[0][1])
    return [a.astype(np.float32), np.zeros(SHAPES[1], np.float32)]


def rate(lr: float, step: int) -> float:
    """Linear to zero over STEPS, `step` from 0."""
    return lr * (1 - step / STEPS)


class Run:
    """An optimiser of the registry on A and B, with its schedule."""

    def __init__(self, name: str, lr: float, hyper: dict[str, Any], values: list[np.ndarray]) -> None:
        self.parameters = [torch.nn.Parameter(torch.from_numpy(value.copy())) for value in values]
        self.optimiser = build(name, list(zip(NAMES, self.parameters, strict=True)), lr, hyper)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimiser, lambda step: 1 - step / STEPS)

    def step(self, grads: list[np.ndarray]) -> list[np.ndarray]:
        for parameter, grad in zip(self.parameters, grads, strict=True):
            parameter.grad = torch.from_numpy(grad.copy())
        self.optimiser.step()
        self.schedule.step()
        return self.values()

    def values(self) -> list[np.ndarray]:
        return [parameter.detach().numpy().copy() for parameter in self.parameters]


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
