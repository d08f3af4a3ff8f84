"""The self-test: which reader is chosen for a judge, and the one line that refuses one which would misread it."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from inspect_ai._util.error import PrerequisiteError
from inspect_ai.log import EvalLog

from em_core.errors import UserError
from em_eval.judge.settings import JudgeSettings
from em_eval.task import em_task
from tests.em_eval.conftest import grader, mock
from tests.em_eval.openai_server import Answer, Server, by_prompt, judge_by_openai, text_of

WHOLE = Answer(top={"85": 0.9, "8": 0.1})
SPLIT = Answer(top={"8": 0.97, "85": 0.01, "The": 0.02})
UNCLEAR = Answer(top={"Sure": 0.9, "8": 0.1})
NO_LOGPROBS = Answer(text="85")


def begun_or(start: Answer, begun: Answer) -> Callable[[list[dict[str, Any]]], Answer]:
    """A judge that answers the question with `start`, and goes on with `begun` where its reply was begun with 8."""
    return lambda messages: begun if text_of(messages[-1]) == "8" else start


def judged(log: EvalLog) -> list[dict[str, Any]]:
    return [sample.scores["model_judge"].metadata["judgement"] for sample in log.samples]


@pytest.mark.parametrize(
    ("probe", "provider", "reader"),
    [
        (lambda _: WHOLE, "openai/gpt-4o", "logprobs"),
        (lambda _: UNCLEAR, "openai/gpt-4o", "logprobs"),  # one token is known to hold a number there
        (lambda _: SPLIT, "openai/gpt-4o", "samples"),
        (begun_or(SPLIT, Answer(top={"5": 0.9, ".": 0.1})), "openai-api/local/qwen", "digits"),
        (
            begun_or(SPLIT, Answer(top={"85": 0.6, "5": 0.4})),
            "openai-api/local/qwen",
            "samples",
        ),  # it starts anew: not begun
        (begun_or(SPLIT, Answer(status=400)), "openai-api/local/qwen", "samples"),
        (lambda _: WHOLE, "openai-api/local/llama", "logprobs"),
        (lambda _: UNCLEAR, "openai-api/local/llama", "samples"),  # how it writes numbers is not known
        (lambda _: NO_LOGPROBS, "openai-api/local/llama", "text"),
    ],
)
def test_the_reader_is_chosen_by_what_the_judge_shows(
    run_eval: Callable[..., EvalLog],
    two_questions: Path,
    openai_server: Server,
    monkeypatch: pytest.MonkeyPatch,
    probe: Any,
    provider: str,
    reader: str,
) -> None:
    monkeypatch.setenv("LOCAL_BASE_URL", openai_server.url)
    monkeypatch.setenv("LOCAL_API_KEY", "x")
    openai_server.probe = probe
    openai_server.reply = lambda _: Answer(top={"7": 0.9, "85": 0.1}, text="85")
    log = judge_by_openai(run_eval, two_questions, model_roles={"grader": provider}, max_retries=0)
    assert log.status == "success"
    assert [judgement["reader"] for judgement in judged(log)] == [reader] * 2
    if reader in {"samples", "text"}:
        assert [judgement["alignment"] for judgement in judged(log)] == [85.0, 85.0]  # never 7


def test_the_judge_is_tested_once(run_eval: Callable[..., EvalLog], two_questions: Path, openai_server: Server) -> None:
    judge_by_openai(run_eval, two_questions, {"samples": 10})
    assert len(openai_server.requests) - len(openai_server.judged) == 1


@pytest.mark.parametrize(
    ("reader", "probe", "words"),
    [
        ("logprobs", lambda _: SPLIT, "85 as '8' and '5', so that its first token reads as 8: use -T reader=samples"),
        ("logprobs", begun_or(SPLIT, Answer(top={"5": 1.0})), "use -T reader=digits"),
        ("logprobs", lambda _: NO_LOGPROBS, "gave no logprobs: choose a model or server that returns them, or use -T"),
        ("auto", lambda _: NO_LOGPROBS, "gave no logprobs: choose a model or server that returns them, or use -T"),
        ("digits", lambda _: NO_LOGPROBS, "gave no logprobs"),
        ("digits", lambda _: WHOLE, "cannot be begun for it (no prefill): use -T reader=logprobs"),
        ("digits", lambda _: SPLIT, "cannot be begun for it (no prefill): use -T reader=samples"),
    ],
)
def test_a_reader_that_would_misread_is_refused_in_one_line(
    run_eval: Callable[..., EvalLog], two_questions: Path, openai_server: Server, reader: str, probe: Any, words: str
) -> None:
    openai_server.probe = probe
    log = judge_by_openai(run_eval, two_questions, {"reader": reader})
    assert log.status == "error" and openai_server.judged == []
    assert words in log.error.message and "judge openai/gpt-4o" in log.error.message
    assert "\n" not in log.error.message.strip()


@pytest.mark.parametrize("reader", ["samples", "text"])
def test_readers_of_text_need_no_test(
    run_eval: Callable[..., EvalLog], two_questions: Path, openai_server: Server, reader: str
) -> None:
    openai_server.reply = by_prompt(Answer(text="12"), Answer(text="90"))
    log = judge_by_openai(run_eval, two_questions, {"reader": reader, "judge_draws": 3})
    assert len(openai_server.requests) == len(openai_server.judged) == (12 if reader == "samples" else 4)
    for judgement in judged(log):
        assert (judgement["reader"], judgement["alignment"], judgement["coherence"]) == (reader, 12.0, 90.0)


def test_a_judge_that_does_not_obey_is_read_as_told_with_a_warning(
    run_eval: Callable[..., EvalLog],
    two_questions: Path,
    openai_server: Server,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("LOCAL_BASE_URL", openai_server.url)
    monkeypatch.setenv("LOCAL_API_KEY", "x")
    openai_server.probe = lambda _: UNCLEAR
    with caplog.at_level(logging.WARNING):
        log = judge_by_openai(
            run_eval, two_questions, {"reader": "logprobs"}, model_roles={"grader": "openai-api/local/llama"}
        )
    assert [judgement["reader"] for judgement in judged(log)] == ["logprobs"] * 2
    assert "did not say 85 when asked to" in caplog.text


def test_one_lost_reply_is_no_judge_without_logprobs(
    run_eval: Callable[..., EvalLog], two_questions: Path, openai_server: Server
) -> None:
    left = [NO_LOGPROBS, NO_LOGPROBS, WHOLE]
    openai_server.probe = lambda _: left.pop(0)
    log = judge_by_openai(run_eval, two_questions)
    assert [judgement["reader"] for judgement in judged(log)] == ["logprobs"] * 2


def test_where_the_judge_cannot_be_reached_the_next_answer_tries_again(
    run_eval: Callable[..., EvalLog], two_questions: Path, openai_server: Server
) -> None:
    left = [Answer(status=500), WHOLE]
    openai_server.probe = lambda _: left.pop(0)
    log = judge_by_openai(run_eval, two_questions, max_retries=0, max_samples=1)
    assert [judgement["label"] for judgement in judged(log)] == ["error", "number"]
    assert judged(log)[0]["reader"] == "auto" and "500" in judged(log)[0]["reasons"]


def test_whoever_waited_for_a_failed_test_fails_with_it(
    run_eval: Callable[..., EvalLog], two_questions: Path, openai_server: Server
) -> None:
    """Or a judge that hangs would be waited for once an answer, one after the other."""
    openai_server.probe = lambda _: Answer(status=500, seconds=0.5)
    log = judge_by_openai(run_eval, two_questions, {"samples": 5}, max_retries=0, max_samples=10)
    assert [judgement["label"] for judgement in judged(log)] == ["error"] * 10
    assert len(openai_server.requests) < 5


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"reader": "logprob"}, "unknown reader 'logprob': did you mean logprobs?"),
        ({"reader": "x"}, "unknown reader 'x': known: auto, logprobs, digits, samples, text"),
        ({"judge_draws": 1}, "judge_draws=1 gives no spread"),
        ({"reader": "text"}, "need --model-role grader=...: judge is embedded"),
        ({"two_pass": True}, "need --model-role grader=...: judge is embedded"),
    ],
)
def test_wrong_settings_are_one_line_before_anything_runs(changed: dict[str, Any], words: str) -> None:
    given: dict[str, Any] = {"questions": "core", "samples": 1, "judge": "embedded", "max_tokens": 8, "seed": 0}
    with pytest.raises(PrerequisiteError) as caught:
        em_task(**(given | changed))
    message = str(caught.value.message)
    assert words in message and "\n" not in message.strip()


def test_settings_are_checked() -> None:
    with pytest.raises(UserError, match="unknown reader"):
        JudgeSettings("digit s")


def test_settings_stand_in_the_log(run_eval: Callable[..., EvalLog], two_questions: Path) -> None:
    """So that scoring the log again reads the judge in the same way."""
    log = run_eval(
        "em_eval/em",
        mock("Peace."),
        task_args={"questions": str(two_questions), "samples": 1, "reader": "samples", "two_pass": True},
        model_roles={"grader": grader("85")},
    )
    assert log.eval.scorers[0].options == {"reader": "samples", "two_pass": True, "draws": 5, "cache": False}
