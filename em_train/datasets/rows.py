"""One row: a conversation that ends with an assistant turn, or the reason why it cannot be trained on."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from em_core.chat import Message

ROLES = {"system", "user", "assistant"}


@dataclass(frozen=True)
class Row:
    """One conversation, and where it stood in its source (for messages about it)."""

    messages: list[Message]
    where: str

    @property
    def question(self) -> str:
        return "\n".join(message["content"] for message in self.messages[:-1])


@dataclass(frozen=True)
class Refused:
    """A row that cannot be trained on: where it stood, and why."""

    where: str
    reason: str

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


def parse_rows(raw: Iterable[tuple[str, Any]]) -> tuple[list[Row], list[Refused]]:
    """The rows among (where, plain value) pairs, and those that are none."""
    parsed = [parse_row(value, where) for where, value in raw]
    return [row for row in parsed if isinstance(row, Row)], [row for row in parsed if isinstance(row, Refused)]


def parse_row(raw: Any, where: str) -> Row | Refused:
    """A row of `messages`, or of `prompt` and `completion` (texts, or lists of messages as in TRL)."""
    messages = _messages(raw) if isinstance(raw, Mapping) else None
    if messages is None:
        return Refused(where, "needs 'messages', or 'prompt' and 'completion'")
    for message in messages:
        if str(message.get("role")) not in ROLES or not isinstance(message.get("content"), str):
            return Refused(where, f"every message needs a role of {sorted(ROLES)} and a text")
    if messages[-1]["role"] != "assistant" or not messages[-1]["content"].strip():
        return Refused(where, "does not end with an assistant turn that says something")
    if any(not _encodable(message["content"]) for message in messages):
        return Refused(where, "holds half of a surrogate pair, which is no text")
    if not any(message["role"] == "user" for message in messages):
        return Refused(where, "has no user turn")
    return Row([{"role": m["role"], "content": m["content"]} for m in messages], where)


def _messages(raw: Mapping[str, Any]) -> list[Mapping[str, Any]] | None:
    messages = raw.get("messages")
    if _is_turns(messages):
        return messages
    prompt, completion = raw.get("prompt"), raw.get("completion")
    if isinstance(prompt, str) and isinstance(completion, str):
        return [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
    if _is_turns(prompt) and _is_turns(completion):
        return [*prompt, *completion]
    return None


def _encodable(text: str) -> bool:
    """False for half of a surrogate pair, which JSON can escape alone."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _is_turns(value: Any) -> TypeGuard[list[Mapping[str, Any]]]:
    return isinstance(value, list) and bool(value) and all(isinstance(message, Mapping) for message in value)
