"""How far one step of each built-in optimiser moves an element of A and of B, in units of the learning rate.

    python benchmarks/update_size.py

A 32 x 4096 and B 4096 x 32 from PEFT's initialisation, Gaussian gradients of 1e-3 whose direction is half the same in
all steps, A's first one zero, no decay; root mean square over elements, mean of steps 11 to 20, divided by the rate of
1e-4. Prints the rows of the table in docs/training.md.
"""

from typing import Any

import torch

from em_train.optimisers import build

RATE, STEPS, SKIPPED = 1e-4, 20, 10
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "adam": ("adam", {}),
    "adamw": ("adamw", {}),
    "sgd": ("sgd", {}),
    "lion": ("lion", {}),
    "muon": ("muon", {}),
    "muon, match_rms_adamw": ("muon", {"adjust_lr_fn": "match_rms_adamw"}),
    "muon, orthogonalise: b": ("muon", {"orthogonalise": "b"}),
    "muon_gram": ("muon_gram", {}),
    "muon_gram, polar: exact": ("muon_gram", {"polar": "exact"}),
    "lora_muon": ("lora_muon", {}),
    "signsgd": ("signsgd", {}),
    "soap": ("soap", {}),
    "adafactor": ("adafactor", {}),
    "schedule_free_adamw": ("schedule_free_adamw", {}),
}


def update_sizes(name: str, hyper: dict[str, Any]) -> tuple[float, float]:
    """(A, B), root mean square per element and rate."""
    chance = torch.Generator().manual_seed(0)
    a = torch.nn.Parameter((torch.rand(32, 4096, generator=chance) * 2 - 1) / 4096**0.5)
    b = torch.nn.Parameter(torch.zeros(4096, 32))
    factors = (a, b)
    optimiser = build(name, [("m.lora_A.weight", a), ("m.lora_B.weight", b)], RATE, hyper | {"weight_decay": 0.0})
    constant = [torch.randn(factor.shape, generator=chance) for factor in factors]
    sums = [0.0, 0.0]
    for step in range(STEPS):
        before = [factor.detach().clone() for factor in factors]
        for factor, common in zip(factors, constant, strict=True):
            factor.grad = 1e-3 * (common + torch.randn(factor.shape, generator=chance))
        if step == 0:
            a.grad = torch.zeros_like(a)
        optimiser.step()
        if step >= SKIPPED:
            for side, factor in enumerate(factors):
                sums[side] += float((factor.detach() - before[side]).square().mean().sqrt())
    return sums[0] / (STEPS - SKIPPED) / RATE, sums[1] / (STEPS - SKIPPED) / RATE


def main() -> None:
    print("| optimiser | A | B |\n|---|---|---|")
    for label, (name, hyper) in ARMS.items():
        a, b = update_sizes(name, hyper)
        print(f"| {label} | {a:.2g} | {b:.2g} |")


if __name__ == "__main__":
    main()
