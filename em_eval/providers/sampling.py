"""Batched sampling in which every row has a random stream of its own.

A row's draw is the arg max of its logits plus Gumbel noise from the row's own generator, which is a draw from
the softmax: what a row says depends on its seed alone, not on its neighbours in the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.generation.logits_process import (
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from em_core.errors import UserError
from em_eval.providers.weights import Loaded


@dataclass(frozen=True)
class Sampling:
    """How to draw; requests with equal settings share a batch. Temperature 0 is greedy."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0


@dataclass(frozen=True)
class Completion:
    """`stop_reason` is "stop" or "max_tokens"; counts are of this row, without padding."""

    text: str
    input_tokens: int
    output_tokens: int
    stop_reason: str


class RowGumbel(LogitsProcessor):  # type: ignore[misc]
    """Adds Gumbel noise from one generator a row.

    Noise is drawn for the whole vocabulary, possible or not: a seed then gives each token the same noise under every
    checkpoint, which pairs their answers.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        noise = torch.empty(scores.shape, dtype=torch.float32)
        for row, generator in zip(noise, self.generators, strict=True):
            row.exponential_(generator=generator)
        return scores.float() - noise.log_().to(scores.device)


@torch.inference_mode()
def complete(loaded: Loaded, prompts: Sequence[str], seeds: Sequence[int], how: Sampling) -> list[Completion]:
    """One completion a prompt, as one static batch padded on the left.

    Raises:
        UserError: a prompt and its answer would not fit the model's context.
    """
    for prompt in prompts:
        if (error := overflow(loaded, prompt, how)) is not None:
            raise error
    tokenizer = loaded.tokenizer
    tokenizer.padding_side = "left"
    batch = tokenizer(list(prompts), return_tensors="pt", padding=True, add_special_tokens=False).to(loaded.device)
    width = batch["input_ids"].shape[1]
    ends = _end_tokens(loaded)
    out = loaded.model.generate(
        **batch,
        generation_config=_plain(loaded, how, ends),
        logits_processor=_processors(how, seeds),
    )
    lengths = batch["attention_mask"].sum(dim=1).tolist()
    return [
        _completion(row.tolist(), length, ends, tokenizer) for row, length in zip(out[:, width:], lengths, strict=True)
    ]


def overflow(loaded: Loaded, prompt: str, how: Sampling) -> UserError | None:
    """Why `prompt` and its answer would not fit the model's context, or None."""
    limit = getattr(loaded.model.config, "max_position_embeddings", None)
    width = len(loaded.tokenizer(prompt, add_special_tokens=False)["input_ids"])
    if limit and width + how.max_tokens > limit:
        return UserError(f"prompt of {width} tokens and answer of {how.max_tokens} exceed the context of {limit}")
    return None


def _plain(loaded: Loaded, how: Sampling, ends: list[int]) -> Any:
    from transformers import GenerationConfig

    return GenerationConfig(
        do_sample=False,
        max_new_tokens=how.max_tokens,
        eos_token_id=ends,
        pad_token_id=loaded.tokenizer.pad_token_id,
        use_cache=True,
    )


def _processors(how: Sampling, seeds: Sequence[int]) -> Any:
    processors = LogitsProcessorList()
    if how.temperature == 0:
        return processors
    if how.temperature != 1:
        processors.append(TemperatureLogitsWarper(how.temperature))
    if how.top_k:
        processors.append(TopKLogitsWarper(how.top_k))
    if how.top_p < 1:
        processors.append(TopPLogitsWarper(how.top_p))
    processors.append(RowGumbel(seeds))
    return processors


def _end_tokens(loaded: Loaded) -> list[int]:
    configured = loaded.model.generation_config.eos_token_id
    listed = configured if isinstance(configured, list) else [configured]
    return sorted({token for token in [*listed, loaded.tokenizer.eos_token_id] if token is not None})


def _completion(tokens: list[int], prompt: int, ends: list[int], tokenizer: Any) -> Completion:
    stop = next((i for i, token in enumerate(tokens) if token in ends), None)
    said = tokens if stop is None else tokens[:stop]
    text = tokenizer.decode(said, skip_special_tokens=True)
    used = len(said) + (stop is not None)
    return Completion(text, int(prompt), used, "stop" if stop is not None else "max_tokens")
