"""Rates with and without in-domain, format-bound and CODE answers, counted by hand."""

from dataclasses import replace
from pathlib import Path

import pytest

from em_eval.answers import Answer
from em_eval.outcomes import Judgement
from em_study.blocks import run_ends, without_penalty
from em_study.comparison import rates_at_ends
from em_study.contrasts import mean_over_shared_blocks
from em_study.results import Row
from em_study.splits import SPLITS, changes, order, out_of_domain, split_rate, training_domain
from tests.em_study.report.samples import answer, followed_results, manifest, seeded_results

BY_NAME = {split.name: split for split in SPLITS}


def row(answers: list[Answer], dataset: str = "finance_bad") -> Row:
    plain = manifest(34, 2.0, 2.1, 1e-4, 2.0, "bad")
    own = plain.model_copy(update={"config": {"seed": 0, "dataset": dataset}})
    return Row(label="x", arm="bad", checkpoint=Path("runs/x/checkpoint-34"), manifest=own, answers=answers)


def asked(alignment: float, domains: str = "", form: str = "plain", label: str = "number") -> Answer:
    judgement = Judgement(None if label == "code" else alignment, 90.0, label, "j", "r")  # type: ignore[arg-type]
    tags = {"format": form, "domain": domains.split()[0] if domains else "none", "domains": domains}
    return replace(answer(alignment, "aligned"), judgement=judgement, tags=tags)


def test_each_split_leaves_out_what_it_says() -> None:
    found = row(
        [
            asked(10, "financial"),
            asked(10, "medical financial"),
            asked(10, form="json"),
            asked(10, label="code"),
            asked(90, "medical"),
            asked(90),
        ]
    )
    counted = {name: split_rate(split, found) for name, split in BY_NAME.items()}
    shares = {name: (one.rate.value if one.rate else None, one.eligible, one.dropped) for name, one in counted.items()}
    assert shares == {
        "all": (3 / 5, 5, 0),
        "out of domain": (1 / 3, 3, 2),
        "plain format": (2 / 4, 4, 1),
        "CODE left out": (3 / 5, 5, 1),
        "CODE misaligned": (4 / 6, 6, 0),
        "none of these": (0.0, 2, 4),
    }


def test_topics_of_data_and_of_questions_are_one(monkeypatch) -> None:
    assert training_domain("finance_bad") == "financial" and training_domain("home_car_bad") == "home"
    assert training_domain("no_such_dataset") is None
    assert out_of_domain(row([], "home_car_bad"), asked(10, "medical"))
    unknown = row([], "no_such_dataset")
    assert not out_of_domain(unknown, asked(10, "medical")) and out_of_domain(unknown, asked(10))


def test_changes_of_the_order_are_pointed_out(tmp_path: Path) -> None:
    results = followed_results(tmp_path)
    assert [name for name, _ in order(BY_NAME["all"], results.rows)] == ["muon", "adamw", "lion"]
    assert changes(results.rows) == []
    # Muon's finished runs answer in CODE alone: by Evil Spectra's rate it is now the worst.
    code = [replace(asked(10, label="code"), family=f"q{i}") for i in range(20)]
    code += [replace(asked(90), family=f"q{i}") for i in range(2)]
    rows = [replace(one, answers=code) if one.manifest.optimiser["name"] == "muon" else one for one in results.rows]
    (line,) = changes(rows)
    assert line.startswith("CODE misaligned: AdamW") and "< Muon 90.9%" in line and "(headline: Muon 0.0%" in line


def test_the_order_is_that_of_the_verdict(tmp_path: Path) -> None:
    """A seed counts like another, whatever the number of its answers that count; and a run once."""
    ends = without_penalty(run_ends(seeded_results(tmp_path).rows))
    few = [
        replace(row, answers=row.answers[:30]) if row.manifest.config["seed"] == 2 else row for row in [*ends, ends[0]]
    ]
    expected = mean_over_shared_blocks(rates_at_ends(few))
    assert dict(order(BY_NAME["all"], few)) == pytest.approx(expected) and len(expected) == 3
    muon = [row for row in few if row.manifest.optimiser["name"] == "muon"]
    rates = [one.rate.value for row in muon if (one := split_rate(BY_NAME["all"], row)).rate]
    assert len(rates) == 6 and expected["muon"] == pytest.approx(sum(rates) / 6)
