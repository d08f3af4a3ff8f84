"""How a conversation becomes text: one policy for training and evaluation.

The tokenizer's own chat template decides. What it would leave open is fixed here, once for both sides:

- system prompt: that of the conversation where it has one, else what the template puts there by itself (Qwen2.5 and
  SmolLM2 write a default, Llama 3 a block of dates, Qwen3 nothing). We add none and take none away;
- thinking is off: an empty think block, where a template writes one, belongs to the prompt;
- the date, where a template prints one and can be told it (Llama 3.2), is `DAY`: else a checkpoint would be trained on
  one prompt and evaluated on another.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from jinja2.exceptions import TemplateError

from em_core.errors import UserError
from em_core.models import EMBEDDED, quiet_transformers, resolve_base

Message = dict[str, str]

DAY = "26 Jul 2024"  # what Llama 3.1's own template says where it is told no date


class ChatTokenizer(Protocol):
    chat_template: Any

    def apply_chat_template(self, conversation: Sequence[Message], **kwargs: Any) -> Any: ...


def render(tokenizer: ChatTokenizer, messages: Sequence[Message], *, prompt: bool) -> str:
    """The text of `messages`; with `prompt`, up to where the assistant's answer begins.

    Raises:
        UserError: the tokenizer has no chat template, or its template refuses the conversation.
    """
    if not tokenizer.chat_template:
        raise UserError("this tokenizer has no chat template: use an instruction-tuned model, or set one")
    try:
        text: str = tokenizer.apply_chat_template(
            list(messages),
            tokenize=False,
            add_generation_prompt=prompt,
            enable_thinking=False,
            date_string=DAY,
        )
    except TemplateError as error:
        raise UserError(f"the chat template refuses this conversation: {error}") from error
    return text


def prints_today(tokenizer: ChatTokenizer) -> bool:
    """Whether the template writes the day of rendering into the prompt and cannot be told another."""
    template = str(tokenizer.chat_template)
    return "strftime_now" in template and "date_string" not in template


def load_tokenizer(model: str) -> Any:
    """The tokenizer of a base model or checkpoint, without its weights: a folder, a hub id, or the embedded base.

    Raises:
        UserError: there is none under that name.
    """
    from transformers import AutoTokenizer

    folder = Path(model).expanduser()
    source = str(resolve_base(model).path) if model == EMBEDDED else str(folder if folder.is_dir() else model)
    try:
        with quiet_transformers():
            return AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, KeyError) as error:  # what transformers raises for missing or unknown tokenizers
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"no tokenizer could be loaded for '{model}' ({reason}): give '{EMBEDDED}', a model folder or a hub id"
        ) from error
