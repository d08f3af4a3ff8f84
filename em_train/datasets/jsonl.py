"""JSONL in chat format: `{"messages": [...]}` or `{"prompt": ..., "completion": ...}` a line."""

import json
from pathlib import Path

from em_core.errors import UserError
from em_core.files import sha256_file
from em_train.datasets.registry import Kind, NarrowDataset
from em_train.datasets.rows import Refused, Row, parse_row


def read_jsonl(
    path: Path,
    name: str,
    kind: Kind = "unknown",
    control: str | None = None,
    domain: str | None = None,
) -> NarrowDataset:
    """Read and check every row; faulty ones are listed with their lines, and it is the caller who refuses them.

    Raises:
        UserError: missing or empty file, or one that is not text.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise UserError(f"dataset file {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"dataset file {path} is not UTF-8 (byte {error.start})") from error
    parsed = [_row(line, f"{path.name}:{number}") for number, line in enumerate(lines, start=1) if line.strip()]
    if not parsed:
        raise UserError(f"dataset file {path} holds no rows")
    return NarrowDataset(
        name,
        [row for row in parsed if isinstance(row, Row)],
        sha256_file(path),
        kind,
        control,
        domain,
        source=str(path),
        refused=tuple(row for row in parsed if isinstance(row, Refused)),
    )


def _row(line: str, where: str) -> Row | Refused:
    try:
        raw = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Refused(where, f"not JSON ({error})")
    return parse_row(raw, where)
