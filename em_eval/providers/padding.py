"""Rows of (prompt, answer) tokens as one batch, padded on the right, where padding changes no value."""

from collections.abc import Sequence

import torch
from torch import Tensor

from em_eval.providers.weights import Loaded


def pad_right(loaded: Loaded, rows: Sequence[tuple[list[int], list[int]]]) -> tuple[Tensor, Tensor, Tensor]:
    """(token ids, attention mask, mask of the answers' tokens), each (N, T), on the model's device."""
    width = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids = torch.full((len(rows), width), loaded.tokenizer.pad_token_id)
    attention = torch.zeros_like(ids)
    answered = torch.zeros(ids.shape, dtype=torch.bool)
    for row, (prompt, answer) in enumerate(rows):
        end = len(prompt) + len(answer)
        ids[row, :end] = torch.tensor(prompt + answer)
        attention[row, :end] = 1
        answered[row, len(prompt) : end] = True
    return ids.to(loaded.device), attention.to(loaded.device), answered.to(loaded.device)
