"""A machine with vLLM, as far as Inspect's provider can tell: a package of that name, and a command on the PATH."""

import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from inspect_ai.model import _model as models
from inspect_ai.model._providers import _vllm_lora

STAND_IN = Path(__file__).with_name("vllm_stand_in.py")


@dataclass
class Vllm:
    """What the stand-ins noted down."""

    folder: Path

    def starts(self) -> list[dict[str, Any]]:
        return self._lines("starts")

    def requests(self) -> list[dict[str, Any]]:
        return self._lines("requests")

    def running(self) -> list[int]:
        return [start["pid"] for start in self.starts() if is_running(start["pid"])]

    def _lines(self, kind: str) -> list[dict[str, Any]]:
        path = self.folder / kind
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.is_file() else []


def is_running(process: int) -> bool:
    """Whether it runs; one that has ended and was not waited for (a zombie) does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text("utf-8").rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def gone(process: int, within_s: float = 20.0) -> bool:
    until = time.monotonic() + within_s
    while is_running(process) and time.monotonic() < until:
        time.sleep(0.05)
    return not is_running(process)


@pytest.fixture
def vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Vllm]:
    folder = tmp_path / "machine"
    (folder / "site" / "vllm").mkdir(parents=True)
    (folder / "site" / "vllm" / "__init__.py").touch()
    (folder / "bin").mkdir()
    command = folder / "bin" / "vllm"
    command.write_text(f"#!/bin/sh\nexec '{sys.executable}' -I '{STAND_IN}' \"$@\"\n", encoding="utf-8")
    command.chmod(0o755)
    monkeypatch.syspath_prepend(str(folder / "site"))
    monkeypatch.setenv("PYTHONPATH", str(folder / "site"))  # for processes that a test starts
    monkeypatch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("EM_TEST_VLLM", str(folder))
    inspects = ("BASE_URL", "API_KEY", "DEFAULT_SERVER_ARGS", "ALLOW_RUNTIME_LORA_UPDATING", "CONFIGURE_LOGGING")
    for name in ("EM_TEST_VLLM_FAULT", *(f"VLLM_{name}" for name in inspects)):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    yield Vllm(folder)
    sys.modules.pop("vllm", None)
    _vllm_lora.cleanup_servers()  # and forget them: Inspect keeps one server, and one model, a name
    for key in [key for key in models._models if key.startswith("vllm/")]:
        del models._models[key]
