"""Seconds an optimiser step of Muon on the 252 LoRA modules of an 8B model: ours beside torch's, in one run.

    python -m benchmarks.muon_step [--rounds 5] [--layers 36]

Rank 32 on the seven projections of 36 layers of Qwen3-8B's shape (504 factors, 87 million parameters), random
gradients, float32. All optimisers step the same parameters in turn, so that a drift of the machine's speed hits all
alike. Prints medians and their ratios to torch.optim.Muon, by the clock and by CPU seconds: on a machine that others
use too the second is the steadier one, though threads that wait for a stolen core count there as well.
"""

import argparse
import statistics
import time

import torch

from benchmarks._shapes import LAYERS, PROJECTIONS, RANK
from em_train.optimisers import build
from em_train.optimisers.registry import NamedParameters

ARMS = {
    "torch.optim.Muon": ("muon", {}),
    "muon_gram": ("muon_gram", {}),
    "muon_gram, exact": ("muon_gram", {"polar": "exact"}),
    "pytorch_optimizer's Muon": ("pytorch_optimizer:muon", {}),
    "lora_muon": ("lora_muon", {}),
    "adamw, fused": ("adamw", {}),
}


def adapter(layers: int, device: torch.device) -> NamedParameters:
    """Factors with random gradients, by PEFT's names."""
    chance = torch.Generator().manual_seed(0)
    named = []
    for layer in range(layers):
        for module, (inputs, outputs) in PROJECTIONS.items():
            for side, shape in (("A", (RANK, inputs)), ("B", (outputs, RANK))):
                parameter = torch.nn.Parameter((torch.randn(shape, generator=chance) * 0.01).to(device))
                parameter.grad = (torch.randn(shape, generator=chance) * 1e-3).to(device)
                named.append((f"layers.{layer}.{module}.lora_{side}.weight", parameter))
    return named


def seconds(optimiser: torch.optim.Optimizer, device: torch.device) -> tuple[float, float]:
    """Of one step, by the clock and on the CPU."""
    clock, cpu = time.perf_counter(), time.process_time()
    optimiser.step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - clock, time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=list(ARMS))
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    named = adapter(arguments.layers, device)
    count = sum(parameter.numel() for _, parameter in named)
    threads = torch.get_num_threads()
    print(f"{len(named)} factors, {count / 1e6:.1f} million parameters, {device.type}, {threads} threads")
    optimisers = {arm: build(ARMS[arm][0], named, 1e-5, ARMS[arm][1]) for arm in arguments.arms}
    for optimiser in optimisers.values():  # states are made, memory is touched
        optimiser.step()
    taken: dict[str, list[tuple[float, float]]] = {arm: [] for arm in optimisers}
    for _ in range(arguments.rounds):
        for arm, optimiser in optimisers.items():
            taken[arm].append(seconds(optimiser, device))
    medians = {arm: [statistics.median(column) for column in zip(*rows, strict=True)] for arm, rows in taken.items()}
    peer = medians[arguments.arms[0]]
    print(f"{'':26}{'clock':>9}{'ratio':>9}{'CPU':>10}{'ratio':>9}")
    for arm, (clock, cpu) in medians.items():
        print(f"{arm:26}{clock:7.2f} s{peer[0] / clock:8.2f}x{cpu:8.2f} s{peer[1] / cpu:8.2f}x")


if __name__ == "__main__":
    main()
