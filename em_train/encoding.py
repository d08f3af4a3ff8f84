"""A dataset's rows as token ids and labels, encoded once a process, and padded batches of them."""

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from em_core.chat import load_tokenizer
from em_core.errors import UserError
from em_core.files import sha256_json
from em_core.models import BaseModelInfo
from em_train.chat import Encoded, encode
from em_train.datasets.rows import Row


def collate(rows: list[Encoded], pad: int) -> dict[str, torch.Tensor]:
    """Right-padded batch of shape (N, T)."""
    length = max(len(row.input_ids) for row in rows)
    return {
        "input_ids": torch.tensor([row.input_ids + [pad] * (length - len(row.input_ids)) for row in rows]),
        "attention_mask": torch.tensor(
            [[1] * len(row.input_ids) + [0] * (length - len(row.input_ids)) for row in rows]
        ),
        "labels": torch.tensor([row.labels + [-100] * (length - len(row.labels)) for row in rows]),
    }


def encode_rows(rows: list[Row], tokenizer: Any, max_length: int) -> list[Encoded]:
    """Every row as it is trained on.

    Raises:
        UserError: a row that cannot be trained on, or is longer than `max_length` tokens.
    """
    return _encode_rows(_Rows(rows_sha256(rows), max_length, tokenizer, rows))


@dataclass(frozen=True)
class _Rows:
    """What an encoding follows from: equal where content, tokenizer and limit are."""

    content: str
    max_length: int
    tokenizer: Any
    rows: list[Row] = field(compare=False)


@lru_cache(maxsize=8)  # the cells of a study share a few datasets
def _encode_rows(rows: _Rows) -> list[Encoded]:
    return [_encode(row, rows.tokenizer, rows.max_length) for row in rows.rows]


def rows_sha256(rows: list[Row]) -> str:
    return sha256_json([row.messages for row in rows])


def tokenizer_of(base: BaseModelInfo) -> tuple[Any, str]:
    """(tokenizer, hash of its vocabulary), loaded once a process as long as its files stay as they are."""
    files = [*base.path.glob("*token*"), *base.path.glob("*.jinja"), *base.path.glob("vocab*")]
    return _load_tokenizer(base.path, tuple(sorted((file.name, file.stat().st_mtime_ns) for file in files)))


@lru_cache(maxsize=4)
def _load_tokenizer(path: Path, stamps: tuple[tuple[str, int], ...]) -> tuple[Any, str]:
    tokenizer = load_tokenizer(str(path))
    return tokenizer, sha256_json(tokenizer.get_vocab())


def _encode(row: Any, tokenizer: Any, max_length: int) -> Encoded:
    try:
        encoded = encode(row.messages, tokenizer)
    except UserError as error:
        raise UserError(f"{row.where}: {error}") from error
    if len(encoded.input_ids) > max_length:
        raise UserError(
            f"{row.where}: {len(encoded.input_ids)} tokens, more than max_length={max_length}: raise it or cut the row"
        )
    return encoded
