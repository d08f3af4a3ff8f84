"""Joining: when a rate may be corrected for the judge's errors."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from inspect_ai.log import EvalLog, list_eval_logs, read_eval_log

from em_eval.answers import answers
from em_eval.judge.embedded import read_facts
from em_study.blocks import run_ends, without_penalty
from em_study.names import treatment_of
from em_study.results import _as_measured, _read
from tests.em_study.report.samples import seeded_results

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def log() -> EvalLog:
    """The shipped run's answers of the base model."""
    found = [info for info in list_eval_logs(str(ROOT / "logs" / "demo")) if info.task == "em"]
    return read_eval_log(found[0], header_only=True)


def test_a_rate_is_corrected_only_under_the_conditions_of_the_measurement(log: EvalLog) -> None:
    """Base model, prompts and sampling: the judge's sensitivity elsewhere is unknown."""
    facts, manifest = read_facts(), SimpleNamespace(base=SimpleNamespace(id="smollm2-135m"))
    assert _as_measured(facts, log, manifest)  # the demo draws as the labelled answers were drawn
    under = facts["measured_under"]
    for change in ({"questions": "first_plot"}, {"temperature": 0.7}, {"top_k": None}, {"base": "Qwen/Qwen3-0.6B"}):
        assert not _as_measured(facts | {"measured_under": under | change}, log, manifest)
    some = log.model_copy(update={"eval": log.eval.model_copy(update={"task_args": {"format": "plain"}})})
    assert not _as_measured(facts, some, manifest)
    assert not _as_measured({}, log, manifest)
    assert not _as_measured(facts, log, SimpleNamespace(base=SimpleNamespace(id="Qwen/Qwen3-0.6B")))


def test_contrasts_of_optimisers_leave_penalised_runs_to_their_own_section(tmp_path: Path) -> None:
    ends = run_ends(seeded_results(tmp_path).rows)
    plain = without_penalty(ends)
    assert len(ends) == 21 and len(plain) == 18 and not any(row.manifest.penalty for row in plain)
    penalised = [row for row in ends if row.manifest.penalty]
    assert without_penalty(penalised) == penalised
    assert treatment_of(penalised[0].manifest) == "AdamW lr 0.0003, spectral 1"


def test_only_what_a_report_shows_is_read_of_a_log() -> None:
    """The shipped log's answers without events are those with them, and judged alike."""
    info = next(info for info in list_eval_logs(str(ROOT / "logs" / "demo")) if info.task == "em")
    path = Path(info.name.removeprefix("file://"))
    whole, light = read_eval_log(str(path)), _read(path)
    assert answers(light) == answers(whole) and len(answers(light)) > 0
    assert any(sample.events for sample in whole.samples or [])
    assert not any(sample.events or sample.messages for sample in light.samples or [])
