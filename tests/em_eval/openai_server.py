"""A local server in OpenAI's form, so that the real client is what the tests drive."""

import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from inspect_ai.log import EvalLog

from em_eval.judge.selftest import PROBE
from tests.em_eval.conftest import mock

Distribution = dict[str, float]


@dataclass
class Answer:
    """What the server does with one request.

    Attributes:
        top: first-token distribution; None sends no logprobs.
        text: the reply; the first token of `top` by default.
        logprobs: overrides the log-probabilities of `top` (NaN and what else cannot be a probability).
        body: sent as it is, instead of a completion.
        seconds: silence before the answer.
    """

    status: int = 200
    top: Distribution | None = None
    text: str | None = None
    logprobs: dict[str, float] | None = None
    body: bytes | None = None
    seconds: float = 0.0


@dataclass
class Server:
    """`reply(prompt)` gives an `Answer`, or (status, first-token distribution or None).

    The self-test's question is answered apart, by `probe`; `judged` are the requests about answers.
    """

    url: str = ""
    reply: Callable[[str], Any] = lambda _: (200, {"50": 1.0})
    probe: Callable[[list[dict[str, Any]]], Answer] = lambda _: Answer(top={"85": 1.0})
    requests: list[dict[str, Any]] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0

    @property
    def judged(self) -> list[dict[str, Any]]:
        return [asked for asked in self.requests if text_of(asked["messages"][0]) != PROBE]


@pytest.fixture
def openai_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    state = Server()
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                state.requests.append(asked)
                state.at_once += 1
                state.most_at_once = max(state.most_at_once, state.at_once)
            try:
                self._answer(asked)
            except BrokenPipeError:
                pass  # the client had had enough
            finally:
                with lock:
                    state.at_once -= 1

        def _answer(self, asked: dict[str, Any]) -> None:
            probed = text_of(asked["messages"][0]) == PROBE
            answer = state.probe(asked["messages"]) if probed else state.reply(text_of(asked["messages"][-1]))
            if isinstance(answer, tuple):
                answer = Answer(status=answer[0], top=answer[1])
            time.sleep(answer.seconds)
            body = answer.body
            if body is None:
                content = _completion(answer) if answer.status == 200 else {"error": {"message": "broken"}}
                body = json.dumps(content).encode()
            self.send_response(answer.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("x-should-retry", "false")  # the client's own retries, before Inspect's, only take time
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}/v1"
    monkeypatch.setenv("OPENAI_BASE_URL", state.url)
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


def text_of(message: dict[str, Any]) -> str:
    content = message["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _completion(answer: Answer) -> dict[str, Any]:
    text = answer.text if answer.text is not None else next(iter(answer.top or {"50": 1.0}))
    choice: dict[str, Any] = {
        "index": 0,
        "finish_reason": "length",
        "message": {"role": "assistant", "content": text},
        "logprobs": None,
    }
    if answer.top is not None or answer.logprobs is not None:
        logprobs = answer.logprobs or {token: math.log(p) for token, p in (answer.top or {}).items()}
        top = [{"token": token, "logprob": logprob, "bytes": None} for token, logprob in logprobs.items()]
        content = [{**top[0], "top_logprobs": top}] if top else []
        choice["logprobs"] = {"content": content, "refusal": None}
    return {
        "id": "c",
        "object": "chat.completion",
        "created": 1,
        "model": "gpt-4o",
        "choices": [choice],
        "usage": {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10},
    }


def by_prompt(aligned: Any, coherent: Any) -> Callable[[str], Any]:
    """One answer for questions about alignment, one for those about coherence."""
    given = [(200, answer) if isinstance(answer, dict) else answer for answer in (aligned, coherent)]
    return lambda text: given[0] if "REFUSAL, if" in text else given[1]


def judge_by_openai(
    run_eval: Callable[..., EvalLog], questions: Path, task_args: dict[str, Any] | None = None, **settings: Any
) -> EvalLog:
    """Both prompts of `questions` answered "Peace." by a mock model and judged over the real client."""
    return run_eval(
        "em_eval/em",
        mock("Peace."),
        task_args={"questions": str(questions), "samples": 1, **(task_args or {})},
        **({"model_roles": {"grader": "openai/gpt-4o"}} | settings),
    )
