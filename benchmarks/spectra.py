"""Seconds to read the spectra of an adapter: ours beside the paper's way and the SVD of the product, in one run.

    python -m benchmarks.spectra [--rounds 5] [--products 1]

The adapter has the shapes of Qwen3-8B: 36 layers of seven modules, r = 32, float32, random. A is drawn as PEFT draws
it, B as a product of a random matrix and values that fall from 1 to 0.02, about what training leaves. The SVD of the
product takes seconds a module: it is timed on `--products` modules of each shape and scaled to all 252.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from benchmarks._shapes import LAYERS, PROJECTIONS, RANK
from em_train.spectra import LoraPair, as_json, exact_spectra, paper_spectra, spectra_of


def adapter() -> list[LoraPair]:
    torch.manual_seed(0)
    falling = torch.logspace(0, -1.7, RANK)
    return [
        LoraPair(
            f"layers.{layer}.{name}",
            (2 * torch.rand(RANK, columns) - 1) / columns**0.5,
            1e-2 * torch.randn(rows, RANK) * falling @ torch.linalg.qr(torch.randn(RANK, RANK)).Q,
        )
        for layer in range(LAYERS)
        for name, (columns, rows) in PROJECTIONS.items()
    ]


def seconds(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--products", type=int, default=1, help="modules of each shape whose product is decomposed")
    arguments = parser.parse_args()
    pairs = adapter()
    ways: dict[str, Callable[[], object]] = {
        "ours, exact": lambda: exact_spectra(pairs),
        "ours, with every measure": lambda: as_json(spectra_of(pairs)),
        "the paper's way, float32": lambda: paper_spectra(pairs),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(arguments.rounds):  # interleaved, so that a drift of the machine's speed hits all alike
        for name, way in ways.items():
            times[name].append(seconds(way))
    product = 0.0
    for name in PROJECTIONS:
        chosen = [pair for pair in pairs if pair.name.endswith(name)]
        done = chosen[: arguments.products]
        product += seconds(lambda done=done: [torch.linalg.svdvals(p.b @ p.a) for p in done]) * len(chosen) / len(done)
    ours = statistics.median(times["ours, exact"])
    print(f"{len(pairs)} modules of an 8B shape, r = {RANK}, {torch.get_num_threads()} threads")
    for name, values in times.items():
        median = statistics.median(values)
        print(f"{name:34} {median:8.3f} s   {median / ours:8.2f}x ours")
    print(f"{'svdvals(B @ A), float32, scaled up':34} {product:8.0f} s   {product / ours:8.0f}x ours")


if __name__ == "__main__":
    main()
