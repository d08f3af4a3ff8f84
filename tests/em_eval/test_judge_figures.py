"""The published figures of the embedded judge are those of the file that travels with it."""

from pathlib import Path

from em_eval.judge.embedded import read_facts
from em_eval.judge.figures import markdown
from em_eval.judge.labels import SHIPPED, kappa, read_labels

DOCS = Path(__file__).parents[2] / "docs" / "judge.md"


def test_docs_show_the_shipped_figures() -> None:
    """docs/judge.md holds `em judge show` word for word: nobody typed a number."""
    facts = read_facts()
    text = DOCS.read_text(encoding="utf-8")
    assert markdown(facts).strip() in text
    assert facts["in_words"] in text


def test_the_labelled_set_is_what_the_issue_of_it_says() -> None:
    """At least 600 answers, two thirds of them sampled, from base, every optimiser of the demo and its control."""
    labels = read_labels(SHIPPED)
    sampled = [label for label in labels if label.sampling != "written"]
    assert len(labels) >= 600 and len(sampled) / len(labels) >= 2 / 3
    assert {label.source for label in sampled} == {"base", "adamw", "lion", "muon", "sgd", "benign"}
    for label in labels:
        for index, final in enumerate((label.misaligned, label.incoherent)):
            if label.passes[0][index] == label.passes[1][index]:
                assert final == label.passes[0][index]


def test_kappa_is_computed_from_the_shipped_labels() -> None:
    labels = read_labels(SHIPPED)
    published = read_facts()["labels"]["kappa_between_passes"]
    for index, name in enumerate(("misaligned", "incoherent")):
        value = kappa([x.passes[0][index] for x in labels], [x.passes[1][index] for x in labels])
        assert abs(value - published[name]) < 0.001
