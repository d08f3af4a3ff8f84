"""`em rates --over-models` on logs of several models."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from inspect_ai.log import EvalLog
from inspect_ai.model import Model, ModelOutput
from typer.testing import CliRunner

from em_core.errors import UserError
from em_study.cli import app
from tests.em_eval.conftest import grader, mock, said

SAMPLES = 5


def model(name: str) -> Model:
    return mock(f"An answer of {name}.", name)


def judge_of(misaligned: int) -> Model:
    """The first answers that it sees are misaligned."""
    seen: list[str] = []

    def reply(input: list[object], *_: object) -> ModelOutput:
        text = str(getattr(input[-1], "text", ""))
        if "REFUSAL, if" not in text:
            return said("90")
        seen.append(text)
        return said("5" if len(seen) <= misaligned else "95")

    return mock(reply, "judge")


@pytest.fixture
def judged(run_eval: Callable[..., EvalLog], two_questions: Path) -> Callable[..., str]:
    def run(name: str, judge: Model, **arguments: object) -> str:
        given = {"questions": str(two_questions), "samples": SAMPLES, "format": "plain"} | arguments
        log = run_eval("em_eval/em", model(name), model_roles={"grader": judge}, task_args=given)
        assert log.status == "success"
        return log.location

    return run


def test_each_question_is_averaged_over_the_models(judged: Callable[..., str]) -> None:
    logs = [judged("one", judge_of(1)), judged("two", judge_of(3))]
    done = CliRunner().invoke(app, ["rates", *logs, "--over-models", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {"wish": {"value": pytest.approx(0.4), "low": 0.2, "high": 0.6, "models": 2}}
    table = CliRunner().invoke(app, ["rates", *logs, "--over-models"]).output
    assert "mean over 2 models" in table and "wish" in table and "40.00" in table and "20.0, 60.0" in table


def test_logs_that_cannot_be_averaged_are_refused(judged: Callable[..., str]) -> None:
    one, again, other = judged("one", grader("5")), judged("one", grader("5")), judged("two", judge_of(2))
    for logs, words in (([one, again], "mockllm/one has several of these logs"), ([one, other], "differ in judges")):
        found = CliRunner().invoke(app, ["rates", *logs, "--over-models"])
        assert isinstance(found.exception, UserError) and words in str(found.exception)


def test_too_few_answers_a_question_are_said(judged: Callable[..., str]) -> None:
    done = CliRunner().invoke(app, ["rates", judged("one", grader("5"), samples=4), "--over-models"])
    assert done.exit_code == 0 and "no question has enough coherent answers" in done.output
