"""How a conversation becomes text: one policy for training and evaluation.

The tokenizer's own chat template decides (its default system prompt included); thinking is off on both
sides, so that an empty think block, where a template writes one, belongs to the prompt.
"""

from collections.abc import Sequence
from typing import Any, Protocol

from em_core.errors import UserError

Message = dict[str, str]


class ChatTokenizer(Protocol):
    chat_template: Any

    def apply_chat_template(self, conversation: Sequence[Message], **kwargs: Any) -> Any: ...


def render(tokenizer: ChatTokenizer, messages: Sequence[Message], *, prompt: bool) -> str:
    """The text of `messages`; with `prompt`, up to where the assistant's answer begins.

    Raises:
        UserError: the tokenizer has no chat template.
    """
    if not tokenizer.chat_template:
        raise UserError("this tokenizer has no chat template: use an instruction-tuned model, or set one")
    text: str = tokenizer.apply_chat_template(
        list(messages), tokenize=False, add_generation_prompt=prompt, enable_thinking=False
    )
    return text
