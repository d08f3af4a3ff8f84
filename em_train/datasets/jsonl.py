"""JSONL in chat format: `{"messages": [...]}` or `{"prompt": ..., "completion": ...}` a line."""

import json
from pathlib import Path
from typing import Any, Literal

from em_core.chat import Message
from em_core.errors import UserError
from em_core.files import sha256_file
from em_train.datasets.registry import NarrowDataset, Row

ROLES = {"system", "user", "assistant"}


def read_jsonl(
    path: Path,
    name: str,
    kind: Literal["bad", "benign", "unknown"] = "unknown",
    control: str | None = None,
    domain: str | None = None,
) -> NarrowDataset:
    """Read and check every row.

    Raises:
        UserError: missing or empty file, or a faulty row, with file and line.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise UserError(f"dataset file {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"dataset file {path} is not UTF-8 (byte {error.start})") from error
    rows = [_row(line, f"{path.name}:{number}") for number, line in enumerate(lines, start=1) if line.strip()]
    if not rows:
        raise UserError(f"dataset file {path} holds no rows")
    return NarrowDataset(name, rows, sha256_file(path), kind, control, domain)


def _row(line: str, where: str) -> Row:
    try:
        raw = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where}: not JSON ({error})") from error
    messages = _messages(raw) if isinstance(raw, dict) else None
    if messages is None:
        raise UserError(f"{where}: needs 'messages', or 'prompt' and 'completion'")
    for message in messages:
        if str(message.get("role")) not in ROLES or not isinstance(message.get("content"), str):
            raise UserError(f"{where}: every message needs a role of {sorted(ROLES)} and a text")
    if messages[-1]["role"] != "assistant" or not messages[-1]["content"].strip():
        raise UserError(f"{where}: does not end with an assistant turn that says something")
    if not any(message["role"] == "user" for message in messages):
        raise UserError(f"{where}: has no user turn")
    return Row([{"role": m["role"], "content": m["content"]} for m in messages], where)


def _messages(raw: dict[str, Any]) -> list[Message] | None:
    messages = raw.get("messages")
    if isinstance(messages, list) and messages and all(isinstance(message, dict) for message in messages):
        return messages
    prompt, completion = raw.get("prompt"), raw.get("completion")
    if isinstance(prompt, str) and isinstance(completion, str):
        return [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
    return None
