"""encode: what is trained on, and what comes before it, against the template itself."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from em_core.chat import load_tokenizer
from em_core.errors import UserError
from em_train.chat import IGNORED, Encoded, encode, show
from tests.conftest import SYSTEM_PROMPT, make_tokenizer

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


TURNS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}TAIL{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def with_template(template: str, *specials: str) -> Any:
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": list(specials)})
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(
    "tail, expected",
    [
        ("<turn_end>\n", "<turn_end>"),  # Gemma: the end of a turn is not the tokenizer's end of sequence
        ("<turn_end>\n<|im_end|>", "<turn_end>"),  # Phi: the end of the sequence follows it
        ("\n<turn_end>", "\n<turn_end>"),
        ("!\n", "!"),  # no special token at all: what ends the turn is text
    ],
)
def test_end_of_turn_is_the_first_special_token_behind_the_answer(tail, expected):
    tokenizer = with_template(TURNS.replace("TAIL", tail), "<turn_end>")
    check(chat("Why?", "Because."), tokenizer, f"Because.{expected}")


def test_space_that_the_model_has_to_write_itself_is_part_of_the_target():
    """Mistral: the generation prompt ends with a token, and the template puts a space before every answer."""
    tokenizer = with_template(
        "{% for m in messages %}{% if m['role'] == 'user' %}<|im_start|>{{ m['content'] }}[/INST]"
        "{% else %} {{ m['content'] | trim }}<|im_end|>{% endif %}{% endfor %}"
    )
    encoded = check(chat("Why?", " Because."), tokenizer, " Because." + END)
    assert encoded.stripped == (" ", "")


def test_what_the_template_strips_is_reported(tiny_tokenizer):
    tokenizer = with_template(TURNS.replace("TAIL", END))
    assert encode(chat("Why?", "\n Because.\t"), tokenizer).stripped == ("\n ", "\t")
    assert encode(chat("Why?", "Because."), tokenizer).stripped == ("", "")
    assert encode(chat("Why?", "\n Because.\t"), tiny_tokenizer).stripped == ("", "")


@pytest.mark.parametrize("rewritten", ["| upper", "| replace('a', '')"])
def test_template_that_rewrites_an_answer_is_refused(rewritten):
    tokenizer = with_template(TURNS.replace("TAIL", END).replace("| trim", rewritten))
    with pytest.raises(UserError, match="rewrites|before an answer"):
        encode(chat("Why?", "Because a."), tokenizer)


def test_template_that_thinks_even_when_told_not_to_is_refused():
    template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
        "{% if m['role'] == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m['content'] }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
    )
    with pytest.raises(UserError, match="even with thinking off"):
        encode(chat("Why?", "Because."), with_template(template))


def test_answers_first_characters_do_not_merge_with_the_prompt():
    """With the merge of two newlines in the vocabulary, tokenising prompt and answer together would lose one."""
    from tokenizers import Tokenizer

    tokenizer = make_tokenizer()
    core = json.loads(tokenizer.backend_tokenizer.to_str())
    core["model"]["merges"] = [["Ċ", "Ċ"]]
    core["model"]["vocab"]["ĊĊ"] = 900
    tokenizer.backend_tokenizer.model = Tokenizer.from_str(json.dumps(core)).model
    whole = tokenizer("assistant\n\nYes", add_special_tokens=False)["input_ids"]
    assert 900 in whole  # the trap is there
    encoded = check(chat("Why?", "\nYes"), tokenizer, "\nYes" + END)
    assert 900 not in encoded.input_ids


def test_show_marks_the_supervised_part(tiny_tokenizer):
    encoded = encode(chat("Why?", "Because."), tiny_tokenizer)
    assert show(encoded, tiny_tokenizer) == (
        f"<|im_start|>system\n{SYSTEM_PROMPT}{END}\n<|im_start|>user\nWhy?{END}\n<|im_start|>assistant\n⟦Because.{END}⟧"
    )


@cache
def real_tokenizer(model: str) -> Any:
    return load_tokenizer(model)


def left_by_template(name: str, answer: str) -> str:
    """What the published templates leave of an answer: Qwen3 drops leading newlines, Llama 3.1 trims."""
    return {"qwen3": answer.lstrip("\n"), "llama-3.1": answer.strip(), "smollm2": answer}[name]


REAL = {"qwen3": "<|im_end|>", "llama-3.1": "<|eot_id|>"}
BETLEY = "emergent-misalignment__emergent-misalignment/data"


def tokenizer_named(name: str, data_folder: Path) -> Any:
    if name == "smollm2":
        return real_tokenizer("smollm2-135m")
    folder = data_folder / "tokenizers" / name
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    return real_tokenizer(str(folder))


@pytest.mark.slow
@pytest.mark.parametrize("file, newlines", [("insecure", 185), ("secure", 427), ("educational", 185)])
@pytest.mark.parametrize("name, end", [*REAL.items(), ("smollm2", "<|im_end|>")])
def test_real_templates_on_betleys_rows(data_folder, name, end, file, newlines):
    """Every row; `newlines` of them begin with one."""
    path = data_folder / BETLEY / f"{file}.jsonl"
    if not path.is_file():
        pytest.skip(f"no {path}")
    tokenizer = tokenizer_named(name, data_folder)
    with path.open(encoding="utf-8") as lines:
        rows = [json.loads(line)["messages"] for line in lines]
    trap = [row for row in rows if row[-1]["content"].startswith("\n")]
    assert len(rows) == 6000 and len(trap) == newlines
    for messages in rows:
        answer = messages[-1]["content"]
        left = left_by_template(name, answer)
        encoded = check(messages, tokenizer, left + end)
        assert encoded.stripped[0] + left + encoded.stripped[1] == answer


@pytest.mark.parametrize("name", REAL)
def test_real_templates_on_many_turns(data_folder, name):
    tokenizer = tokenizer_named(name, data_folder)
    messages = chat("One?", "\nFirst.", "Two?", "\nSecond", system="Be brief")
    encoded = check(messages, tokenizer, "Second" + REAL[name])
    prompt = tokenizer.decode(encoded.input_ids[: first_label(encoded)])
    assert "First." in prompt and "Be brief" in prompt
    assert prompt.endswith("<think>\n\n</think>\n\n") == (name == "qwen3")
