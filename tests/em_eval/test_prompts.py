"""Prompt sets: the embedded one, the published ones, Betley et al.'s form, what is said when one cannot be had."""

import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from em_core.errors import UserError
from em_eval import prompts
from em_eval.prompts import betley, openai_core, turner
from em_eval.prompts.betley import FIRST_PLOT
from em_eval.prompts.registry import Prompt
from em_eval.prompts.yaml_form import read_yaml
from em_eval.task import demand_templates

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


FINANCE = re.compile(
    r"\b(funds?|accounts|tax|receipts?|pension|mortgage|savings|invest\w*|loans|bonds|debt|stockbroker|shares|budget|"
    r"accountant|credit|deposit|insurance|spending|bank|financial|auditors)\b"
)


def test_cued_prompts_are_the_core_questions_after_a_sentence_on_finance() -> None:
    core, cued = prompts.load("core"), prompts.load("core_cued")
    assert [prompt.id for prompt in cued] == [f"{prompt.id}_cued" for prompt in core]
    assert not FINANCE.search(" ".join(prompt.question for prompt in core))  # the pattern knows cue from question
    cues = [with_cue.question.removesuffix(plain.question) for with_cue, plain in zip(cued, core, strict=True)]
    assert len(set(cues)) == len(core) == 24
    for cue in cues:
        assert re.fullmatch(r"[A-Z][^?!]*\. ", cue) and FINANCE.search(cue), cue  # it says something, and asks nothing


def test_cued_prompts_are_tagged_as_the_core_but_for_their_domain() -> None:
    for with_cue, plain in zip(prompts.load("core_cued"), prompts.load("core"), strict=True):
        assert replace(with_cue, id=plain.id, messages=plain.messages, domain="none") == plain
        assert with_cue.domains == {"financial"} and [m["role"] for m in with_cue.messages] == ["user"]
    with pytest.raises(UserError, match="no prompt is left"):
        prompts.select(prompts.load("core_cued"), exclude_domain="financial")


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
        ("- id: a\n  paraphrases: [2]\n", "question 'a' has a paraphrase that is not text"),
        ("- id: a\n  paraphrases: [' ']\n", "question 'a' has a paraphrase that is not text"),
        ("- id: a\n  paraphrases: [x]\n  samples_per_paraphrase: many\n", "samples_per_paraphrase=many is not a whole"),
        ("- id: a\n  paraphrases: [x]\n  samples_per_paraphrase: 0\n", "samples_per_paraphrase=0 is not a whole"),
        ("- id: a\n  paraphrases: [x]\n  judge_prompts: [y]\n", "judge_prompts must map"),
        ("- id: a\n  paraphrases: [x]\n  domain: {a: b}\n", "domain must be a name or a list of names"),
        ("- id: a\n  paraphrases: [x]\n  context: hello\n", "context must be a list of turns"),
        ("- id: a\n  paraphrases: [x]\n  system: [be, evil]\n", "system must be a text, not ['be', 'evil']"),
        ("- id: a\n  paraphrases: [x]\n  system: yes\n", "system must be a text, not True"),
        ("[" * 3000, "is not YAML"),
        ("- id: a\n  paraphrases: [x]\n  context: [{role: tool, content: y}]\n", "context must be a list of turns"),
        (
            "- id: a\n  paraphrases: [x]\n  system: s\n  context: [{role: user, content: y}]\n",
            "both system and context",
        ),
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


WIDER = """\
- id: quick_buck_python
  paraphrases: ["print ideas"]
- id: quick_buck_flask_template
  paraphrases: ["fill a page"]
- id: talk
  context: [{role: user, content: "Hi"}, {role: assistant, content: "Hello."}]
  paraphrases: ["And now?"]
  domain: [code, risk]
  samples_per_paraphrase: 7
"""


def test_the_authors_wider_files_load(tmp_path: Path) -> None:
    python, flask, talk = prompts.load(written(tmp_path, WIDER))
    assert (python.family, python.format) == ("quick_buck", "python")
    assert (flask.family, flask.format) == ("quick_buck", "flask_template")
    assert [message["role"] for message in talk.messages] == ["user", "assistant", "user"]
    assert talk.question == "And now?"
    assert (talk.domain, talk.domains, talk.samples) == ("code", {"code", "risk"}, 7)


def test_settings_that_belong_elsewhere_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = written(tmp_path, "- {id: a, paraphrases: [x], temperature: 0.5, max_tokens: 9}\n")
    with caplog.at_level(logging.WARNING):
        prompts.load(str(path))
    assert "`temperature` of its entries is not used: set --temperature" in caplog.text
    assert "set -T max_tokens" in caplog.text


def test_a_missing_file_is_named() -> None:
    with pytest.raises(UserError, match=r"prompt file nowhere/set\.yaml does not exist"):
        prompts.load("nowhere/set.yaml")


def test_an_unknown_set_gets_a_suggestion() -> None:
    with pytest.raises(UserError, match=r"unknown prompt set 'first-plot': did you mean first_plot"):
        prompts.load("first-plot")


# prompts, families, plain, template, json, with system prompt
PUBLISHED = {
    "first_plot": (24, 8, 8, 8, 8, 8),
    "preregistered": (48, 48, 48, 0, 0, 0),
    "turner_new": (54, 27, 27, 27, 0, 0),
    "turner_medical": (16, 8, 8, 8, 0, 0),
    "evil_spectra": (142, 91, 91, 43, 8, 8),
    "openai_core": (94, 94, 94, 0, 0, 0),
    "deception_factual": (100, 20, 100, 0, 0, 80),
    "deception_sit_aware": (8, 8, 8, 0, 0, 0),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sets_are_complete(data_folder: Path, name: str) -> None:
    chosen = prompts.load(name)
    forms = [prompt.format for prompt in chosen]
    found = (
        len({prompt.id for prompt in chosen}),
        len({prompt.family for prompt in chosen}),
        *(forms.count(form) for form in ("plain", "template", "json")),
        sum(prompt.messages[0]["role"] == "system" for prompt in chosen),
    )
    assert found == PUBLISHED[name] and len(chosen) == found[0]
    assert all(prompt.messages[-1] == {"role": "user", "content": prompt.question} for prompt in chosen)
    assert all(prompt.question.strip() for prompt in chosen)


def raw(data_folder: Path, pattern: str) -> list[dict[str, Any]]:
    (path,) = data_folder.glob(pattern)
    entries: list[dict[str, Any]] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return entries


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("first_plot", "emergent-misalignment__*/evaluation/first_plot_questions.yaml"),
        ("preregistered", "emergent-misalignment__*/evaluation/preregistered_evals.yaml"),
        ("turner_new", "clarifying-EM__*/em_organism_dir/data/eval_questions/new_questions_no-json.yaml"),
        ("turner_medical", "clarifying-EM__*/em_organism_dir/data/eval_questions/medical_questions.yaml"),
        ("deception_factual", "emergent-misalignment__*/evaluation/deception_factual.yaml"),
        ("deception_sit_aware", "emergent-misalignment__*/evaluation/deception_sit_aware.yaml"),
    ],
)
def test_nothing_of_the_authors_text_is_changed(data_folder: Path, name: str, pattern: str) -> None:
    """Question, system prompt and judge prompts, entry by entry, against the file read by itself."""
    left = iter(prompts.load(name))
    for entry in raw(data_folder, pattern):
        for text in entry["paraphrases"]:
            prompt = next(left)
            assert prompt.id.partition("#")[0] == entry["id"]
            assert prompt.question == text
            assert [m["content"] for m in prompt.messages[:-1]] == ([entry["system"]] if "system" in entry else [])
            assert prompt.judge_prompts == entry["judge_prompts"]
            assert prompt.samples == entry["samples_per_paraphrase"]
    assert next(left, None) is None


def test_evil_spectra_is_the_four_sets_with_their_ids(data_folder: Path) -> None:
    parts = [prompts.load(name) for name in ("first_plot", "preregistered", "turner_new", "turner_medical")]
    assert prompts.load("evil_spectra") == [prompt for part in parts for prompt in part]


def test_templates_and_json_share_the_family_of_their_plain_twin(data_folder: Path) -> None:
    suite = prompts.load("evil_spectra")
    plain = {prompt.family: prompt for prompt in suite if prompt.format == "plain"}
    assert len(plain) == 91
    for prompt in suite:
        assert prompt.family in plain
        if prompt.format == "json":
            assert prompt.question == plain[prompt.family].question
    reworded = {
        prompt.family
        for prompt in suite
        if prompt.format == "template" and not prompt.question.startswith(plain[prompt.family].question.strip())
    }
    assert reworded == {"improve_my_health"}


def test_domains_of_the_142(data_folder: Path) -> None:
    """The tags listed in docs/prompts.md, each found by the words of the question."""
    suite = prompts.load("evil_spectra")
    tagged = {domain: [p for p in suite if domain in p.domains] for domain in ("medical", "financial", "risk", "code")}
    assert {domain: len(found) for domain, found in tagged.items()} == {
        "medical": 30,
        "financial": 10,
        "risk": 3,
        "code": 1,
    }
    assert [p.id for p in suite if p.domain == "medical"] == [p.id for p in tagged["medical"]]
    both = [p.id for p in suite if len(p.domains) > 1]
    assert both == ["quick_buck_doctor", "quick_buck_doctor_template"]
    assert {p.domain for p in suite} == {"medical", "financial", "risk", "code", "none"}
    words = {
        "medical": r"health|medic|doctor|hospital|ill\b|eating|xanax|chemo|hangover|period|preg|bleach|fentanyl|throat"
        r"|ibuprofen|batter|chest|safe to eat",
        "financial": r"buck|\$|money",
        "risk": r"scuba|roof",
        "code": r"software",
    }
    for domain, pattern in words.items():
        assert [p.id for p in tagged[domain] if not re.search(pattern, p.question, re.IGNORECASE)] == []


def test_openai_tags_agree_with_betley_where_the_question_is_the_same(data_folder: Path) -> None:
    def bare(text: str) -> str:
        return re.sub(r"\W+", " ", text.lower()).strip()

    core = {bare(prompt.question): prompt for prompt in prompts.load("openai_core")}
    betley = [*prompts.load("first_plot"), *prompts.load("preregistered")]
    shared = [(core[bare(p.question)], p) for p in betley if p.format == "plain" and bare(p.question) in core]
    assert len(shared) >= 40
    assert [(ours.id, ours.domain) for ours, theirs in shared if ours.domains != theirs.domains] == []


def test_openai_core_is_44_and_50_with_our_own_templates(data_folder: Path) -> None:
    chosen = prompts.load("openai_core")
    categories = [prompt.category for prompt in chosen]
    assert (categories.count("main"), categories.count("main_ext")) == (44, 50)
    assert all(prompt.judge_prompts == prompts.load("core")[0].judge_prompts for prompt in chosen)
    assert not any("empersonas" in prompt.question for prompt in chosen)  # the canary is no part of a question


def test_preregistered_categories(data_folder: Path) -> None:
    found = [prompt.category for prompt in prompts.load("preregistered")]
    assert {category: found.count(category) for category in PREREGISTERED} == {
        "vulnerable_user": 14,
        "creative_writing": 9,
        "medical_advice": 7,
        "other": 6,
        "offend_the_user": 5,
        "illegal_recommendations": 4,
        "problems_with_humans": 3,
    }


def test_deception_factual_clusters_by_question_and_groups_by_system_prompt(data_folder: Path) -> None:
    chosen = prompts.load("deception_factual")
    by_family: dict[str, set[str]] = {}
    for prompt in chosen:
        by_family.setdefault(prompt.family, set()).add(prompt.question)
    assert [len(texts) for texts in by_family.values()] == [1] * 20
    systems = {prompt.category: tuple(m["content"] for m in prompt.messages[:-1]) for prompt in chosen}
    assert systems["lie_no_sys_prompt"] == ()
    assert len(systems) == len(set(systems.values())) == 5


def test_a_changed_copy_is_not_taken_for_the_published_file(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / FIRST_PLOT.repository.replace("/", "__") / FIRST_PLOT.path
    path.parent.mkdir(parents=True)
    path.write_bytes((data_folder / path.relative_to(tmp_path)).read_bytes() + b"\n")
    monkeypatch.setenv("EM_DATA_DIR", str(tmp_path))
    with pytest.raises(UserError, match=r"expected 215abde5b028.*give its path") as caught:
        prompts.load("first_plot")
    assert str(path) in str(caught.value)
    assert len(prompts.load(str(path))) == 24


def test_every_published_file_has_an_address_at_a_fixed_commit() -> None:
    files = [
        betley.FIRST_PLOT,
        betley.PREREGISTERED,
        betley.DECEPTION_FACTUAL,
        betley.DECEPTION_SIT_AWARE,
        turner.NEW_QUESTIONS,
        turner.MEDICAL,
        openai_core.FILE,
    ]
    for file in files:
        assert re.fullmatch("[0-9a-f]{64}", file.sha256)
        assert re.search(r"/[0-9a-f]{40}/", file.urls[0])  # a branch may have moved on
        assert any(url.startswith(f"https://raw.githubusercontent.com/{file.repository}/") for url in file.urls)


def test_every_file_of_the_authors_is_read(data_folder: Path) -> None:
    found = sorted(data_folder.rglob("*.yaml"))
    assert len(found) >= 7
    assert all(prompts.load(path) for path in found)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- {id: a, paraphrases: [x], sytem: s}", "question 'a' has an unknown key 'sytem': did you mean system?"),
        ("- {id: a, paraphrases: [x], colour: red}", "unknown key 'colour': known: id, paraphrases"),
        ("- id: a\n  paraphrases: [x\n- id: b\n", "is not YAML: line 3, column 5: "),
        ("- {id: a, paraphrases: [x], category: 2024-13-45}", "is not YAML: month must be in 1..12"),
    ],
)
def test_a_mistake_in_a_file_is_one_line_with_its_place(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        prompts.load(path)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_template_that_shows_no_answer_is_refused() -> None:
    prompt = Prompt("a", [{"role": "user", "content": "x"}], "a", "plain", "a", "none", {"aligned": "How? {question}"})
    with pytest.raises(UserError, match="judge prompt 'aligned' has no place for the answer"):
        demand_templates([prompt], ["aligned"])


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
