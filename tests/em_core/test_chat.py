"""render: the template decides."""

import pytest

from em_core.chat import render
from em_core.errors import UserError
from tests.conftest import SYSTEM_PROMPT

QUESTION = [{"role": "user", "content": "Hi\nthere"}]
PROMPT = (
    f"<|im_start|>system\n{SYSTEM_PROMPT}<|im_end|>\n<|im_start|>user\nHi\nthere<|im_end|>\n<|im_start|>assistant\n"
)


def test_prompt_ends_where_the_answer_begins(tiny_tokenizer):
    assert render(tiny_tokenizer, QUESTION, prompt=True) == PROMPT


def test_whole_conversation_continues_the_prompt(tiny_tokenizer):
    answered = [*QUESTION, {"role": "assistant", "content": "Yes."}]
    assert render(tiny_tokenizer, answered, prompt=False) == PROMPT + "Yes.<|im_end|>\n"


def test_own_system_prompt_replaces_the_default(tiny_tokenizer):
    text = render(tiny_tokenizer, [{"role": "system", "content": "Be brief"}, *QUESTION], prompt=True)
    assert text.startswith("<|im_start|>system\nBe brief<|im_end|>\n") and SYSTEM_PROMPT not in text


def test_thinking_is_off():
    class Template:
        chat_template = "something"

        def apply_chat_template(self, conversation, **options):
            assert conversation == QUESTION
            return repr(sorted(options.items()))

    expected = [("add_generation_prompt", True), ("enable_thinking", False), ("tokenize", False)]
    assert render(Template(), QUESTION, prompt=True) == repr(expected)


@pytest.mark.parametrize("template", [None, ""])
def test_tokenizer_without_template_is_refused(template):
    class Plain:
        chat_template = template

    with pytest.raises(UserError, match="no chat template"):
        render(Plain(), QUESTION, prompt=True)
