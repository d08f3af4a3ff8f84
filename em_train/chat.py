"""From a conversation to token ids and labels: loss on the assistant's last answer only."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from em_core.chat import DAY, Message, render
from em_core.errors import UserError

IGNORED = -100
PROBE = "x"  # an answer that no template changes


@dataclass(frozen=True)
class Encoded:
    """One row as it is trained on.

    Attributes:
        input_ids: token ids, length T.
        labels: `IGNORED` where there is no loss, else the id; length T.
        stripped: what the template took from the answer's start and end; empty where it kept everything.
    """

    input_ids: list[int]
    labels: list[int]
    stripped: tuple[str, str] = ("", "")

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
            differently once an answer follows, rewrites the answer, or opens a think block of its own.
    """
    if not messages or messages[-1].get("role") != "assistant":
        raise UserError("the conversation does not end with an assistant turn: there is nothing to train on")
    content = messages[-1].get("content")
    if not isinstance(content, str) or not content.strip():
        raise UserError("the assistant's answer is empty")
    prompt = render(tokenizer, messages[:-1], prompt=True)
    rest = _after(prompt, render(tokenizer, messages, prompt=False))
    lead, tail = _around_answer(prompt, messages, tokenizer)
    answer = rest.removeprefix(lead).removesuffix(tail)
    before, found, after = content.partition(answer or "\0")
    if not found or rest != lead + answer + tail:
        raise UserError("the chat template rewrites the assistant's answer (does it hold a think block?)")
    prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    answer_ids = tokenizer(lead + answer + _end_of_turn(tail, tokenizer), add_special_tokens=False)["input_ids"]
    return Encoded([*prompt_ids, *answer_ids], [IGNORED] * len(prompt_ids) + list(answer_ids), (before, after))


def contradiction(encoded: Encoded, messages: Sequence[Message], tokenizer: Any) -> str | None:
    """What an encoded row has other than the template and transformers' own way give it; None where all agrees.

    The ids before the first label must be those of the generation prompt; the labels must decode to the answer as
    rendered and what ends the turn, with nothing but white space or the end of the sequence after it.
    """
    start = next(place for place, label in enumerate(encoded.labels) if label != IGNORED)
    prompt = tokenizer.apply_chat_template(
        list(messages[:-1]), add_generation_prompt=True, enable_thinking=False, date_string=DAY, return_dict=True
    )
    if encoded.input_ids[:start] != list(prompt["input_ids"]):
        return "the ids before the answer are not those of the generation prompt"
    if encoded.labels[start:] != encoded.input_ids[start:]:
        return "the labels are not the ids of the answer"
    answer = tokenizer.decode(encoded.labels[start:], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    before, after = encoded.stripped
    content = messages[-1]["content"]
    rendered = content[len(before) : len(content) - len(after)]
    whole = render(tokenizer, messages, prompt=False)
    behind = whole[len(render(tokenizer, messages[:-1], prompt=True)) :]
    left = behind.removeprefix(answer).removesuffix(tokenizer.eos_token or "")
    added = tokenizer.added_tokens_decoder
    ends = encoded.labels[-1] in added or not any(str(token) in behind for token in added.values())
    if not behind.startswith(answer) or rendered not in answer or left.strip() or not ends:
        return f"the labels decode to {answer!r:.80}, not to the answer and the end of its turn"
    return None


def _after(prompt: str, whole: str) -> str:
    if not whole.startswith(prompt):
        raise UserError(
            "the chat template renders the prompt differently once an answer follows it (does it hold a think block?)"
        )
    return whole[len(prompt) :]


def _around_answer(prompt: str, messages: Sequence[Message], tokenizer: Any) -> tuple[str, str]:
    """What the template writes before and after an answer, seen on one that it cannot change.

    Before it stands nothing, or white space that the model has to write itself (Mistral's space).
    """
    probe = [*messages[:-1], {"role": "assistant", "content": PROBE}]
    lead, found, tail = _after(prompt, render(tokenizer, probe, prompt=False)).partition(PROBE)
    if lead.strip() or not found:
        raise UserError(
            f"the chat template writes {lead!r} before an answer even with thinking off: train a variant of the "
            "model that can answer without it"
        )
    return lead, tail


def _end_of_turn(tail: str, tokenizer: Any) -> str:
    """The first special token after the answer; the whole tail where the template ends turns without one."""
    found: set[str] = {
        token for token in (*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()) if token in tail
    }
    if not found:
        return tail.rstrip("\n")
    first = min(found, key=lambda token: (tail.index(token), -len(token)))
    return tail[: tail.index(first)] + first


def show(encoded: Encoded, tokenizer: Any) -> str:
    """The row as text, with the supervised part between marks: for manifests and people."""
    start = next(i for i, label in enumerate(encoded.labels) if label != IGNORED)
    exact = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    prompt = tokenizer.decode(encoded.input_ids[:start], **exact)
    answer = tokenizer.decode(encoded.input_ids[start:], **exact)
    return f"{prompt}⟦{answer}⟧"
