"""How the next token is drawn: every answer has a random stream of its own, fixed by its seed."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How to draw. Temperature 0 is greedy; `top_k` 0 and `top_p` 1 leave nothing out.

    `top_logprobs`: report this many likeliest tokens with every one drawn; None reports nothing.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    top_logprobs: int | None = None


def stream(seed: int, length: int) -> Tensor:
    """`length` uniform numbers (float64), one a token: the answer's whole randomness, alike on every machine."""
    return torch.rand(length, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def draw(logits: Tensor, uniform: Tensor, how: Sampling) -> Tensor:
    """The next token (n,) of each row, from logits (n, vocabulary) and one uniform number a row (n,).

    Inverse of the cumulative distribution over tokens in the order of their ids, after temperature, top_k and top_p
    in transformers' order. By id, since two tokens of almost equal chance would change places under rounding, and
    the draw with them.
    """
    if how.temperature == 0:
        return logits.argmax(dim=-1)
    scores = logits.float() / how.temperature
    if how.top_k or how.top_p < 1:
        scores, tokens = scores.topk(min(how.top_k or scores.shape[-1], scores.shape[-1]))
        chances = scores.softmax(dim=-1)
        before = chances.cumsum(dim=-1) - chances  # the likeliest tokens that together reach top_p stay
        chances = chances.masked_fill(before >= how.top_p, 0.0)
        tokens, order = tokens.sort(dim=-1)
        return tokens.gather(-1, _invert(chances.gather(-1, order), uniform))[:, 0]
    return _invert(scores.softmax(dim=-1), uniform)[:, 0]


def _invert(chances: Tensor, uniform: Tensor) -> Tensor:
    """The place (n, 1) where the cumulative sum of `chances` (n, k), not normalised, passes `uniform` (n,) of it."""
    reached = chances.cumsum(dim=-1, dtype=torch.float64)
    wanted = uniform[:, None] * reached[:, -1:]
    return torch.searchsorted(reached, wanted, right=True).clamp_(max=reached.shape[-1] - 1)
