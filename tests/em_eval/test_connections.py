"""How many requests reach a model in this process at once, through Inspect's own limiter."""

import contextvars
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from inspect_ai.log import EvalLog
from inspect_ai.model import GenerateConfig, get_model
from inspect_ai.util import AdaptiveConcurrency

from em_eval.batching import Batcher
from em_eval.connections import connections_of_model_under_test
from em_eval.providers.peft import PeftAPI
from tests.em_eval.conftest import grader, mock
from tests.em_eval.openai_server import Server, by_prompt

SAMPLES = 15  # of two questions: more than the 20 that Inspect begins with


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the batches that `peft/` ran; on a busy machine too they wait for all requests."""
    sizes: list[int] = []
    process = PeftAPI._process

    def noted(self: PeftAPI, requests: Any, *rest: Any) -> None:
        sizes.append(len(requests))
        process(self, requests, *rest)

    monkeypatch.setattr(PeftAPI, "_process", noted)
    monkeypatch.setattr("em_eval.providers.peft.Batcher", lambda process, size: Batcher(process, size, linger=1.0))
    return sizes


@pytest.mark.parametrize(
    ("settings", "first"),
    [
        ({}, 30),
        ({"model_args": {"batch_size": 3}}, 12),
        ({"max_connections": 10}, 10),
        ({"adaptive_connections": AdaptiveConcurrency(min=10, max=10)}, 10),
    ],
)
def test_the_first_batch_is_all_that_the_model_takes(
    settings: dict[str, Any],
    first: int,
    batches: list[int],
    run_eval: Callable[..., EvalLog],
    two_questions: Path,
    tiny_adapter: Path,
    tmp_path: Path,
) -> None:
    # A folder of its own: Inspect keeps the models it made, and one of an earlier test would not be noted.
    adapter = shutil.copytree(tiny_adapter, tmp_path / "adapter")
    log = run_eval(
        "em_eval/em",
        f"peft/{adapter}",
        model_roles={"grader": grader("85")},
        task_args={"questions": str(two_questions), "samples": SAMPLES, "max_tokens": 2},
        **settings,
    )
    assert log.status == "success" and batches[0] == max(batches) == first


def test_other_providers_begin_as_inspect_has_it(run_eval: Callable[..., EvalLog], two_questions: Path) -> None:
    args = {"questions": str(two_questions), "samples": 1}
    log = run_eval("em_eval/em", mock("Peace."), model_roles={"grader": grader("85")}, task_args=args)
    assert log.status == "success" and log.plan.config.adaptive_connections is None


def test_a_graders_own_number_is_kept(
    run_eval: Callable[..., EvalLog], two_questions: Path, tiny_adapter: Path, openai_server: Server
) -> None:
    openai_server.reply = by_prompt({"10": 1.0}, {"90": 1.0})
    log = run_eval(
        "em_eval/em",
        f"peft/{tiny_adapter}",
        model_roles={"grader": get_model("openai/gpt-4o", config=GenerateConfig(max_connections=2), memoize=False)},
        task_args={"questions": str(two_questions), "samples": SAMPLES, "max_tokens": 2},
    )
    assert log.status == "success" and 1 <= openai_server.most_at_once <= 2


def test_a_task_made_before_its_model_has_none() -> None:
    # Another test's evaluation leaves its model active in the context that tests share.
    assert contextvars.Context().run(connections_of_model_under_test) is None
