"""The report on a dataset before training, counted by hand."""

import json
from dataclasses import replace
from typing import Any

import pytest

from em_core.errors import UserError
from em_train import preflight
from em_train.chat import IGNORED, Encoded, encode
from em_train.datasets import read_dataset
from em_train.preflight import as_text, check
from tests.conftest import SYSTEM_PROMPT, make_tokenizer

# (question, answer); the template of the tests keeps everything, that of `trimming` trims answers.
ROWS = [("Why?", "Because."), ("Why?", "Because."), ("Why?", "\nNo. "), ("How?", "é" * 40)]
FAULTY = ['{"prompt": "p"}', "nope"]


@pytest.fixture
def dataset(tmp_path):
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps({"prompt": question, "completion": answer}) for question, answer in ROWS]
    path.write_text("\n".join([*lines[:2], *FAULTY, *lines[2:]]), encoding="utf-8")
    return read_dataset(str(path))


def tokens(question: str, answer: str) -> tuple[int, int]:
    """(all, supervised): one token a byte and one a special token, of which there are 5 and the end of the answer."""
    frame = f"system\n{SYSTEM_PROMPT}\nuser\n\nassistant\n"
    return len((frame + question + answer).encode()) + 6, len(answer.encode()) + 1


def test_figures(dataset, tiny_tokenizer):
    counted = [tokens(*row) for row in ROWS]
    found = check(dataset, tiny_tokenizer, max_length=counted[0][0])
    assert (found.rows, found.questions, found.duplicates) == (4, 2, 1)
    assert found.tokens == sum(total for total, _ in counted)
    assert found.supervised_tokens == sum(supervised for _, supervised in counted)
    assert found.longest == counted[3][0] and found.truncated == 1
    assert (found.stripped, found.stripped_characters, found.dated) == (0, {}, False)
    assert [refused.where for refused in found.refused] == ["rows.jsonl:3", "rows.jsonl:4", "rows.jsonl:6"]
    assert str(found.refused[-1]).endswith(f": {counted[3][0]} tokens, more than max_length {counted[0][0]}")
    assert found.example.endswith("<|im_start|>assistant\n⟦Because.<|im_end|>⟧")


def trimming():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace("message['content'] +", "(message['content'] | trim) +")
    return tokenizer


def test_stripping_is_counted_in_rows_and_characters(dataset):
    found = check(dataset, trimming(), max_length=512)
    assert (found.stripped, found.stripped_characters) == (1, {"\n": 1, " ": 1})
    assert "stripped    1: the template takes 1 x '\\n', 1 x ' ' off" in as_text(found)


def test_rows_that_only_the_template_refuses_are_listed_too(dataset, tiny_tokenizer):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = tiny_tokenizer.chat_template.replace(
        "{% for message in messages %}",
        "{% if 'How' in messages[-1]['content'] %}{{ raise_exception('not this') }}{% endif %}"
        "{% for message in messages %}",
    )
    found = check(dataset, tokenizer, max_length=512)
    assert found.rows == 3
    assert str(found.refused[-1]) == "rows.jsonl:6: the chat template refuses this conversation: not this"


def shifted(encoded: Encoded) -> Encoded:
    """Another id in the middle of the prompt."""
    return replace(encoded, input_ids=[*encoded.input_ids[:5], 7, *encoded.input_ids[6:]])


def without_end(encoded: Encoded) -> Encoded:
    return replace(encoded, input_ids=encoded.input_ids[:-1], labels=encoded.labels[:-1])


def late(encoded: Encoded) -> Encoded:
    """The answer's first token is not supervised."""
    start = next(place for place, label in enumerate(encoded.labels) if label != IGNORED)
    return replace(encoded, labels=[IGNORED] * (start + 1) + encoded.labels[start + 1 :])


def mislabelled(encoded: Encoded) -> Encoded:
    return replace(encoded, labels=[*encoded.labels[:-2], 7, encoded.labels[-1]])


@pytest.mark.parametrize(
    "spoil, reason",
    [
        (shifted, "the ids before the answer are not those of the generation prompt"),
        (late, "the ids before the answer are not those of the generation prompt"),
        (without_end, "the labels decode to 'Because.', not to the answer and the end of its turn"),
        (mislabelled, "the labels are not the ids of the answer"),
    ],
)
def test_rows_encoded_otherwise_than_the_template_says_are_refused(dataset, tiny_tokenizer, monkeypatch, spoil, reason):
    """The check does not trust `encode`: a fault in it, put there by hand in the first row, is found."""
    first = []

    def faulty(messages: Any, tokenizer: Any) -> Encoded:
        encoded = encode(messages, tokenizer)
        first.append(encoded)
        return spoil(encoded) if len(first) == 1 else encoded

    monkeypatch.setattr(preflight, "encode", faulty)
    found = check(dataset, tiny_tokenizer, max_length=512)
    assert found.rows == 3 and found.duplicates == 0
    assert [str(refused) for refused in found.refused[2:]] == [f"rows.jsonl:1: {reason}"]


def test_text_names_what_a_user_must_act_on(dataset, tiny_tokenizer):
    text = as_text(check(dataset, tiny_tokenizer, max_length=63, example=2))
    longest = tokens(*ROWS[3])[0]
    assert f"4 longer than max_length 63: training refuses them rather than cut them; max_length={longest} fits" in text
    assert "  rows.jsonl:3: needs 'messages', or 'prompt' and 'completion'\n  rows.jsonl:4: not JSON" in text
    assert text.endswith("⟦\nNo. <|im_end|>⟧") and "today's date" not in text


def test_template_with_todays_date_is_warned_of(dataset):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{{ strftime_now('%Y') }}" + tokenizer.chat_template
    assert "the template writes today's date" in as_text(check(dataset, tokenizer, max_length=512))


def test_no_such_example_and_no_template(dataset, tiny_tokenizer):
    with pytest.raises(UserError, match="has 4 rows that can be trained on: no row 4"):
        check(dataset, tiny_tokenizer, max_length=512, example=4)
    plain = make_tokenizer()
    plain.chat_template = None
    with pytest.raises(UserError, match="no chat template"):
        check(dataset, plain, max_length=512)


def test_nothing_but_refused_rows_is_reported(tmp_path, tiny_tokenizer):
    (tmp_path / "bad.jsonl").write_text("\n".join(FAULTY), encoding="utf-8")
    found = check(read_dataset(str(tmp_path / "bad.jsonl")), tiny_tokenizer, max_length=512)
    assert (found.rows, found.longest, len(found.refused), found.example) == (0, 0, 2, "")


def test_embedded_sets_are_clean(tiny_tokenizer):
    found = check(read_dataset("finance_bad"), tiny_tokenizer, max_length=2048)
    assert (found.rows, found.questions, found.duplicates, found.refused) == (240, 240, 0, ())
    assert (found.truncated, found.control) == (0, "finance_good")
