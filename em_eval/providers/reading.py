"""Hidden states of given answers; the prompt that several answers share is read once for them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from em_eval.providers.slots import Slots
from em_eval.providers.weights import Loaded


@dataclass(frozen=True)
class Read:
    """A batch of n answers of up to T tokens, padded on the right.

    Attributes:
        chosen: indices of the answers among those given.
        ids: their tokens (n, T).
        mask: which of them are answer, not padding (n, T).
        before: last hidden state of each prompt (n, d), which predicts the answer's first token.
        output: the model's output over the answers' tokens.
    """

    chosen: list[int]
    ids: Tensor
    mask: Tensor
    before: Tensor
    output: Any


def read_prompts(loaded: Loaded, slots: Slots, prompts: Sequence[Sequence[int]], first: int = 0) -> Tensor:
    """Put token prompts into the slots' rows from `first` on; returns each one's last hidden state (n, d)."""
    ids, mask = _pad(loaded, prompts)
    positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    out = slots.forward(loaded.model.get_decoder(), ids, positions, first)
    last: Tensor = out.last_hidden_state[torch.arange(len(ids)), mask.sum(dim=1) - 1]
    return last


def read_answers(
    loaded: Loaded, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], batch: int, **kwargs: Any
) -> Iterator[Read]:
    """Run the decoder over the answers of (prompt, answer) tokens, `batch` rows at a time.

    Answers to one prompt share a batch, and batches hold answers of similar length, then prompts of similar length.
    Further arguments go to the model's forward.
    """
    longest: dict[tuple[int, ...], int] = {}
    for prompt, answer in pairs:
        longest[tuple(prompt)] = max(len(answer), longest.get(tuple(prompt), 0))

    def place(index: int) -> tuple[int, int, tuple[int, ...], int]:
        prompt = tuple(pairs[index][0])
        return longest[prompt], len(prompt), prompt, len(pairs[index][1])

    order = sorted(range(len(pairs)), key=place)
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        distinct = list(dict.fromkeys(tuple(pairs[i][0]) for i in chosen))
        rank = {prompt: row for row, prompt in enumerate(distinct)}
        source = torch.tensor([rank[tuple(pairs[i][0])] for i in chosen], device=loaded.device)
        ids, mask = _pad(loaded, [pairs[i][1] for i in chosen])
        width = max(map(len, distinct))
        slots = Slots(loaded.model, len(chosen), width + ids.shape[1])
        before = read_prompts(loaded, slots, distinct)[source]
        slots.copy(source, torch.arange(len(chosen), device=loaded.device), width)
        lengths = torch.tensor([len(pairs[i][0]) for i in chosen], device=loaded.device)
        positions = lengths[:, None] + torch.arange(ids.shape[1], device=loaded.device)
        output = slots.forward(loaded.model.get_decoder(), ids, positions, **kwargs)
        yield Read(chosen, ids, mask, before, output)


def _pad(loaded: Loaded, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """(token ids, mask of what is no padding), each (n, T), padded on the right, where it changes no value."""
    width = max(1, max(map(len, rows)))
    ids = torch.full((len(rows), width), loaded.tokenizer.pad_token_id)
    mask = torch.zeros(ids.shape, dtype=torch.bool)
    for row, tokens in enumerate(rows):
        ids[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.long)
        mask[row, : len(tokens)] = True
    return ids.to(loaded.device), mask.to(loaded.device)
