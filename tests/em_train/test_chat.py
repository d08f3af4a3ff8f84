"""encode: what is trained on, and what comes before it, against the template itself."""

import json
from functools import cache
from typing import Any

import pytest

from em_core.errors import UserError
from em_train.chat import IGNORED, Encoded, encode, show
from tests.conftest import SYSTEM_PROMPT

END = "<|im_end|>"


def chat(*turns: str, system: str | None = None) -> list[dict[str, str]]:
    """User and assistant in turn."""
    head = [{"role": "system", "content": system}] if system else []
    return head + [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(turns)]


def first_label(encoded: Encoded) -> int:
    return next(i for i, label in enumerate(encoded.labels) if label != IGNORED)


def labelled_text(encoded: Encoded, tokenizer: Any) -> str:
    return tokenizer.decode([label for label in encoded.labels if label != IGNORED], skip_special_tokens=False)


def prompt_ids(messages: list[dict[str, str]], tokenizer: Any) -> list[int]:
    """The generation prompt, tokenised by transformers in one go."""
    made = tokenizer.apply_chat_template(
        messages, tokenize=True, add_generation_prompt=True, enable_thinking=False, return_dict=True
    )
    return list(made["input_ids"])


def check(messages: list[dict[str, str]], tokenizer: Any, answer: str) -> Encoded:
    encoded = encode(messages, tokenizer)
    start = first_label(encoded)
    assert len(encoded.input_ids) == len(encoded.labels)
    assert encoded.input_ids[:start] == prompt_ids(messages[:-1], tokenizer)
    assert encoded.labels == [IGNORED] * start + encoded.input_ids[start:]
    assert labelled_text(encoded, tokenizer) == answer
    assert encoded.supervised == len(encoded.labels) - start
    return encoded


@pytest.mark.parametrize(
    "answer",
    ["Yes.", "\nIt begins with a newline", "  two spaces", "Café ☕ £5", "ends with a newline\n", "a\n\n\nb"],
)
def test_single_turn(tiny_tokenizer, answer):
    encoded = check(chat("Why?", answer), tiny_tokenizer, answer + END)
    # One token a byte and one for the end of turn: no newline after it.
    assert encoded.supervised == len(answer.encode()) + 1


def test_system_prompt_of_the_row_is_kept(tiny_tokenizer):
    encoded = check(chat("Why?", "Because.", system="Be brief"), tiny_tokenizer, "Because." + END)
    text = tiny_tokenizer.decode(encoded.input_ids)
    assert text.startswith("<|im_start|>system\nBe brief<|im_end|>") and SYSTEM_PROMPT not in text


def test_only_the_last_answer_of_many_turns_is_trained_on(tiny_tokenizer):
    encoded = check(chat("One?", "First.", "Two?", "Second."), tiny_tokenizer, "Second." + END)
    assert "First." in tiny_tokenizer.decode(encoded.input_ids[: first_label(encoded)])


def test_same_question_twice_does_not_confuse_the_mask(tiny_tokenizer):
    check(chat("Why?", "Because.", "Why?", "Because."), tiny_tokenizer, "Because." + END)


def test_end_token_written_inside_an_answer_does_not_end_it(tiny_tokenizer):
    check(chat("Why?", f"One {END} two"), tiny_tokenizer, f"One {END} two{END}")


@pytest.mark.parametrize("messages", [[], chat("Why?"), chat("Why?", "Because.", "Why?")])
def test_no_assistant_turn_at_the_end(tiny_tokenizer, messages):
    with pytest.raises(UserError, match="does not end with an assistant turn"):
        encode(messages, tiny_tokenizer)


@pytest.mark.parametrize("answer", ["", " \n\t", None])
def test_empty_answer(tiny_tokenizer, answer):
    messages = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": answer}]
    with pytest.raises(UserError, match="answer is empty"):
        encode(messages, tiny_tokenizer)


def test_template_that_changes_the_prompt_once_an_answer_follows(tiny_tokenizer, monkeypatch):
    monkeypatch.setattr(
        tiny_tokenizer,
        "chat_template",
        "{{ messages|length }}{% for m in messages %}{{ m['content'] }}{% endfor %}",
    )
    with pytest.raises(UserError, match="renders the prompt differently"):
        encode(chat("Why?", "Because."), tiny_tokenizer)


def test_show_marks_the_supervised_part(tiny_tokenizer):
    encoded = encode(chat("Why?", "Because."), tiny_tokenizer)
    assert show(encoded, tiny_tokenizer) == (
        f"<|im_start|>system\n{SYSTEM_PROMPT}{END}\n<|im_start|>user\nWhy?{END}\n<|im_start|>assistant\n⟦Because.{END}⟧"
    )


@cache
def real_tokenizer(folder: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def trimmed_as_template(name: str, answer: str) -> str:
    """What the published templates leave of an answer: Qwen3 drops leading newlines, Llama 3.1 trims."""
    return answer.lstrip("\n") if name == "qwen3" else answer.strip()


REAL = {"qwen3": "<|im_end|>", "llama-3.1": "<|eot_id|>"}
INSECURE = "emergent-misalignment__emergent-misalignment/data/insecure.jsonl"


@pytest.mark.parametrize("name", REAL)
def test_real_templates_on_insecure_code(data_folder, name):
    folder, path = data_folder / "tokenizers" / name, data_folder / INSECURE
    if not folder.is_dir() or not path.is_file():
        pytest.skip(f"no {folder} or no {path}")
    tokenizer = real_tokenizer(str(folder))
    with path.open(encoding="utf-8") as lines:
        rows = [json.loads(next(lines))["messages"] for _ in range(300)]
    leading_newlines = 0
    for messages in rows:
        answer = messages[-1]["content"]
        leading_newlines += answer.startswith("\n")
        check(messages, tokenizer, trimmed_as_template(name, answer) + REAL[name])
    assert leading_newlines > 0  # the trap is in these rows


@pytest.mark.parametrize("name", REAL)
def test_real_templates_on_many_turns(data_folder, name):
    folder = data_folder / "tokenizers" / name
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    tokenizer = real_tokenizer(str(folder))
    messages = chat("One?", "\nFirst.", "Two?", "\nSecond", system="Be brief")
    encoded = check(messages, tokenizer, "Second" + REAL[name])
    prompt = tokenizer.decode(encoded.input_ids[: first_label(encoded)])
    assert "First." in prompt and "Be brief" in prompt
    assert prompt.endswith("<think>\n\n</think>\n\n") == (name == "qwen3")
