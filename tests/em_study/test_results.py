"""Joining: when a rate may be corrected for the judge's errors."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from inspect_ai.log import EvalLog, list_eval_logs, read_eval_log

from em_eval.judge.embedded import read_facts
from em_study.results import _as_measured

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
    assert not _as_measured({}, log, manifest)
    assert not _as_measured(facts, log, SimpleNamespace(base=SimpleNamespace(id="Qwen/Qwen3-0.6B")))
