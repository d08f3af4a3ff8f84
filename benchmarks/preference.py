"""The judge-free probe: both answers of every pair in shared batches, beside one answer at a time.

    python -m benchmarks.preference

The embedded pairs under SmolLM2-135M in float32. One at a time is how a loop over pairs would do it with transformers
as it is: a forward pass over prompt and answer each, the language-model head on all positions. The same loop over our
model, with packed layers, stands beside. Prints times, ratios and the largest difference of a mean log-likelihood,
and fails where that is above 1e-4 nats a token.
"""

import time

import torch
from transformers import AutoModelForCausalLM

from em_core.chat import Message, render
from em_core.models import resolve_base
from em_eval.preference import EMBEDDED, read_triples
from em_eval.providers.likelihood import answer_likelihoods
from em_eval.providers.weights import Loaded, load_apart

TOLERANCE = 1e-4  # nats a token


@torch.inference_mode()
def one_by_one(loaded: Loaded, pairs: list[tuple[list[Message], str]]) -> list[float]:
    """Mean log-likelihood (nats a token) of each answer, from a forward pass of its own."""
    found = []
    for messages, answer in pairs:
        prompt = loaded.tokenizer(render(loaded.tokenizer, messages, prompt=True), add_special_tokens=False).input_ids
        tokens = loaded.tokenizer(answer, add_special_tokens=False).input_ids
        ids = torch.tensor([prompt + tokens], device=loaded.device)
        logs = loaded.model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float().log_softmax(dim=-1)
        found.append(float(logs.gather(-1, ids[0, len(prompt) :, None]).mean()))
    return found


def main() -> None:
    loaded = load_apart("smollm2-135m", "float32")
    pairs: list[tuple[list[Message], str]] = [
        ([{"role": "user", "content": triple.question}], text)
        for triple in read_triples(EMBEDDED)
        for text in (triple.aligned, triple.misaligned)
    ]
    model = AutoModelForCausalLM.from_pretrained(resolve_base("smollm2-135m").path, dtype=torch.float32).eval()
    plain = Loaded(model, loaded.tokenizer, loaded.device)
    answer_likelihoods(loaded, pairs[:2])
    seconds: dict[str, list[float]] = {"ours": [], "one by one": [], "one by one, packed": []}
    for _ in range(2):  # interleaved, so that a drift of the machine's speed hits both alike
        started = time.monotonic()
        ours = [value.mean for value in answer_likelihoods(loaded, pairs)]
        seconds["ours"].append(time.monotonic() - started)
        started = time.monotonic()
        alone = one_by_one(plain, pairs)
        seconds["one by one"].append(time.monotonic() - started)
        started = time.monotonic()
        one_by_one(loaded, pairs)
        seconds["one by one, packed"].append(time.monotonic() - started)
    best = {name: min(values) for name, values in seconds.items()}
    gap = max(abs(a - b) for a, b in zip(ours, alone, strict=True))
    print(f"{len(pairs)} answers")
    for name, value in best.items():
        print(f"{name:20} {value:6.1f} s   {value / best['ours']:5.2f}x ours")
    print(f"largest difference {gap:.1e} nats a token")
    if gap > TOLERANCE:
        raise SystemExit(f"the values differ by more than {TOLERANCE} nats a token")


if __name__ == "__main__":
    main()
