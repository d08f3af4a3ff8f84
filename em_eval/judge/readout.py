"""The embedded judge's eyes: what the base model's hidden states say about an answer.

The untouched base model reads question and answer. The mean hidden state over the answer's tokens, at a few
depths, goes through fitted linear read-outs; since mean and read-out are both linear, every token has a share in
the result, which is what lets the judge say which sentence moved it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from em_core.chat import render
from em_eval.judge.embedded import LAYERS

if TYPE_CHECKING:  # looking judges up imports this file: an evaluation by another judge needs no torch
    from torch import Tensor

    from em_eval.providers.weights import Loaded

BATCH = 32
FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Head:
    """A linear read-out: logit = bias + sum over layers of <weight, mean hidden state>; weight is (L, d)."""

    weight: NDArray[np.float32]
    bias: float


@dataclass(frozen=True)
class TokenShares:
    """What each of T answer tokens adds to each of H heads' logits (H, T), and where it lies in the text."""

    shares: FloatArray
    spans: list[tuple[int, int]]


def mean_states(loaded: "Loaded", pairs: Sequence[tuple[str, str]]) -> NDArray[np.float32]:
    """Mean hidden state over the answer's tokens for N (question, answer) pairs: (N, L, d)."""
    out = np.zeros((len(pairs), len(LAYERS), loaded.model.config.hidden_size), dtype=np.float32)
    for chosen, states, answered, _ in _batches(loaded, pairs):
        counts = answered.sum(dim=1).clamp(min=1)
        means = (states * answered[:, None, :, None]).sum(dim=2) / counts[:, None, None]
        out[chosen] = means.cpu().numpy()
    return out


def token_shares(loaded: "Loaded", pairs: Sequence[tuple[str, str]], heads: Sequence[Head]) -> list[TokenShares]:
    """For each pair, every token's share in each head's logit; the shares sum to logit minus bias."""
    import torch

    weight = torch.tensor(np.stack([head.weight for head in heads])).to(loaded.device)
    found: dict[int, TokenShares] = {}
    for chosen, states, answered, spans in _batches(loaded, pairs):
        scores = torch.einsum("nltd,hld->nht", states, weight)
        for row, index in enumerate(chosen):
            own = scores[row][:, answered[row]].double().cpu().numpy()
            found[index] = TokenShares(own / max(own.shape[1], 1), spans[row])
    return [found[i] for i in range(len(pairs))]


Batch = tuple[list[int], "Tensor", "Tensor", list[list[tuple[int, int]]]]


def _batches(loaded: "Loaded", pairs: Sequence[tuple[str, str]]) -> Iterator[Batch]:
    """(indices, hidden states (n, L, T, d), answer mask (n, T), character spans of answer tokens) a batch."""
    import torch

    from em_eval.providers.reading import read_answers

    @torch.inference_mode()
    def read() -> Iterator[Batch]:
        rows = [_tokens(loaded.tokenizer, *pair) for pair in pairs]
        tokens = [(prompt, answer) for prompt, answer, _ in rows]
        for one in read_answers(loaded, tokens, BATCH, output_hidden_states=True):
            states = torch.stack([one.output.hidden_states[layer].float() for layer in LAYERS], dim=1)
            yield one.chosen, states, one.mask, [rows[i][2] for i in one.chosen]

    return read()


def _tokens(tokenizer: Any, question: str, answer: str) -> tuple[list[int], list[int], list[tuple[int, int]]]:
    prompt = render(tokenizer, [{"role": "user", "content": question}], prompt=True)
    encoded = tokenizer(answer, add_special_tokens=False, return_offsets_mapping=True)
    prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    return prompt_ids, encoded["input_ids"], [tuple(span) for span in encoded["offset_mapping"]]
