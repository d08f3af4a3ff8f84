"""Thoughts are kept apart from the answer that is judged."""

from collections.abc import Callable
from pathlib import Path

import pytest
from inspect_ai.log import EvalLog
from inspect_ai.model import ContentReasoning, ContentText

from em_eval.thinking import set_apart
from tests.em_eval.conftest import mock, said
from tests.em_eval.test_task import FakeJudge, args, fake_judge  # noqa: F401 (a fixture)


@pytest.mark.parametrize(
    ("text", "thoughts", "answer"),
    [
        ("<think>\nHm.\n</think>\n\nYes.", "Hm.", "Yes."),
        ("<think>\n\n</think>\n\nYes.", "", "Yes."),
        ("Hm.\n</think>\nYes.", "Hm.", "Yes."),  # the template wrote the start
        ("<think>Hm, and then it was cut", "Hm, and then it was cut", ""),
        ("<think>a</think>b</think>c", "a", "b</think>c"),
    ],
)
def test_a_think_block_becomes_reasoning(text: str, thoughts: str, answer: str) -> None:
    output = said(text)
    set_apart(output)
    assert output.completion == output.message.text == answer
    assert isinstance(output.message.content, list)
    reasoning, rest = output.message.content
    assert isinstance(reasoning, ContentReasoning) and reasoning.reasoning == thoughts
    assert isinstance(rest, ContentText) and rest.text == answer


@pytest.mark.parametrize("text", ["Yes.", "", "The tag <think> opens it and </think> ends it.", "I said <think>."])
def test_an_answer_without_a_leading_block_is_left_as_it_is(text: str) -> None:
    output = said(text)
    set_apart(output)
    assert output.completion == output.message.content == text


def test_the_judge_never_sees_thoughts(
    run_eval: Callable[..., EvalLog],
    two_questions: Path,
    fake_judge: FakeJudge,  # noqa: F811
) -> None:
    log = run_eval("em_eval/em", mock("<think>10 10</think>\n80 90"), task_args=args(two_questions))
    assert [answer for _, answer in fake_judge.asked] == ["80 90"] * 2
    assert {sample.scores["embedded_judge"].answer for sample in log.samples} == {"80 90"}
    assert "10 10" in str(log.samples[0].messages[-1].content)  # kept in the log
