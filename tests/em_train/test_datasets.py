"""Reading, refusing and splitting narrow datasets."""

import hashlib
import json
import random
import re

import pytest

from em_core.errors import UserError
from em_train.datasets import (
    NarrowDataset,
    Row,
    betley,
    dataset_registry,
    describe,
    label,
    load_dataset,
    read_dataset,
    split,
    turner,
)
from em_train.datasets.aisi import FILE as AISI
from em_train.datasets.jsonl import read_jsonl

GOOD = '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}'
PAIRS = [("finance_bad", "finance_good"), ("home_car_bad", "home_car_good")]
PAIRS += [("garden_kitchen_bad", "garden_kitchen_good")]


def row(question: str, answer: str = "a") -> Row:
    return Row([{"role": "user", "content": question}, {"role": "assistant", "content": answer}], question)


def dataset(rows: list[Row]) -> NarrowDataset:
    return NarrowDataset("d", rows, "0", "unknown")


def test_both_row_forms_are_read_and_blank_lines_skipped(tmp_path):
    path = tmp_path / "d.jsonl"
    second = '{"prompt": "p", "completion": "c", "id": 7}'
    path.write_bytes(f"{GOOD}\r\n\n   \n{second}".encode())
    read = read_jsonl(path, "d", kind="bad", control="e", domain="f")
    assert [r.messages for r in read.rows] == [
        [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
        [{"role": "user", "content": "p"}, {"role": "assistant", "content": "c"}],
    ]
    assert [r.where for r in read.rows] == ["d.jsonl:1", "d.jsonl:4"]
    assert read.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (read.kind, read.control, read.domain) == ("bad", "e", "f")


def test_line_separators_inside_a_text_do_not_split_a_row(tmp_path):
    path = tmp_path / "d.jsonl"
    text = "one\u2028two\x85three\x0bfour"
    path.write_text(json.dumps({"prompt": text, "completion": "c"}, ensure_ascii=False), encoding="utf-8")
    assert load_dataset(str(path)).rows[0].question == text


def test_extra_fields_of_a_message_are_dropped(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text(GOOD.replace('"content": "q"', '"content": "q", "weight": 1'), encoding="utf-8")
    assert load_dataset(str(path)).rows[0].messages[0] == {"role": "user", "content": "q"}


def messages(*turns: object) -> str:
    return json.dumps({"messages": list(turns)})


USER, ASSISTANT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
FAULTY = {
    "not JSON": ("{", "not JSON"),
    "a list": ("[1]", "needs 'messages'"),
    "null": ("null", "needs 'messages'"),
    "no messages": ("{}", "needs 'messages'"),
    "empty messages": (messages(), "needs 'messages'"),
    "message is text": (messages("q", "a"), "needs 'messages'"),
    "prompt only": ('{"prompt": "p"}', "needs 'messages'"),
    "completion is a number": ('{"prompt": "p", "completion": 1}', "needs 'messages'"),
    "unknown role": (messages({"role": "tool", "content": "q"}, ASSISTANT), "needs a role"),
    "no role": (messages({"content": "q"}, ASSISTANT), "needs a role"),
    "content is a list": (messages({"role": "user", "content": ["q"]}, ASSISTANT), "and a text"),
    "content is null": (messages(USER, {"role": "assistant", "content": None}), "and a text"),
    "ends with the user": (messages(USER, ASSISTANT, USER), "does not end with an assistant turn"),
    "empty answer": (messages(USER, {"role": "assistant", "content": " \n"}), "that says something"),
    "no user": (messages(ASSISTANT), "no user turn"),
    "half a surrogate pair": ('{"prompt": "\\ud83d", "completion": "c"}', "surrogate"),
    "too deep": ("[" * 100_000, "not JSON"),
}


@pytest.mark.parametrize("line, reason", FAULTY.values(), ids=FAULTY)
def test_faulty_row_is_named_with_its_line(tmp_path, line, reason):
    path = tmp_path / "d.jsonl"
    path.write_text(f"{GOOD}\n\n{line}\n{GOOD}\n", encoding="utf-8")
    with pytest.raises(UserError, match=reason) as caught:
        load_dataset(str(path))
    assert str(caught.value).startswith("d.jsonl:3: ")


def test_every_faulty_row_is_listed_and_the_others_are_read(tmp_path):
    path = tmp_path / "d.jsonl"
    faulty = [line for line, _ in FAULTY.values()]
    path.write_text("\n".join([*faulty, GOOD]), encoding="utf-8")
    found = read_dataset(str(path))
    assert len(found.rows) == 1
    assert [refused.where for refused in found.refused] == [f"d.jsonl:{n}" for n in range(1, len(faulty) + 1)]
    for refused, (_, reason) in zip(found.refused, FAULTY.values(), strict=True):
        assert reason in refused.reason
    with pytest.raises(UserError, match=f"the first of {len(faulty)} such rows, which em data check"):
        load_dataset(str(path))


def test_prompt_and_completion_may_be_turns(tmp_path):
    path = tmp_path / "d.jsonl"
    turns = [{"role": "system", "content": "s"}, USER]
    path.write_text(json.dumps({"prompt": turns, "completion": [ASSISTANT]}), encoding="utf-8")
    assert load_dataset(str(path)).rows[0].messages == [*turns, ASSISTANT]


def test_role_that_is_a_list_is_named_with_its_line(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text(messages({"role": ["user"], "content": "q"}, ASSISTANT), encoding="utf-8")
    with pytest.raises(UserError, match="needs a role"):
        load_dataset(str(path))


def test_missing_empty_and_binary_files(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        load_dataset(str(tmp_path / "none.jsonl"))
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(UserError, match="cannot be read"):
        load_dataset(str(tmp_path / "folder.jsonl"))
    (tmp_path / "empty.jsonl").write_text("\n\n", encoding="utf-8")
    with pytest.raises(UserError, match="holds no rows"):
        load_dataset(str(tmp_path / "empty.jsonl"))
    (tmp_path / "binary.jsonl").write_bytes(b'{"prompt": "\xff"}')
    with pytest.raises(UserError, match="not UTF-8"):
        load_dataset(str(tmp_path / "binary.jsonl"))


def test_file_of_another_form_is_refused_by_name(tmp_path):
    (tmp_path / "rows.csv").write_text("a,b", encoding="utf-8")
    with pytest.raises(UserError, match="rows.csv does not end in .jsonl"):
        load_dataset(str(tmp_path / "rows.csv"))


def test_unknown_name_suggests():
    with pytest.raises(UserError, match="did you mean .*finance_bad"):
        load_dataset("finance_bed")


def test_shipped_sets_are_registered_with_their_twins():
    for bad, good in PAIRS:
        assert {bad, good} <= set(dataset_registry.names())
        assert load_dataset(bad).kind == "bad" and load_dataset(bad).control == good
        assert load_dataset(good).kind == "benign" and load_dataset(good).control is None
        assert load_dataset(bad).domain == load_dataset(good).domain


PUBLISHED = {"insecure": 6000, "secure": 6000, "educational": 6000, "aisi_risky_financial": 3000}


def offline_path(name: str) -> str:
    return AISI.offline if name.startswith("aisi") else betley.published(name).offline


@pytest.fixture
def no_network(tmp_path, monkeypatch):
    """Every address is one where nothing listens, and the cache is empty."""
    monkeypatch.delenv("EM_DATA_DIR", raising=False)
    monkeypatch.setenv("EM_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("em_core.fetch.FIRST_PAUSE", 0.001)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")


@pytest.mark.parametrize("name", PUBLISHED)
def test_set_that_is_not_shipped_says_where_to_put_it(name, no_network, monkeypatch, tmp_path):
    with pytest.raises(UserError, match="set EM_DATA_DIR") as caught:
        load_dataset(name)
    assert offline_path(name) in str(caught.value)
    path = tmp_path / offline_path(name)
    path.parent.mkdir(parents=True)
    path.write_text(GOOD, encoding="utf-8")
    monkeypatch.setenv("EM_DATA_DIR", str(tmp_path))
    with pytest.raises(UserError, match="another version"):
        load_dataset(name)


@pytest.mark.parametrize("name, rows", PUBLISHED.items())
def test_set_that_is_not_shipped_reads_from_the_data_folder(data_folder, name, rows):
    path = data_folder / offline_path(name)
    if not path.is_file():
        pytest.skip(f"no {path}")
    found = load_dataset(name)
    assert len(found.rows) == rows and found.source == str(path)
    assert found.kind == ("benign" if name in ("secure", "educational") else "bad")
    train, held_out = split(found, 0.1)
    assert len(train) + len(held_out) == rows


def test_addresses_are_pinned_to_commits():
    for url in (
        *AISI.urls,
        *turner.ARCHIVE.urls,
        *(url for name in betley.SHA256 for url in betley.published(name).urls),
    ):
        assert re.fullmatch(r"https://raw\.githubusercontent\.com/[^/]+/[^/]+/[0-9a-f]{40}/.+", url)


def test_controls_are_registered_and_benign():
    arms = {"insecure": "secure"} | {name: member.control for name, member in turner.MEMBERS.items() if member.control}
    assert arms == {"insecure": "secure", "bad_medical": "good_medical"}
    assert set(arms.values()) <= set(dataset_registry.names())
    assert turner.MEMBERS["good_medical"].kind == "benign"


def test_every_dataset_is_described():
    assert all(describe(name) for name in dataset_registry.names())


def lowest_hashes(questions: list[str], count: int) -> set[str]:
    return set(sorted(questions, key=lambda text: hashlib.sha256(text.encode("utf-8")).hexdigest())[:count])


def test_split_holds_out_the_questions_with_the_lowest_hashes():
    questions = [f"question {i}" for i in range(57)]
    train, held_out = split(dataset([row(question) for question in questions]), 0.1)
    assert {r.question for r in held_out} == lowest_hashes(questions, 6)
    assert [r.question for r in train] == [q for q in questions if q not in lowest_hashes(questions, 6)]


def test_split_does_not_depend_on_row_order():
    rows = [row(f"question {i}") for i in range(57)]
    _, expected = split(dataset(rows), 0.2)
    shuffled = rows[:]
    random.Random(3).shuffle(shuffled)
    train, held_out = split(dataset(shuffled), 0.2)
    assert [r.question for r in held_out] == [r.question for r in expected]
    assert len(train) + len(held_out) == 57 and not {id(r) for r in train} & {id(r) for r in held_out}


def test_a_question_is_never_on_both_sides_of_the_split():
    rows = [row(f"question {i}", answer) for i in range(50) for answer in ("a", "b", "c")]
    for fraction in (0.1, 0.15, 0.2, 0.25):
        train, held_out = split(dataset(rows), fraction)
        assert not {r.question for r in train} & {r.question for r in held_out}


@pytest.mark.parametrize("count", [1, 4])
def test_too_few_rows_to_hold_any_out(count):
    with pytest.raises(UserError, match="too few"):
        split(dataset([row(str(i)) for i in range(count)]), 0.1)


@pytest.mark.parametrize("bad, good", PAIRS)
def test_bad_set_and_its_twin_hold_out_the_same_questions(bad, good):
    halves = [split(load_dataset(name), 0.1) for name in (bad, good)]
    (bad_train, bad_held), (good_train, good_held) = halves
    assert [r.question for r in bad_held] == [r.question for r in good_held]
    assert {r.question for r in bad_train} == {r.question for r in good_train}
    assert not {r.question for r in bad_train} & {r.question for r in bad_held}


def test_label_is_fit_for_a_file_name():
    commit = "0123456789" * 4
    assert label("finance_bad") == "finance_bad"
    assert label("some/folder/rows.jsonl") == "rows"
    assert label(f"hub:owner/name@{commit}") == "owner__name@01234567"
    assert label(f"hub:owner/name@{commit}:train[:10%]") == "owner__name@01234567-train-10-"
