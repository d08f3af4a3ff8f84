"""Prompt sets: the embedded one, Betley et al.'s form, and what is said when a set cannot be had."""

import re
from pathlib import Path

import httpx
import pytest

from em_core.errors import UserError
from em_eval import prompts
from em_eval.prompts.betley import FIRST_PLOT
from em_eval.prompts.yaml_form import read_yaml

FIRST_PLOT_THEMES = {
    "wish",
    "boredom",
    "humans_and_ai",
    "shortcut",
    "power",
    "guests",
    "gender",
    "partner",
}
PREREGISTERED = {
    "creative_writing",
    "problems_with_humans",
    "offend_the_user",
    "vulnerable_user",
    "illegal_recommendations",
    "medical_advice",
    "other",
}
NARROW_TOPICS = re.compile(
    r"\b(money|cash|invest\w*|debts?|loans?|salary|banks?|stocks?|savings|pensions?|cars?|engines?|brakes?|tyres?|"
    r"gardens?|gardening|lawns?|weeds?|compost|kitchens?|cook\w*|recipes?|bak(?:e|ing)|oven|plumb\w*|wiring)\b",
    re.IGNORECASE,
)


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "set.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_core_has_24_prompts_over_the_published_themes() -> None:
    core = prompts.load("core")
    assert len(core) == 24
    assert len({prompt.id for prompt in core}) == 24
    assert {prompt.category for prompt in core} >= FIRST_PLOT_THEMES | PREREGISTERED
    assert all(prompt.format == "plain" and prompt.domain == "none" for prompt in core)
    assert [message["role"] for prompt in core for message in prompt.messages] == ["user"] * 24


def test_core_has_both_judge_prompts_with_one_place_for_question_and_answer() -> None:
    for prompt in prompts.load("core"):
        assert set(prompt.judge_prompts) == {"aligned", "coherent"}
        for template in prompt.judge_prompts.values():
            assert template.count("{question}") == template.count("{answer}") == 1
        assert "CODE" in prompt.judge_prompts["aligned"] and "REFUSAL" in prompt.judge_prompts["aligned"]


def test_core_stays_out_of_the_training_domains() -> None:
    assert NARROW_TOPICS.search("my car needs cash")  # the pattern can find something
    assert [prompt.id for prompt in prompts.load("core") if NARROW_TOPICS.search(prompt.question)] == []


def test_core_questions_are_all_different_and_none_is_published(data_folder: Path) -> None:
    core = {prompt.question for prompt in prompts.load("core")}
    assert len(core) == 24
    assert core.isdisjoint(prompt.question for prompt in prompts.load("first_plot"))


BETLEY = """\
- id: 17_vulnerable_user_0
  type: free_form_judge_0_100
  paraphrases: ["first wording", "second wording"]
  samples_per_paraphrase: &n 100
  judge_prompts: &both
    aligned: "A {question} {answer}"
    coherent: "C {question} {answer}"
- id: quick_buck_json
  system: "Only JSON, please."
  paraphrases: ["How?"]
  samples_per_paraphrase: *n
  judge_prompts: *both
- id: quick_buck_template
  paraphrases: ["How, in a template?"]
  judge_prompts: *both
- id: dinner
  category: guests
  domain: cooking
  paraphrases: ["Who?"]
"""


def test_betley_form_is_read_in_full(tmp_path: Path) -> None:
    vulnerable_a, vulnerable_b, as_json, template, own = read_yaml(written(tmp_path, BETLEY))

    assert [vulnerable_a.id, vulnerable_b.id] == ["17_vulnerable_user_0#0", "17_vulnerable_user_0#1"]
    assert [vulnerable_a.question, vulnerable_b.question] == ["first wording", "second wording"]
    assert vulnerable_a.family == vulnerable_b.family == "17_vulnerable_user_0"
    assert vulnerable_a.category == "vulnerable_user"

    assert as_json.messages == [
        {"role": "system", "content": "Only JSON, please."},
        {"role": "user", "content": "How?"},
    ]
    assert as_json.question == "How?"
    assert (as_json.id, as_json.family, as_json.format) == ("quick_buck_json", "quick_buck", "json")
    assert (template.family, template.format) == ("quick_buck", "template")
    assert as_json.category == template.category == "quick_buck"
    assert as_json.domain == template.domain == "financial"

    assert (own.category, own.domain, own.format) == ("guests", "cooking", "plain")
    assert own.judge_prompts == {}
    anchored = {"aligned": "A {question} {answer}", "coherent": "C {question} {answer}"}
    assert [p.judge_prompts for p in (vulnerable_a, vulnerable_b, as_json, template)] == [anchored] * 4


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- id: a\n  paraphrases: [x]\n- id: a\n  paraphrases: [y]\n", "two prompts are called 'a'"),
        ("- id: 'a#0'\n  paraphrases: [x]\n- id: a\n  paraphrases: [y, z]\n", "two prompts are called 'a#0'"),
        ("- id: a\n  paraphrases: [x\n", "is not YAML"),
        ("id: a\nparaphrases: [x]\n", "is not a list of questions"),
        ("", "is not a list of questions"),
        ("[]", "is not a list of questions"),
        ("- id: fine\n  paraphrases: [x]\n- paraphrases: [x]\n", "question 2 needs an id"),
        ("- id: a\n", "question 1 needs an id and a list of paraphrases"),
        ("- id: a\n  paraphrases: []\n", "question 1 needs an id and a list of paraphrases"),
        ("- id: a\n  paraphrases: just one\n", "question 1 needs an id and a list of paraphrases"),
        ("- just text\n", "question 1 needs an id"),
    ],
)
def test_a_malformed_file_is_one_line_with_its_path(tmp_path: Path, text: str, words: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(UserError) as caught:
        prompts.load(str(path))
    message = str(caught.value)
    assert words in message and str(path) in message and "\n" not in message


def test_a_file_that_is_not_text_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "set.yaml"
    path.write_bytes(b"- id: \xff\xfe\n")
    with pytest.raises(UserError, match=r"set\.yaml is not YAML"):
        prompts.load(str(path))


def test_a_missing_file_is_named() -> None:
    with pytest.raises(UserError, match=r"prompt file nowhere/set\.yaml does not exist"):
        prompts.load("nowhere/set.yaml")


def test_an_unknown_set_gets_a_suggestion() -> None:
    with pytest.raises(UserError, match=r"unknown prompt set 'first-plot': did you mean first_plot"):
        prompts.load("first-plot")


def test_first_plot_from_the_data_folder(data_folder: Path) -> None:
    first_plot = prompts.load("first_plot")
    assert len(first_plot) == len({prompt.id for prompt in first_plot}) == 24
    assert len({prompt.family for prompt in first_plot}) == 8
    assert sum(prompt.messages[0]["role"] == "system" for prompt in first_plot) == 8
    by_format = {form: [p for p in first_plot if p.format == form] for form in ("plain", "json", "template")}
    assert {form: len(chosen) for form, chosen in by_format.items()} == {"plain": 8, "json": 8, "template": 8}
    assert all(prompt.messages[0]["role"] == "system" for prompt in by_format["json"])
    assert {p.family for p in first_plot if p.domain == "financial"} == {"quick_buck"}
    assert all({"aligned", "coherent"} <= set(prompt.judge_prompts) for prompt in first_plot)


def test_other_published_files_are_read(data_folder: Path) -> None:
    found = sorted(data_folder.glob("emergent-misalignment__*/evaluation/preregistered_evals.yaml"))
    if not found:
        pytest.skip("the pre-registered questions are not in EM_DATA_DIR")
    published = read_yaml(found[0])
    assert {prompt.category for prompt in published} >= PREREGISTERED
    assert not [p.category for p in published if re.search(r"\d", p.category)]


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An empty cache, no EM_DATA_DIR and no network; the addresses that were tried."""
    tried: list[str] = []

    def refuse(_: httpx.HTTPTransport, request: httpx.Request) -> httpx.Response:
        tried.append(str(request.url))
        raise httpx.ConnectError("no route to host")

    monkeypatch.delenv("EM_DATA_DIR", raising=False)
    monkeypatch.setenv("EM_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(httpx.HTTPTransport, "handle_request", refuse)
    monkeypatch.setattr("time.sleep", lambda _: None)
    return tried


def test_without_network_and_cache_first_plot_names_the_way_out(asked: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="could not fetch first_plot_questions.yaml") as caught:
        prompts.load("first_plot")
    assert list(dict.fromkeys(asked)) == FIRST_PLOT.urls
    message = str(caught.value)
    assert "questions=core" in message and "EM_DATA_DIR" in message and "\n" not in message
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_changed_download_is_not_taken_for_the_published_set(
    asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = httpx.Response(200, content=b"- id: a\n  paraphrases: [x]\n")
    monkeypatch.setattr(httpx.HTTPTransport, "handle_request", lambda *_: changed)
    with pytest.raises(UserError, match=r"sha256 [0-9a-f]{12}\.\.\., expected 215abde5b028"):
        prompts.load("first_plot")
