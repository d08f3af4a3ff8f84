"""render: the template decides."""

import pytest

from em_core.chat import load_tokenizer, prints_today, render
from em_core.errors import UserError
from tests.conftest import SYSTEM_PROMPT, make_tokenizer

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


class Recorder:
    chat_template = "something"

    def apply_chat_template(self, conversation, **options):
        assert conversation == QUESTION
        return repr(options)


def test_thinking_is_off_and_nothing_else_is_added():
    text = render(Recorder(), QUESTION, prompt=True)
    assert "'enable_thinking': False" in text and "'add_generation_prompt': True" in text
    assert "'tokenize': False" in text and "'tools'" not in text


def with_template(template: str):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


# The head of Llama 3.2's template in our own words: the day of rendering, unless it is told one.
DATED = (
    "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}{{ date_string }}"
)


def test_day_of_rendering_does_not_change_the_prompt():
    assert render(with_template(DATED), QUESTION, prompt=True) == "26 Jul 2024"


def test_template_that_cannot_be_told_the_day_is_known():
    assert prints_today(with_template("{{ strftime_now('%Y-%m-%d') }}"))
    assert not prints_today(with_template(DATED)) and not prints_today(make_tokenizer())


def test_template_that_refuses_a_conversation_is_one_line():
    with pytest.raises(UserError, match="refuses this conversation: roles must alternate"):
        render(with_template("{{ raise_exception('roles must alternate') }}"), QUESTION, prompt=True)


def test_tokenizer_is_loaded_from_a_folder_without_weights(tmp_path):
    make_tokenizer().save_pretrained(tmp_path)
    assert render(load_tokenizer(str(tmp_path)), QUESTION, prompt=True) == PROMPT


def test_missing_tokenizer_is_one_line(tmp_path):
    for model in (str(tmp_path), "nobody/nothing-of-this-name"):
        with pytest.raises(UserError, match="no tokenizer could be loaded") as caught:
            load_tokenizer(model)
        assert model in str(caught.value)


@pytest.mark.parametrize("template", [None, ""])
def test_tokenizer_without_template_is_refused(template):
    class Plain:
        chat_template = template

    with pytest.raises(UserError, match="no chat template"):
        render(Plain(), QUESTION, prompt=True)
