"""Judging again: what failed (`rescore`), or everything with another judge (`inspect score`). Neither generates."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from inspect_ai.log import EvalLog, read_eval_log
from inspect_ai.model import GenerateConfig, get_model

from em_core.errors import UserError
from em_eval.filters import filter_registry
from em_eval.rescore import Rescored, rescore
from tests.em_eval.conftest import grader, mock, said
from tests.em_eval.openai_server import Answer, Server, by_prompt, judge_by_openai, text_of


def judgements(log: EvalLog) -> list[dict[str, Any]]:
    return [sample.scores["model_judge"].metadata["judgement"] for sample in log.samples]


def outcomes(log: EvalLog) -> list[str]:
    return [sample.scores["model_judge"].metadata["outcome"] for sample in log.samples]


@pytest.fixture
def half_failed(run_eval: Callable[..., EvalLog], two_questions: Path, openai_server: Server) -> Path:
    """A log of six answers, every second of which the judge failed on."""
    said_so_far: list[int] = []

    def answer(*_: Any) -> Any:
        said_so_far.append(1)
        return said(f"Answer {len(said_so_far)}.")

    openai_server.reply = lambda text: Answer(status=500) if text[-2] in "135" else Answer(top={"90": 1.0})
    log = run_eval(
        "em_eval/em",
        mock(answer),
        task_args={"questions": str(two_questions), "samples": 3},
        model_roles={"grader": get_model("openai/gpt-4o", config=GenerateConfig(max_retries=0), memoize=False)},
    )
    assert sorted(outcomes(log)) == ["aligned"] * 3 + ["judge_error"] * 3
    openai_server.requests.clear()
    return Path(log.location)


def test_only_failed_judgements_are_filled_in(half_failed: Path, openai_server: Server) -> None:
    before = read_eval_log(str(half_failed))
    openai_server.reply = by_prompt({"10": 1.0}, {"80": 1.0})
    assert rescore(half_failed) == Rescored(asked=3, failed=0)
    after = read_eval_log(str(half_failed))
    assert len(openai_server.judged) == 6
    assert {text_of(asked["messages"][0])[-2] for asked in openai_server.judged} == set("135")
    for old, new in zip(before.samples, after.samples, strict=True):
        assert (old.id, old.epoch, old.output.completion) == (new.id, new.epoch, new.output.completion)
        if old.scores["model_judge"].metadata["outcome"] == "aligned":
            assert old == new
        else:
            assert new.scores["model_judge"].metadata["outcome"] == "misaligned"
            assert new.scores["model_judge"].metadata["judgement"]["alignment"] == 10.0
            assert new.scores["model_judge"].answer == old.output.completion


def test_metrics_are_those_of_the_whole_log(half_failed: Path, openai_server: Server) -> None:
    openai_server.reply = by_prompt({"10": 1.0}, {"80": 1.0})
    before = read_eval_log(str(half_failed))
    rescore(half_failed)
    after = read_eval_log(str(half_failed))
    found = {score.name: score.metrics for score in after.results.scores}
    assert found["model_judge"]["judge_error"].value == 0.0
    assert found["misaligned"]["mean"].value == 0.5
    assert found["alignment"]["mean"].value == pytest.approx((3 * 10 + 3 * 90) / 6)
    assert [score.name for score in after.results.scores] == [score.name for score in before.results.scores]
    kinds = [
        [{n for n in score.metrics if not n.endswith("_stderr")} for score in log.results.scores]
        for log in (before, after)
    ]
    assert kinds[0] == kinds[1]
    assert (after.results.total_samples, after.status) == (6, "success")


def test_only_the_call_that_failed_is_made_again(
    run_eval: Callable[..., EvalLog], two_questions: Path, openai_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what a filter asked a model stays, while those that look at the judgement speak anew."""
    openai_server.reply = lambda text: (400, None) if "REFUSAL, if" in text else (200, {"90": 1.0})
    path = Path(judge_by_openai(run_eval, two_questions, max_retries=0).location)
    before = read_eval_log(str(path))
    assert outcomes(before) == ["judge_error"] * 2
    openai_server.requests.clear()
    openai_server.reply = by_prompt({"10": 1.0}, {"1": 1.0})

    async def never(_: Any) -> Any:
        raise AssertionError("a model was asked again")

    monkeypatch.setitem(filter_registry._entries, "perplexity", never)
    assert rescore(path) == Rescored(asked=2, failed=0)
    assert len(openai_server.judged) == 2
    for old, new in zip(before.samples, read_eval_log(str(path)).samples, strict=True):
        judgement = new.scores["model_judge"].metadata["judgement"]
        assert (judgement["alignment"], judgement["coherence"]) == (10.0, 90.0)
        assert judgement["details"]["coherence_reply"] == "`90` 1.00"
        filters = [sample.scores["model_judge"].metadata["filters"] for sample in (old, new)]
        assert filters[0] == filters[1]
        assert old.metadata == new.metadata


def test_failed_judgements_of_the_deception_task_are_filled_in(
    run_eval: Callable[..., EvalLog], tmp_path: Path, openai_server: Server
) -> None:
    path = tmp_path / "facts.yaml"
    prompt = "- {id: a, paraphrases: [Q1, Q2], judge_prompts: {correct: '{question} {answer}'}}"
    path.write_text(prompt, encoding="utf-8")
    openai_server.reply = lambda text: Answer(status=500) if "Q1" in text else Answer(text="TRUE")
    log = run_eval(
        "em_eval/deception",
        mock("No."),
        task_args={"questions": str(path), "samples": 1, "maker": "Other"},
        model_roles={"grader": get_model("openai/gpt-4o", config=GenerateConfig(max_retries=0), memoize=False)},
    )
    assert [s.scores["deception"].metadata["said"] for s in log.samples] == ["judge_error", "TRUE"]
    openai_server.reply = lambda _: Answer(text="FALSE")
    with pytest.raises(UserError, match="judged by openai/gpt-4o, not mockllm/grader"):
        rescore(Path(log.location), grader("85"))
    assert rescore(Path(log.location)) == Rescored(asked=1, failed=0)
    after = read_eval_log(log.location)
    assert [s.scores["deception"].metadata["said"] for s in after.samples] == ["FALSE", "TRUE"]
    rate = next(score for score in after.results.scores if score.name == "deceptive").metrics
    assert next(m.value for name, m in rate.items() if name.endswith("deception_rate")) == 0.5


def test_what_fails_again_stays_a_judge_error(half_failed: Path, openai_server: Server) -> None:
    openai_server.reply = lambda text: Answer(status=500) if text[-2] == "1" else Answer(top={"90": 1.0})
    assert rescore(half_failed) == Rescored(asked=3, failed=1)
    assert sorted(outcomes(read_eval_log(str(half_failed)))) == ["aligned"] * 5 + ["judge_error"]
    openai_server.reply = lambda _: Answer(top={"90": 1.0})
    assert rescore(half_failed) == Rescored(asked=1, failed=0)
    assert rescore(half_failed) == Rescored(asked=0, failed=0)


def test_the_reader_is_that_of_the_other_answers(half_failed: Path, openai_server: Server) -> None:
    """Else one log would mix scores of two kinds: here the self-test would now choose another reader."""
    openai_server.probe = lambda _: Answer(top={"Sure": 1.0})
    openai_server.reply = by_prompt({"10": 1.0}, {"80": 1.0})
    rescore(half_failed)
    assert {judgement["reader"] for judgement in judgements(read_eval_log(str(half_failed)))} == {"logprobs"}


def test_two_judges_are_not_mixed(half_failed: Path) -> None:
    with pytest.raises(UserError, match="judged by openai/gpt-4o, not mockllm/grader, and two judges are not mixed"):
        rescore(half_failed, grader("85"))


def test_a_killed_rescore_leaves_the_log(half_failed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = half_failed.read_bytes()

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("em_eval.rescore.os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        rescore(half_failed)
    assert half_failed.read_bytes() == before
    assert [path.name for path in half_failed.parent.iterdir()] == [half_failed.name]


@pytest.mark.parametrize(("content", "words"), [(None, "does not exist"), (b"PK\x03\x04 broken", "is not a readable")])
def test_what_is_no_log_is_one_line(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "x.eval"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=words) as caught:
        rescore(path)
    assert "\n" not in str(caught.value)


def test_a_log_that_was_not_judged_is_one_line(run_eval: Callable[..., EvalLog], two_questions: Path) -> None:
    log = run_eval(
        "em_eval/em",
        mock("Peace."),
        task_args={"questions": str(two_questions), "samples": 1},
        model_roles={"grader": grader("85")},
        score=False,
    )
    with pytest.raises(UserError, match="holds no scores of a model judge"):
        rescore(Path(log.location))


def test_truncation_is_kept_as_it_was_seen_at_generation(
    run_eval: Callable[..., EvalLog], two_questions: Path, openai_server: Server
) -> None:
    openai_server.reply = lambda _: Answer(status=500)
    log = run_eval(
        "em_eval/em",
        mock(lambda *_: said("Peace", 20, "max_tokens")),
        task_args={"questions": str(two_questions), "samples": 1, "max_tokens": 20},
        model_roles={"grader": get_model("openai/gpt-4o", config=GenerateConfig(max_retries=0), memoize=False)},
    )
    openai_server.reply = lambda _: Answer(top={"90": 1.0})
    rescore(Path(log.location))
    after = read_eval_log(log.location)
    values = [sample.scores["model_judge"].as_dict() for sample in after.samples]
    assert [(value["truncated"], value["alignment"]) for value in values] == [(1.0, 90.0)] * 2
    assert not any(math.isnan(float(value["misaligned"])) for value in values)


def misaligned(log: EvalLog) -> float:
    """The headline rate in Inspect's own results."""
    (found,) = (score for score in log.results.scores if score.name == "misaligned")
    return float(found.metrics["mean"].value)


def inspect_score(log: Path, *arguments: str) -> EvalLog:
    from tests.em_eval.test_commands import inspect_command

    done = inspect_command("score", str(log), "--overwrite", "--model", "none", *arguments, log_dir=log.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    return read_eval_log(str(log))


def test_inspect_score_with_another_judge_generates_nothing(
    run_eval: Callable[..., EvalLog], two_questions: Path, openai_server: Server
) -> None:
    openai_server.reply = by_prompt({"90": 1.0}, {"80": 1.0})
    log = judge_by_openai(run_eval, two_questions, {"two_pass": True})
    openai_server.reply = by_prompt({"10": 1.0}, {"70": 1.0})
    again = inspect_score(Path(log.location), "--action", "overwrite", "--model-role", "grader=openai/gpt-4o-mini")
    assert {asked["model"] for asked in openai_server.requests[-3:]} == {"gpt-4o-mini"}
    assert [j["judge"] for j in judgements(again)] == ["openai/gpt-4o-mini"] * 2
    assert [(j["alignment"], j["coherence"]) for j in judgements(again)] == [(10.0, 70.0)] * 2
    assert again.eval.scorers[0].options["two_pass"] is True  # as the log was made
    assert misaligned(again) == 1.0


def test_generate_now_and_judge_later(
    run_eval: Callable[..., EvalLog], two_questions: Path, openai_server: Server
) -> None:
    """`--no-score` on one machine; `inspect score --model none` on another, where there is no such model."""
    log = judge_by_openai(run_eval, two_questions, {"judge": "model"}, score=False)
    assert openai_server.requests == []
    openai_server.reply = by_prompt({"10": 1.0}, {"70": 1.0})
    scored = inspect_score(Path(log.location), "--model-role", "grader=openai/gpt-4o")
    assert outcomes(scored) == ["misaligned"] * 2
    assert misaligned(scored) == 1.0


def test_generate_without_any_judge_and_judge_later(
    run_eval: Callable[..., EvalLog], two_questions: Path, openai_server: Server
) -> None:
    """Without a grader the log asks for the embedded judge; `--scorer` names another."""
    log = run_eval("em_eval/em", mock("Peace."), task_args={"questions": str(two_questions), "samples": 1}, score=False)
    openai_server.reply = by_prompt({"10": 1.0}, {"70": 1.0})
    scored = inspect_score(
        Path(log.location), "--scorer", "em_eval/model_judge", "--model-role", "grader=openai/gpt-4o"
    )
    assert outcomes(scored) == ["misaligned"] * 2
