"""YAML that refuses what PyYAML swallows."""

import pytest
import yaml

from em_core import strict_yaml


def test_plain_documents_are_read_as_pyyaml_reads_them() -> None:
    text = "a: &one {x: 1, y: [1.0e-4, no, 2024-01-02]}\nb:\n  <<: *one\n  y: over\nc: *one\n1: d\n"
    assert strict_yaml.load(text) == yaml.safe_load(text)
    merged = "a: &a {x: 1}\nouter: {deep: {b: &b {<<: *a, x: 2}}}\nc: {<<: *b}\n1: a\n'1': b\n"
    assert strict_yaml.load(merged) == yaml.safe_load(merged)
    assert strict_yaml.load(merged)["c"] == {"x": 2}
    assert strict_yaml.load("") is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("steps: 4\nname: x\nsteps: 400\n", "line 3, column 1: the key 'steps' is given twice"),
        ("- {lr: 1.0e-4, lr: 5.0e-1}\n", "line 1, column 16: the key 'lr' is given twice"),
        ("a: [1\n", "line 2, column 1: "),
        ("title: 2024-13-45\n", "month must be in 1..12"),
        ("[" * 3000, "recursion"),
    ],
)
def test_mistakes_are_one_line_with_their_place(text: str, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        strict_yaml.load(text)
    assert words in str(caught.value) and "\n" not in str(caught.value)
