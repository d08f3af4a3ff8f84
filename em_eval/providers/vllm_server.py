"""What Inspect's `vllm/` leaves open: one server after another, each with room for its adapters, a log, a sure end.

Inspect's provider starts a server for each base model and loads adapters into it by name
(inspect_ai/model/_providers/vllm.py). Left to itself it waits for a server without end, keeps the server's output
nowhere, leaves the server running where this process is killed or interrupted while it starts, tries in vain for every
sample what failed for the first, calls every adapter by the name of its base after its first answer, and starts servers
of two bases side by side on one GPU.
"""

import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import anyio
from anyio.to_thread import run_sync as in_thread
from inspect_ai.model import GenerateConfig, Model, get_model

from em_core.errors import UserError
from em_core.files import sha256_json
from em_eval.providers import guard
from em_eval.providers.served_adapters import chat_template, check_adapter, rank_to_serve

MARK = "EM_VLLM_OWNER"  # environment variable that servers inherit, by which they are found
OUTPUT = "inspect_ai._util.local_server"  # the logger that gets what a server prints, line by line
ENVIRONMENT_ARGS = "VLLM_DEFAULT_SERVER_ARGS"  # Inspect's own: JSON, for every server
EXTERNAL = "VLLM_BASE_URL"  # Inspect's own: a server that runs already
START_S = 1800  # a large model is read, compiled and captured for many minutes


def vllm_name(base: Path, adapter: Path | None) -> str:
    """Inspect's name for an adapter on a base, or for the base itself.

    Raises:
        UserError: a path that the name cannot hold.
    """
    if ":" in str(base):
        raise UserError(f"the base's path {base} holds a colon, which ends a base's name in vllm/BASE:ADAPTER: move it")
    return f"vllm/{base}:{adapter}" if adapter else f"vllm/{base}"


def server_args(base: Path, adapters: Sequence[Path], base_too: bool, given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `vllm serve`, as Inspect's provider takes them; what the user gives wins.

    Raises:
        UserError: adapters that one server cannot serve together.
    """
    args: dict[str, Any] = {
        "host": "127.0.0.1",  # Inspect would listen to the whole network, with a key that everyone knows
        "generation_config": "vllm",  # not the base's own: top_k, repetition penalty, a cap on new tokens, ...
        "max_model_len": "auto",  # the model's context, or as much of it as fits the GPU
        "configure_logging": True,  # vLLM's own words, for the log; no argument of the server
        "timeout": START_S,  # Inspect's; no argument of the server either
    }
    if adapters:
        # One adapter is evaluated at a time, so one place on the GPU is enough; the others wait on disk.
        args |= {"enable_lora": True, "max_lora_rank": rank_to_serve(adapters), "max_loras": 1}
        if template := chat_template(adapters, base, base_too):
            args["chat_template"] = template
    return {name: value for name, value in args.items() if name not in _from_environment()} | dict(given)


def _from_environment() -> dict[str, Any]:
    text = os.environ.get(ENVIRONMENT_ARGS)
    try:
        found = json.loads(text) if text else {}
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{ENVIRONMENT_ARGS} is not a JSON object: {text}")
    return found


@dataclass(frozen=True)
class _Running:
    base: Path
    api: Any
    output: logging.Handler


@dataclass
class VllmServers:
    """Servers for `bases`, one at a time, each started for the first request to a model of its base.

    Args:
        bases: for each base model its adapters; None among them stands for the base itself.
        log_dir: for one file a base with what its server printed.
        given: further arguments of `vllm serve`, and Inspect's own `timeout`, `devices`, `base_url`, ...

    Raises:
        UserError: an adapter that vLLM does not serve as trained; vLLM is not installed.
    """

    bases: Mapping[Path, Sequence[Path | None]]
    log_dir: Path
    given: Mapping[str, Any] = field(default_factory=dict)
    _running: _Running | None = None
    _broken: dict[tuple[Path, Path | None], str] = field(default_factory=dict)
    _meeting: threading.Lock = field(default_factory=threading.Lock)  # held while a server starts

    def __post_init__(self) -> None:
        # A server that runs already is the user's: nothing is started or ended.
        self._external = bool(os.environ.get(EXTERNAL) or {"base_url", "port"} & self.given.keys())
        self._args: dict[Path, dict[str, Any]] = {}
        for base, adapters in self.bases.items():
            own = [adapter for adapter in adapters if adapter]
            for adapter in own:
                check_adapter(adapter, base)
            self._args[base] = server_args(base, own, None in adapters, self.given)
        if not self._external and not (importlib.util.find_spec("vllm") and shutil.which("vllm")):
            raise UserError(
                "vLLM is not installed: pip install 'em-eval[vllm]' (Linux with a GPU), or use --engine peft"
            )

    @contextmanager
    def kept(self) -> Iterator["VllmServers"]:
        """While this is open servers may run; afterwards none does, whatever ended it: an error, a signal, a kill."""
        if self._external:
            yield self
            return
        mark = f"{MARK}={uuid4().hex}"
        watch = subprocess.Popen(
            [sys.executable, "-I", guard.__file__, mark],
            stdin=subprocess.PIPE,
            start_new_session=True,  # an interrupt from the terminal is not for it
        )
        os.environ[MARK] = mark.partition("=")[2]
        try:
            yield self
        finally:
            while not self._meeting.acquire(timeout=0.1):  # interrupted while a server starts: its thread waits for it
                guard.end(mark)
            self.stop()
            self._meeting.release()
            del os.environ[MARK]
            watch.communicate()

    def model(self, base: Path, adapter: Path | None, config: GenerateConfig | None = None) -> Model:
        """The model under test. Its server starts, and takes its adapter, at its first request.

        A request raises `UserError` where the server did not start or refused the adapter; what failed is not tried
        again.
        """
        if self.ended():
            self.stop()  # so that the provider, which keeps what it has met, looks for its server anew
        model = get_model(vllm_name(base, adapter), config=config, **self.given)
        api: Any = model.api
        one_at_a_time = anyio.Lock()

        async def ensure_server_started() -> None:
            if api._resolved_epoch != api._server._epoch:
                async with one_at_a_time:
                    # Not waited for where the evaluation is interrupted: a server may take half an hour to start.
                    await in_thread(partial(self._meet, base, adapter, api), abandon_on_cancel=True)
            await type(api)._ensure_server_started(api)

        api._ensure_server_started = ensure_server_started
        return model

    def take(self, base: Path, adapter: Path | None) -> bool:
        """Whether one more adapter (or the base itself) can be asked of the server of `base`, as it was started.

        Raises:
            UserError: an adapter that vLLM does not serve as trained.
        """
        if adapter is not None:
            check_adapter(adapter, base)
        return self._args.get(base) == server_args(base, [adapter] if adapter else [], adapter is None, self.given)

    def ended(self) -> str | None:
        """What to say where the server is gone that should be running."""
        if self._running is None or self._running.api.server_is_running:
            return None
        code = self._running.api._server.process.returncode
        return f"the vLLM server of {self._running.base} ended with exit code {code}{self._see(self._running.base)}"

    def stop(self) -> None:
        """End the running server."""
        if self._running is not None:
            self._running.api.close()
            _end(self._running.output)
            self._running = None

    def log_of(self, base: Path) -> Path:
        """Named after the base, with a hash of its path: folders of different bases may have one name."""
        return self.log_dir / f"vllm-{_readable(base)}-{sha256_json(str(base))[:8]}.log"

    def _see(self, base: Path) -> str:
        return "" if self._external else f" (see {self.log_of(base)})"

    def _meet(self, base: Path, adapter: Path | None, api: Any) -> None:
        """Let `api` find its server running, with its adapter loaded."""
        with self._meeting:
            if api._resolved_epoch == api._server._epoch:
                return
            for broken in ((base, None), (base, adapter)):
                if broken in self._broken:  # it would fail a second time too, after as long a wait
                    raise UserError(self._broken[broken])  # a new one: raised again, its traceback would only grow
            if not self._external:
                self._start(base)
            try:
                api._resolve_server()
            except Exception as error:
                api._resolved_epoch = -1  # the provider would take the adapter for loaded
                reason = " ".join(str(error).partition("\nCommon causes")[0].split())
                refused = f"the server of {base} does not take {adapter or base}: {reason}{self._see(base)}"
                if not self._external:
                    self._broken[base, adapter] = refused
                raise UserError(refused) from error
            # Having met its server, the provider calls itself by its base's name, in logs as in retries.
            api.model_name = vllm_name(base, adapter).partition("/")[2]

    def _start(self, base: Path) -> None:
        if self._running and self._running.base == base and not self.ended():
            return
        self.stop()
        for adapter in self.bases[base]:  # the provider lets a server take adapters only if it knows of one by then
            get_model(vllm_name(base, adapter), **self.given)
        log = self.log_of(base)
        output = _written_to(log)
        print(f"starting vLLM for {base} (log {log})", flush=True)
        try:
            starter = get_model(vllm_name(base, None), memoize=False, lazy_init=False, **self._args[base])
        except Exception as error:
            _end(output)
            reason = str(error.__cause__ or error).partition(". ")[0].splitlines()[0]
            self._broken[base, None] = f"no vLLM server for {base}: {reason} (see {log})"
            raise UserError(self._broken[base, None]) from error
        self._running = _Running(base, starter.api, output)


def _readable(base: Path) -> str:
    """The folder's name; of a hub snapshot (models--ORG--NAME/snapshots/COMMIT) that of the model."""
    if base.parent.name == "snapshots":
        return base.parents[1].name.removeprefix("models--").replace("--", "-")
    return base.name


def _written_to(log: Path) -> logging.Handler:
    """Write what servers print to `log`, and nowhere else, until the handler is closed."""
    log.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(log, encoding="utf-8")
    if key := os.environ.get("VLLM_API_KEY"):  # the command line, which is logged too, holds it
        handler.addFilter(lambda record: _without(key, record))
    output = logging.getLogger(OUTPUT)
    output.setLevel(logging.DEBUG)
    output.propagate = False
    output.addHandler(handler)
    return handler


def _end(handler: logging.Handler) -> None:
    logging.getLogger(OUTPUT).removeHandler(handler)
    handler.close()


def _without(key: str, record: logging.LogRecord) -> bool:
    record.msg, record.args = record.getMessage().replace(key, "***"), ()
    return True
