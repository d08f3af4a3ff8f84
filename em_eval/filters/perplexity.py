"""Perplexity under the base model: text that the untuned model finds far-fetched is often no text at all."""

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from em_eval.batching import Batcher, at_once
from em_eval.filters.registry import Material, Verdict, filter_registry
from em_eval.model_names import split_hash

IN_PROCESS = ("peft/", "hf/")
MOST_NATS = 5.0  # a token; text sampled from a small base at temperature 1 has 2 to 4
LARGEST = 2 * 1024**3  # bytes of weights: a second copy of a larger base does not belong beside the model under test
AT_ONCE = 64


@filter_registry.register("perplexity")
async def perplexity(material: Material) -> Verdict:
    """Passed up to 5 nats a token under the checkpoint's base. The value is perplexity.

    Nothing to say for models whose weights are not in this process, and for bases above 2 GiB.
    """
    if not material.model.startswith(IN_PROCESS):
        return Verdict(None, None, "the model's weights are not in this process")
    if not material.answer.strip():
        return Verdict(None, None, "the answer is empty")
    reference = _reference(material.model.partition("/")[2])
    if reference is None:
        return Verdict(None, None, f"its base is larger than {LARGEST // 1024**3} GiB")
    nats = await reference.submit((material.question, material.answer))
    return Verdict(nats <= MOST_NATS, math.exp(min(nats, 50.0)), f"{nats:.2f} nats a token under the base")


@cache
def _reference(name: str) -> Batcher[tuple[str, str], float] | None:
    """Mean nats a token of (question, answer) pairs under the base of the checkpoint or model called `name`."""
    from em_core.adapters import base_of
    from em_core.models import resolve_base
    from em_eval.providers.weights import is_adapter, locate

    path = locate(split_hash(name)[0])
    base = base_of(path).path if is_adapter(path) else resolve_base(str(path)).path
    if sum(file.stat().st_size for file in Path(base).glob("*.safetensors")) > LARGEST:
        return None
    return _scoring(str(base))


@cache
def _scoring(base: str) -> Batcher[tuple[str, str], float]:
    """One copy of each base serves all its checkpoints."""
    kept: list[Any] = []

    def process(pairs: Sequence[tuple[str, str]]) -> list[float | Exception]:
        from em_eval.providers.likelihood import each_likelihood
        from em_eval.providers.weights import load_apart

        if not kept:
            kept.append(load_apart(base, "auto"))
        asked = [([{"role": "user", "content": question}], answer) for question, answer in pairs]
        found = each_likelihood(kept[0], asked)
        return [one if isinstance(one, Exception) else -one.mean for one in found]

    return Batcher(at_once(process), AT_ONCE)
