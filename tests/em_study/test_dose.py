"""Comparisons at equal dose as one table: what stands in its cells, against the rates that were put in."""

from pathlib import Path

import pytest

from em_study.dose import dose_table
from tests.em_study.report.samples import FOLLOWED, followed_results, sample_results


def test_differences_at_the_end_are_those_of_the_last_checkpoints(tmp_path: Path) -> None:
    table = dose_table(followed_results(tmp_path), "rate")
    assert table.pairs == [("adamw", "lion"), ("adamw", "muon"), ("lion", "muon")]
    for a, b in table.pairs:
        cell = table.cells[(a, b), "end"]
        assert cell.difference.value == pytest.approx(FOLLOWED[a] - FOLLOWED[b], abs=0.005) and cell.blocks == 2
    assert not table.straight
    assert dose_table(followed_results(tmp_path / "two", (0, 30)), "rate").straight


def test_a_run_that_is_not_done_has_no_end(tmp_path: Path) -> None:
    results = followed_results(tmp_path)
    for dataset in ("finance_bad", "home_car_bad"):
        (tmp_path / f"{dataset}-lion" / "run.json").write_text('{"state": "running"}', encoding="utf-8")
    ends = {pair for pair, quantity in dose_table(results, "rate").cells if quantity == "end"}
    assert ends == {("adamw", "muon")}


def test_what_cannot_be_compared_is_empty_and_named() -> None:
    table = dose_table(sample_results(), "rate")
    assert table.cells == {} and not table.straight
    assert any(line.startswith("matched norm_ba: no block") for line in table.too_few)
