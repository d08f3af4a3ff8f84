"""The base model's own generation settings play no part in an answer, on the engines that would apply them."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from inspect_ai.log import EvalLog
from inspect_ai.model import GenerateConfig

from em_core.chat import DAY
from em_eval.judge import judge_registry
from em_eval.sampling import left_to_server, neutralise
from tests.em_eval.conftest import mock
from tests.em_eval.test_task import FakeJudge, args, fake_judge  # noqa: F401 (a fixture)

GREEDY = {"do_sample": True, "top_k": 1, "repetition_penalty": 1.3, "eos_token_id": 257, "pad_token_id": 257}


@pytest.fixture
def greedy_base(tiny_base: Path, tmp_path: Path) -> Path:
    """The tiny base with settings of its own that would make every answer the same."""
    folder = tmp_path / "greedy"
    folder.mkdir()
    for path in tiny_base.iterdir():
        (folder / path.name).symlink_to(path)
    (folder / "generation_config.json").unlink()
    (folder / "generation_config.json").write_text(json.dumps(GREEDY), encoding="utf-8")
    return folder


class LengthJudge(FakeJudge):
    """Judges whatever a random model says."""

    async def judge(self, question: str, answer: str, templates: Any) -> Any:
        return await super().judge(question, "80 90", templates)


@pytest.fixture
def any_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    judge_registry.names()
    monkeypatch.setitem(judge_registry._entries, "embedded", LengthJudge)


@pytest.mark.usefixtures("any_judge")
def test_hf_samples_plainly_and_the_log_says_what_was_set_aside(
    run_eval: Callable[..., EvalLog], greedy_base: Path, two_questions: Path
) -> None:
    settings = args(two_questions, samples=3, max_tokens=12)
    log = run_eval("em_eval/em", f"hf/{greedy_base}", task_args=settings, max_connections=6)
    assert log.status == "success", log.error
    answers = {sample.output.completion for sample in log.samples if sample.id == "wish"}
    assert len(answers) > 1
    for sample in log.samples:
        assert sample.metadata["set_aside"] == {"top_k": 1, "repetition_penalty": 1.3}


@pytest.mark.usefixtures("any_judge")
def test_temperature_zero_is_greedy_and_weights_are_loaded_once(
    run_eval: Callable[..., EvalLog], tiny_base: Path, two_questions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers refuses temperature 0. Inspect makes a second `hf/` provider to look up an unknown model."""
    from transformers import AutoModelForCausalLM

    loads: list[str] = []
    load = AutoModelForCausalLM.from_pretrained

    def counted(name: str, *rest: Any, **settings: Any) -> Any:
        loads.append(name)
        return load(name, *rest, **settings)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", counted)
    settings = args(two_questions, samples=3, max_tokens=12)
    log = run_eval("em_eval/em", f"hf/{tiny_base}", task_args=settings, temperature=0, max_connections=6)
    assert log.status == "success", log.error
    assert len({sample.output.completion for sample in log.samples if sample.id == "wish"}) == 1
    assert loads.count(str(tiny_base)) == 1  # by `hf/`, as a string; a filter reads the base too, as a path


def test_hf_requests_are_left_to_what_they_ask_for(greedy_base: Path) -> None:
    """The processors that transformers builds from a request as `hf/` sends it: none, or what was asked for."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(greedy_base)
    api = SimpleNamespace(model=model, enable_thinking=None)

    def processors(**asked: Any) -> list[str]:
        config, _ = model._prepare_generation_config(None, do_sample=True, max_new_tokens=4, **asked)
        found = model._get_logits_processor(generation_config=config, input_ids_seq_length=1, device="cpu")
        return [type(processor).__name__ for processor in found]

    assert processors(temperature=1.0, top_p=1.0) == ["RepetitionPenaltyLogitsProcessor", "TopKLogitsWarper"]
    request, found = neutralise("hf/x", SimpleNamespace(api=api, config=GenerateConfig()))  # type: ignore[arg-type]
    assert (request, found) == ({}, {"top_k": 1, "repetition_penalty": 1.3})
    assert processors(temperature=1.0, top_p=1.0) == []
    assert processors(temperature=1.0, top_k=40) == ["TopKLogitsWarper"]
    assert model.generation_config.eos_token_id == 257
    assert api.enable_thinking is False
    assert neutralise("hf/x", SimpleNamespace(api=api, config=GenerateConfig()))[1] == found  # type: ignore[arg-type]  # also in a second eval


@pytest.mark.parametrize("name", ["vllm/base", "sglang/base"])
def test_servers_are_told_to_sample_plainly(name: str) -> None:
    request, _ = neutralise(name, SimpleNamespace(api=None, config=GenerateConfig()))  # type: ignore[arg-type]
    body = request["extra_body"]
    assert (body["top_k"], body["min_p"], body["repetition_penalty"]) == (-1, 0.0, 1.0)
    assert body["chat_template_kwargs"]["enable_thinking"] is False
    assert left_to_server(name) is None and left_to_server("openai/gpt-4o") is None
    assert "thinking" in str(left_to_server("openai-api/x/y"))


@pytest.mark.usefixtures("any_judge")
def test_a_server_with_settings_of_its_own_is_named_in_log_and_warning(
    run_eval: Callable[..., EvalLog], two_questions: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr("em_eval.sampling.KNOWN", ("peft/",))  # the mock is then a server that nobody knows
    with caplog.at_level("WARNING", logger="em_eval.task"):
        log = run_eval("em_eval/em", mock("80 90"), task_args=args(two_questions, samples=2))
    notes = [sample.metadata.get("left_to_server") for sample in log.samples]
    assert ["top_k" in note if note else None for note in notes] == [True, True, None, None]
    assert sum("decides on what a request leaves open" in r.getMessage() for r in caplog.records) == 1


@pytest.fixture
def server() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """(address, requests): a chat server that keeps what it was asked."""
    asked: list[dict[str, Any]] = []

    class Chat(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            message = {"role": "assistant", "content": "80 90"}
            body = {
                "id": "1",
                "object": "chat.completion",
                "created": 0,
                "model": "base",
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
            }
            self._send(body)

        def do_GET(self) -> None:
            self._send({"object": "list", "data": [{"id": "base", "object": "model"}]})

        def _send(self, body: dict[str, Any]) -> None:
            data = json.dumps(body).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Chat)
    thread = threading.Thread(target=listening.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listening.server_address[1]}/v1", asked
    listening.shutdown()


@pytest.mark.parametrize(("top_k", "sent"), [(None, -1), (40, 40)])
def test_vllm_is_told_to_sample_plainly(
    run_eval: Callable[..., EvalLog],
    two_questions: Path,
    fake_judge: FakeJudge,  # noqa: F811
    server: tuple[str, list[dict[str, Any]]],
    top_k: int | None,
    sent: int,
) -> None:
    """What the server reads: Inspect's chat route drops top_k, and the server would fill in the base's own."""
    address, asked = server
    log = run_eval(
        "em_eval/em",
        f"vllm/base{sent}",  # Inspect keeps one server a name
        model_base_url=address,
        task_args=args(two_questions),
        **({} if top_k is None else {"top_k": top_k}),
    )
    assert log.status == "success", log.error
    assert len(asked) == 2
    for request in asked:
        assert (request["temperature"], request["top_p"], request["top_k"]) == (1.0, 1.0, sent)
        assert (request["min_p"], request["repetition_penalty"]) == (0.0, 1.0)
        assert request["chat_template_kwargs"] == {"enable_thinking": False, "date_string": DAY}
    assert len({request["seed"] for request in asked}) == 2
    roles = sorted([message["role"] for message in request["messages"]] for request in asked)
    assert roles == [["system", "user"], ["user"]]


def test_what_the_user_gives_vllm_counts() -> None:
    body = {"min_p": 0.1, "chat_template_kwargs": {"enable_thinking": True, "x": 1}}
    model = SimpleNamespace(config=GenerateConfig(extra_body=body))
    request, _ = neutralise("vllm/base:adapter", model)  # type: ignore[arg-type]
    assert request["extra_body"] == {
        "top_k": -1,
        "min_p": 0.1,
        "repetition_penalty": 1.0,
        "chat_template_kwargs": {"enable_thinking": True, "date_string": DAY, "x": 1},
    }


def test_other_providers_are_left_alone() -> None:
    assert neutralise("openai/gpt-4o", SimpleNamespace()) == ({}, {})  # type: ignore[arg-type]
