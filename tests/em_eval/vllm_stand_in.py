"""Stands in for `vllm serve`: its flags, its OpenAI-compatible routes and its refusals, without a model.

An answer is the name of the adapter that was asked, and the request's seed. Run as the script `vllm` that the fixture
`vllm` puts on the PATH. EM_TEST_VLLM names a folder: `starts` gets a line of JSON for every server (process, command
line), `requests` one for every answer. EM_TEST_VLLM_FAULT is what goes wrong: "dies" or "hangs" while it starts,
"dies after N" answers.
"""

import argparse
import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

CONTEXT = 1000  # characters
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("vllm", allow_abbrev=False)
    parser.add_argument("serve", choices=["serve"])
    parser.add_argument("model")
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--api-key", required=True)
    parser.add_argument("--generation-config", default="auto")
    parser.add_argument("--max-model-len", default=None)
    parser.add_argument("--enable-lora", action="store_true")
    parser.add_argument("--max-lora-rank", type=int, choices=RANKS, default=16)
    parser.add_argument("--max-loras", type=int, default=1)
    parser.add_argument("--chat-template")
    parser.add_argument("--tensor-parallel-size", type=int, default=1)
    return parser.parse_args()


def note(kind: str, line: dict[str, Any]) -> None:
    with (Path(os.environ["EM_TEST_VLLM"]) / kind).open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")


def main() -> None:
    given = arguments()
    fault = os.environ.get("EM_TEST_VLLM_FAULT", "")
    note("starts", {"pid": os.getpid(), "argv": sys.argv[1:]})
    if fault == "dies":
        print("ValueError: no room for the cache", file=sys.stderr)
        sys.exit(3)
    if fault == "hangs":
        time.sleep(600)
    lives = int(fault.removeprefix("dies after ")) if fault.startswith("dies after") else None
    names = [given.model]
    answered: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/v1/models":
                cards = [{"id": name, "object": "model", "max_model_len": CONTEXT} for name in names]
                self.send(200, {"object": "list", "data": cards})
            else:
                self.send(404, {})

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.headers["Authorization"] != f"Bearer {given.api_key}":
                self.send(401, {"error": "Unauthorized"})
            elif self.path == "/v1/load_lora_adapter":
                self.load(asked)
            elif self.path == "/v1/chat/completions":
                self.answer(asked)
            else:
                self.send(404, {})

        def load(self, asked: dict[str, Any]) -> None:
            updating = os.environ.get("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "").lower() in ("1", "true")
            if not (given.enable_lora and updating):
                self.send(404, {"detail": "Not Found"})
                return
            config = json.loads((Path(asked["lora_path"]) / "adapter_config.json").read_text(encoding="utf-8"))
            if config["r"] > given.max_lora_rank or os.environ.get("EM_TEST_VLLM_FAULT") == "takes no adapter":
                reason = f"LoRA rank {config['r']} is greater than max_lora_rank {given.max_lora_rank}."
                self.send(400, {"error": {"message": reason}})
                return
            names.append(asked["lora_name"])
            self.send(200, {})

        def answer(self, asked: dict[str, Any]) -> None:
            if lives is not None and len(answered) >= lives:
                os._exit(9)
            answered.append(asked["model"])
            note("requests", asked)
            if asked["model"] not in names:
                self.send(404, {"error": {"message": f"The model `{asked['model']}` does not exist."}})
            elif len(json.dumps(asked["messages"])) > CONTEXT:
                message = f"This model's maximum context length is {CONTEXT} tokens. However, you requested more."
                self.send(400, {"error": {"message": message, "type": "BadRequestError", "code": 400}})
            else:
                text = f"I am {asked['model']}, {asked.get('seed')}."
                choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
                usage = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
                head = {"id": "c", "object": "chat.completion", "created": 1, "model": asked["model"]}
                self.send(200, {**head, "choices": [choice], "usage": usage})

        def send(self, status: int, content: Any) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer((given.host, given.port), Handler)
    print("Application startup complete.", flush=True)
    server.serve_forever()


main()
