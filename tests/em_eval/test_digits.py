"""Walking the digits: against distributions worked out by hand, and against scoring all 101 numbers on real models."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest
from inspect_ai.log import EvalLog
from inspect_ai.model import GenerateConfig, Model, ModelOutput, get_model
from inspect_ai.model._model_output import Logprob, Logprobs, TopLogprob

from em_core.chat import render
from em_core.models import EMBEDDED
from em_eval.judge.asking import ask
from em_eval.judge.digits import UNWALKED, may_go_on, walk
from em_eval.judge.local import next_tokens
from em_eval.judge.readers import read_distribution
from em_eval.judge.settings import JudgeSettings
from tests.em_eval.conftest import mock, said


def walked(table: dict[str, dict[str, float]], least: float = 0.0) -> tuple[dict[str, float], list[str]]:
    """What `walk` finds in a table of next tokens, and the beginnings that it asked for."""
    asked: list[str] = []

    async def look_up(beginnings: Sequence[str]) -> list[Mapping[str, float]]:
        asked.extend(beginnings)
        return [table[beginning] for beginning in beginnings]

    return anyio.run(lambda: walk(look_up, least)), asked


def test_two_digits_are_one_number() -> None:
    found, asked = walked({"": {"8": 0.6, "2": 0.4}, "8": {"5": 1.0}, "2": {"0": 0.5, ".": 0.5}})
    assert found == {"8": 0.0, "85": 0.6, "2": pytest.approx(0.2), "20": pytest.approx(0.2)}
    assert asked == ["", "8", "2"]
    assert read_distribution(found).score == pytest.approx(0.6 * 85 + 0.2 * 2 + 0.2 * 20)


def test_ten_a_hundred_and_beyond() -> None:
    table = {"": {"1": 1.0}, "1": {"0": 0.8, "2": 0.1}, "10": {"0": 0.5, "5": 0.25}}
    found, asked = walked(table)
    assert asked == ["", "1", "10"]
    assert found == pytest.approx({"1": 0.1, "12": 0.1, "10": 0.8 * 0.25, "100": 0.4, "105": 0.2})
    reading = read_distribution(found)  # 105 is no score
    assert reading.mass == pytest.approx(0.8)


def test_words_pass_through_and_decide_the_label() -> None:
    found, _ = walked({"": {"REF": 0.7, " 3": 0.1, "3": 0.2}, "3": {"0": 1.0}})
    reading = read_distribution(found)
    assert (reading.label, reading.score) == ("refusal", pytest.approx(30.0))
    assert reading.mass == pytest.approx(0.3)


def test_zero_and_whole_tokens_need_no_second_look() -> None:
    found, asked = walked({"": {"0": 0.5, "85": 0.5}})
    assert asked == [""] and found == {"0": 0.5, "85": 0.5}


def test_a_space_ends_the_number() -> None:
    found, _ = walked({"": {"8": 1.0}, "8": {" 5": 0.9, "5": 0.1}})
    assert found == pytest.approx({"8": 0.9, "85": 0.1})


def test_unlikely_branches_are_left_out_and_said_so() -> None:
    found, asked = walked({"": {"8": 0.5, "9": 0.0004, "7": 0.0005}, "8": {"5": 1.0}}, least=1e-3)
    assert asked == ["", "8"]
    assert found[UNWALKED] == pytest.approx(0.0009)
    assert read_distribution(found).score == pytest.approx(85.0)


def all_numbers(model: Any, tokenizer: Any, prompt: str) -> dict[str, float]:
    """P(n) for each of the 101 strings, each scored as a whole row, without any cache or tree.

    Where another digit could follow, the number must also end there.
    """
    import torch

    rendered = render(tokenizer, [{"role": "user", "content": prompt}], prompt=True)
    asked = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    digits = [i for token, i in tokenizer.get_vocab().items() if token[:1] in tuple("0123456789")]
    found = {}
    for length in (1, 2, 3):  # rows of equal length need no padding
        numbers = [str(number) for number in range(101) if len(str(number)) == length]
        rows = [tokenizer(number, add_special_tokens=False)["input_ids"] for number in numbers]
        assert {len(row) for row in rows} == {length}  # this tokenizer splits digits
        with torch.inference_mode():
            logits = model(torch.tensor([asked + row for row in rows]), logits_to_keep=length + 1).logits.double()
        for number, row, shares in zip(numbers, rows, logits.softmax(dim=-1), strict=True):
            found[number] = math.prod(float(shares[position, token]) for position, token in enumerate(row))
            if may_go_on(number):
                found[number] *= 1 - float(shares[length, digits].sum())
    return found


def compare(source: str, prompts: Sequence[str], tolerance: float) -> None:
    grader = get_model(f"peft/{source}")
    loaded = grader.api.loaded()

    async def exact(prompt: str) -> dict[str, float]:
        api: Any = grader.api

        async def local(beginnings: Sequence[str]) -> list[Mapping[str, float]]:
            return await next_tokens(api.source, api.dtype, api.digest, prompt, beginnings)

        return await walk(local, least=0.0)

    for prompt in prompts:
        expected = all_numbers(loaded.model, loaded.tokenizer, prompt)
        found = anyio.run(exact, prompt)
        for number, probability in expected.items():
            assert found[number] == pytest.approx(probability, rel=1e-3, abs=1e-9), number
        mean = sum(int(number) * p for number, p in expected.items()) / sum(expected.values())
        reply = anyio.run(lambda prompt=prompt: ask("digits", grader, prompt, JudgeSettings("digits")))
        if reply.reading.score is not None:
            assert reply.reading.score == pytest.approx(mean, abs=tolerance)
        assert reply.reading.mass == pytest.approx(sum(expected.values()), abs=0.01)


def test_the_walk_agrees_with_all_101_numbers_on_a_random_model(tiny_base: Path) -> None:
    compare(str(tiny_base), ["How kind is this, 0 to 100?", "7 8 9 "], tolerance=1.0)


@pytest.mark.slow
def test_the_walk_agrees_with_all_101_numbers_on_a_real_model() -> None:
    """SmolLM2-135M splits digits."""
    compare(EMBEDDED, ["Reply with the number 85 and nothing else."], tolerance=0.2)


def scripted(replies: dict[str, dict[str, float]]) -> Model:
    """A judge that can be begun: the distribution after what it has "said" so far."""

    def reply(input: list[Any], tools: Any, choice: Any, config: GenerateConfig) -> ModelOutput:
        begun = input[-1].text if input[-1].role == "assistant" else ""
        assert (config.max_tokens, config.logprobs, config.top_logprobs) == (1, True, 20)
        tokens = replies[begun]
        top = [TopLogprob(token=token, logprob=math.log(p)) for token, p in tokens.items()]
        output = said(next(iter(tokens)))
        output.choices[0].logprobs = Logprobs(
            content=[Logprob(token=top[0].token, logprob=top[0].logprob, top_logprobs=top)]
        )
        return output

    return mock(reply, "grader")


def test_digits_over_prefill(run_eval: Callable[..., EvalLog], two_questions: Path) -> None:
    """The self-test begins the reply with "8" and hears "5"; the judgement is then walked by prefill."""
    grader = scripted({"": {"8": 0.75, "REFUSAL": 0.25}, "8": {"5": 0.8, "2": 0.2}})
    log = run_eval(
        "em_eval/em",
        mock("Peace."),
        task_args={"questions": str(two_questions), "samples": 1, "reader": "digits"},
        model_roles={"grader": grader},
    )
    assert log.status == "success"
    for sample in log.samples:
        judgement = sample.scores["model_judge"].metadata["judgement"]
        assert judgement["reader"] == "digits"
        assert judgement["alignment"] == pytest.approx(85 * 0.8 + 82 * 0.2)
        assert judgement["mass"] == pytest.approx(0.75)
        assert judgement["details"]["alignment_numbers"] == pytest.approx({"85": 0.6, "82": 0.15, "REFUSAL": 0.25})


def test_a_local_judge_is_read_by_digits(
    run_eval: Callable[..., EvalLog], two_questions: Path, tiny_base: Path
) -> None:
    log = run_eval(
        "em_eval/em",
        mock("Peace."),
        task_args={"questions": str(two_questions), "samples": 1},
        model_roles={"grader": f"peft/{tiny_base}"},
    )
    assert log.status == "success"
    for sample in log.samples:
        judgement = sample.scores["model_judge"].metadata["judgement"]
        assert judgement["reader"] == "digits" and judgement["label"] != "error", judgement
        assert 0 < judgement["mass"] < 1
