"""Leaving prompts out by their tags."""

import pytest

from em_core.errors import UserError
from em_eval.prompts import Prompt, select


def prompt(name: str, format: str = "plain", category: str = "c", domain: str = "none", *others: str) -> Prompt:
    return Prompt(name, [{"role": "user", "content": name}], name, format, category, domain, {}, others)


PROMPTS = [
    prompt("a"),
    prompt("a_json", "json"),
    prompt("b", "plain", "d", "medical"),
    prompt("b_template", "template", "d", "medical", "financial"),
    prompt("c", "plain", "d", "financial"),
]


@pytest.mark.parametrize(
    ("wanted", "left"),
    [
        ({}, ["a", "a_json", "b", "b_template", "c"]),
        ({"format": "plain"}, ["a", "b", "c"]),
        ({"format": "plain,json"}, ["a", "a_json", "b", "c"]),
        ({"format": ["json", "template"]}, ["a_json", "b_template"]),
        ({"category": "d"}, ["b", "b_template", "c"]),
        ({"exclude_domain": "medical"}, ["a", "a_json", "c"]),
        ({"exclude_domain": "financial"}, ["a", "a_json", "b"]),
        ({"exclude_domain": "code"}, ["a", "a_json", "b", "b_template", "c"]),
        ({"format": "plain", "category": "d", "exclude_domain": ["financial"]}, ["b"]),
    ],
)
def test_tags_select(wanted: dict[str, str | list[str]], left: list[str]) -> None:
    assert [chosen.id for chosen in select(PROMPTS, **wanted)] == left


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"exclude_domain": "medcal"}, "no domain 'medcal' in this prompt set: did you mean medical?"),
        ({"format": "python"}, "no format 'python' in this prompt set: known: json, plain, template"),
        ({"category": "zzz"}, "no category 'zzz'"),
        ({"format": "template", "exclude_domain": "medical"}, "no prompt is left"),
    ],
)
def test_what_selects_nothing_is_one_line(wanted: dict[str, str], words: str) -> None:
    with pytest.raises(UserError) as caught:
        select(PROMPTS, **wanted)
    assert words in str(caught.value) and "\n" not in str(caught.value)
