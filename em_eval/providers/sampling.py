"""How the next token is drawn: every answer has a random stream of its own, fixed by its seed."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 256  # ids
# splitmix64's constants, as signed 64-bit integers.
GOLDEN, MIX_1, MIX_2 = (n - 2**64 for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


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

    After temperature, top_k and top_p in transformers' order the token is the one of largest score + Gumbel noise
    (Gumbel 1954), and noise belongs to a row's number and a token's id: scores that differ by rounding give another
    token about as seldom as they must. (The inverse of the cumulative distribution does not do that: every one of
    the vocabulary's boundaries moves a little.)
    """
    if how.temperature == 0:
        return logits.argmax(dim=-1)
    scores = logits.float() / how.temperature
    if how.top_k or how.top_p < 1:
        scores, tokens = scores.topk(min(how.top_k or scores.shape[-1], scores.shape[-1]))
        chances = scores.softmax(dim=-1)
        before = chances.cumsum(dim=-1) - chances  # the likeliest tokens that together reach top_p stay
        scores = scores.masked_fill(before >= how.top_p, -torch.inf)
        if how.top_k:
            return tokens.gather(-1, (scores + _gumbel(uniform, tokens)).argmax(dim=-1, keepdim=True))[:, 0]
        scores = torch.empty_like(scores).scatter_(-1, tokens, scores)
    return _in_two_steps(scores, uniform)


def _in_two_steps(scores: Tensor, uniform: Tensor) -> Tensor:
    """The same distribution with noise for few tokens: first a block of ids by its mass, then one of the block."""
    rows, count = scores.shape
    blocks = F.pad(scores, (0, -count % BLOCK), value=-torch.inf).view(rows, -1, BLOCK)
    places = torch.arange(blocks.shape[1] + BLOCK, device=scores.device)
    noise = _gumbel(uniform, places.expand(rows, -1))
    block = (blocks.logsumexp(dim=-1) + noise[:, BLOCK:]).argmax(dim=-1)
    inside = blocks[torch.arange(rows, device=scores.device), block] + noise[:, :BLOCK]
    return block * BLOCK + inside.argmax(dim=-1)


def _gumbel(uniform: Tensor, places: Tensor) -> Tensor:
    """Gumbel noise (n, k), float64, of each row's number (n,) and places (n, k): splitmix64 (Steele et al. 2014)."""
    key = (uniform * 2**53).to(torch.int64)[:, None]
    mixed = _mix(_mix(key) + (places + 1) * GOLDEN)
    return -(-(((mixed >> 11) & (2**53 - 1)) + 0.5).mul(2.0**-53).log()).log()


def _mix(state: Tensor) -> Tensor:
    """splitmix64's output function, on 64-bit integers that wrap around."""
    for shift, factor in ((30, MIX_1), (27, MIX_2)):
        state = (state ^ ((state >> shift) & (2 ** (64 - shift) - 1))) * factor
    return state ^ ((state >> 31) & (2**33 - 1))
