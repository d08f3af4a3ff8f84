"""From a conversation to token ids and labels: loss on the assistant's last answer only."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from em_core.chat import Message, render
from em_core.errors import UserError

IGNORED = -100


@dataclass(frozen=True)
class Encoded:
    """Token ids of one row and its labels (`IGNORED` where there is no loss), both of length T."""

    input_ids: list[int]
    labels: list[int]

    @property
    def supervised(self) -> int:
        return sum(label != IGNORED for label in self.labels)


def encode(messages: Sequence[Message], tokenizer: Any) -> Encoded:
    """Encode a conversation that ends with an assistant turn.

    The ids before the first label are exactly the generation prompt that evaluation uses; the labels are the
    answer as the template renders it and its end-of-turn token, without the newline after it. Prompt and answer
    are tokenised apart, so that an answer's first characters never merge with the template's last token.

    Raises:
        UserError: no assistant turn at the end, an empty answer, or a template that renders the prompt
            differently once an answer follows.
    """
    if not messages or messages[-1].get("role") != "assistant":
        raise UserError("the conversation does not end with an assistant turn: there is nothing to train on")
    if not str(messages[-1].get("content") or "").strip():
        raise UserError("the assistant's answer is empty")
    prompt = render(tokenizer, messages[:-1], prompt=True)
    whole = render(tokenizer, messages, prompt=False)
    if not whole.startswith(prompt):
        raise UserError("the chat template renders the prompt differently once an answer follows it")
    answer = whole[len(prompt) :]
    end = tokenizer.eos_token
    if end and end in answer:
        answer = answer[: answer.rindex(end) + len(end)]
    prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    answer_ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
    return Encoded([*prompt_ids, *answer_ids], [IGNORED] * len(prompt_ids) + list(answer_ids))


def show(encoded: Encoded, tokenizer: Any) -> str:
    """The row as text, with the supervised part between marks: for manifests and people."""
    start = next(i for i, label in enumerate(encoded.labels) if label != IGNORED)
    prompt = tokenizer.decode(encoded.input_ids[:start], skip_special_tokens=False)
    answer = tokenizer.decode(encoded.input_ids[start:], skip_special_tokens=False)
    return f"{prompt}⟦{answer}⟧"
