"""A float32 forward pass on CPU: as transformers does it, with packed layers, and with freed memory used again.

    python -m benchmarks.forward [--rounds 3]

SmolLM2-135M over 8 rows of 128 tokens, and one decoding step of 96 rows (no cache: one token each). Prints the best
time of each way and its ratio to plain transformers; and the largest difference of a logit.
"""

import argparse
import time

import torch
from transformers import AutoModelForCausalLM

from em_core.allocation import reuse_freed_memory
from em_core.models import resolve_base
from em_eval.providers.packing import pack, unpack


def best(model: torch.nn.Module, ids: torch.Tensor, rounds: int) -> float:
    """Seconds of the fastest of `rounds` passes."""
    found = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        model(input_ids=ids)
        found.append(time.perf_counter() - started)
    return min(found[1:])


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    model = AutoModelForCausalLM.from_pretrained(resolve_base("smollm2-135m").path, dtype=torch.float32).eval()
    torch.manual_seed(0)
    inputs = {"8 x 128": torch.randint(1000, (8, 128)), "96 x 1": torch.randint(1000, (96, 1))}
    plain = {name: best(model, ids, rounds) for name, ids in inputs.items()}
    before = model(input_ids=inputs["96 x 1"]).logits
    layers = pack(model)
    gap = float((model(input_ids=inputs["96 x 1"]).logits - before).abs().max())
    packed = {name: best(model, ids, rounds) for name, ids in inputs.items()}
    reuse_freed_memory()  # cannot be taken back: measured last
    both = {name: best(model, ids, rounds) for name, ids in inputs.items()}
    unpack(layers)
    reused = {name: best(model, ids, rounds) for name, ids in inputs.items()}
    ways = {"plain": plain, "packed layers": packed, "freed memory used again": reused, "both": both}
    for name in inputs:
        for way, seconds in ways.items():
            print(f"{name:9} {way:24} {seconds[name]:7.3f} s   {plain[name] / seconds[name]:5.2f}x")
    print(f"largest difference of a logit {gap:.1e}")


if __name__ == "__main__":
    main()
