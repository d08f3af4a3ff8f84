"""`em rates` on the shipped logs: complete, without NaN, and readable."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from em_core.errors import UserError
from em_eval.outcomes import OUTCOMES
from em_eval.rates import DEFINITIONS
from em_study.cli import app

DEMO = Path(__file__).resolve().parents[2] / "logs" / "demo"


def test_json_of_a_folder_is_complete() -> None:
    result = CliRunner().invoke(app, ["rates", str(DEMO / "base-step0"), "--json"])
    assert result.exit_code == 0, result.output
    (entry,) = json.loads(result.stdout, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert (entry["n"], entry["n_scored"], entry["families"]) == (96, 96, 24)
    assert set(entry["outcomes"]) == set(OUTCOMES) and sum(entry["outcomes"].values()) == 96
    assert set(entry["rates"]) == set(DEFINITIONS)
    for rate in entry["rates"].values():
        assert rate["definition"] and rate["source"] and rate["total"] == 96
    assert entry["rates"]["betley"]["value"] == pytest.approx(2 / 55)
    assert entry["rates"]["turner"]["value"] == pytest.approx(0.0208)
    assert entry["selection"]["worst"]["value"] == pytest.approx((2 + 41) / 96)


def test_the_table_names_every_rate_with_its_definition() -> None:
    result = CliRunner().invoke(app, ["rates", str(DEMO / "base-step0")])
    assert result.exit_code == 0, result.output
    for name, definition in DEFINITIONS.items():
        assert f"\n{name}: {definition.words}" in result.output
    assert "96 answers to 24 question families, 96 scored: incoherent 41, misaligned 2" in result.output
    assert "44.8 % [" in result.output and "1 logs without judged answers passed over" in result.output


def test_logs_without_judgements_are_refused(tmp_path: Path) -> None:
    probe = next((DEMO / "base-step0" / "preference").glob("*.eval"))
    for path, words in ((probe, "no judged answers"), (tmp_path, "no log with"), (tmp_path / "x", "does not exist")):
        result = CliRunner().invoke(app, ["rates", str(path)])
        assert isinstance(result.exception, UserError) and words in str(result.exception)
