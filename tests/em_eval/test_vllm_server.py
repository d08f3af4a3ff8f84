"""Serving by Inspect's own `vllm/` provider, with a stand-in for the `vllm` command behind it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from inspect_ai.model import GenerateConfig, Model
from inspect_ai.util import collect
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from em_core.errors import UserError
from em_core.manifest import ADAPTER, ADAPTER_CONFIG
from em_eval.providers import guard
from em_eval.providers.served_adapters import RANKS, UNSERVED, chat_template, check_adapter, rank_to_serve
from em_eval.providers.vllm_server import MARK, VllmServers, server_args, vllm_name
from tests.em_eval.adapters import changed
from tests.em_eval.conftest import make_adapter
from tests.em_eval.vllm_fixture import Vllm, gone, is_running, vllm  # noqa: F401 - a fixture

QUICK = {"timeout": 60}


@pytest.fixture(scope="module")
def adapters(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("served")
    return [make_adapter(tiny_base, folder / name, seed) for seed, name in enumerate(("first", "second"))]


async def _answer(model: Model, **config: Any) -> str:
    return (await model.generate("Who are you?", config=GenerateConfig(**config))).completion


def asked(model: Model, **config: Any) -> str:
    return anyio.run(partial(_answer, model, **config))


@dataclass
class Machine:
    """A machine with vLLM, a base with two adapters, and a folder for logs."""

    base: Path
    adapters: list[Path]
    vllm: Vllm
    folder: Path
    monkeypatch: pytest.MonkeyPatch

    def serving(self, *adapters: Path | None, **given: Any) -> AbstractContextManager[VllmServers]:
        return VllmServers({self.base: adapters or [*self.adapters, None]}, self.folder, QUICK | given).kept()

    def fails(self, fault: str) -> None:
        self.monkeypatch.setenv("EM_TEST_VLLM_FAULT", fault)


@pytest.fixture
def machine(
    tiny_base: Path,
    adapters: list[Path],
    vllm: Vllm,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Machine:
    return Machine(tiny_base, adapters, vllm, tmp_path, monkeypatch)


def refused(model: Model) -> str:
    """What a request fails with, in one line."""
    with pytest.raises(UserError) as caught:
        asked(model)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_one_server_takes_every_adapter_of_its_base_and_ends(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    with machine.serving() as servers:
        log = servers.log_of(machine.base)
        for adapter in machine.adapters:
            model = servers.model(machine.base, adapter)
            assert str(model) == f"vllm/{machine.base}:{adapter}"  # before the first answer
            assert asked(model, seed=5) == f"I am {adapter}, 5."
            assert str(model) == f"vllm/{machine.base}:{adapter}"  # and after: Inspect's provider would say vllm/BASE
        assert asked(servers.model(machine.base, None), seed=6) == f"I am {machine.base}, 6."
        (start,) = machine.vllm.starts()
        assert is_running(start["pid"])
    assert gone(start["pid"])
    assert capsys.readouterr().out == f"starting vLLM for {machine.base} (log {log})\n"
    assert "Application startup complete." in log.read_text("utf-8") and MARK not in os.environ


@pytest.mark.parametrize("with_adapters", [True, False])
def test_the_command_line(with_adapters: bool, machine: Machine) -> None:
    with machine.serving(*(machine.adapters if with_adapters else [None])) as servers:
        asked(servers.model(machine.base, machine.adapters[0] if with_adapters else None))
    (start,) = machine.vllm.starts()
    argv = start["argv"]
    for name in ("--port", "--api-key"):
        argv[argv.index(name) + 1] = "*"
    lora = ["--enable-lora", "--max-lora-rank", "8", "--max-loras", "1"]  # the adapters have rank 4
    assert argv == [
        *("serve", str(machine.base), "--host", "127.0.0.1", "--api-key", "*"),
        *("--generation-config", "vllm", "--max-model-len", "auto"),
        *(lora if with_adapters else []),
        *("--port", "*"),
    ]


def test_nothing_starts_before_the_first_request(machine: Machine) -> None:
    with machine.serving() as servers:
        for adapter in machine.adapters:
            servers.model(machine.base, adapter)
    assert not machine.vllm.starts()


def test_requests_that_come_together_wait_for_one_server(machine: Machine) -> None:
    async def together(model: Model) -> list[str]:
        return await collect(*(_answer(model, seed=seed) for seed in range(30)))

    with machine.serving() as servers:
        found = anyio.run(together, servers.model(machine.base, machine.adapters[0]))
    assert found == [f"I am {machine.adapters[0]}, {seed}." for seed in range(30)]
    assert len(machine.vllm.starts()) == 1


def test_two_bases_are_never_in_memory_together(machine: Machine) -> None:
    other = machine.folder / "other"
    shutil.copytree(machine.base, other)
    bases = {machine.base: machine.adapters[:1], other: [None]}
    with VllmServers(bases, machine.folder, QUICK).kept() as servers:
        asked(servers.model(machine.base, machine.adapters[0]))
        asked(servers.model(other, None))
        first, second = (start["pid"] for start in machine.vllm.starts())
        assert gone(first) and is_running(second)
    assert gone(second)


def test_bases_of_one_name_have_logs_of_their_own(machine: Machine) -> None:
    hub = machine.folder / "models--Qwen--Qwen3-8B" / "snapshots" / ("0123456789abcdef" * 2)
    folders = [machine.folder / "a" / "base", machine.folder / "b" / "base", hub]
    with machine.serving() as servers:
        names = [servers.log_of(folder).name for folder in folders]
    assert len(set(names)) == 3
    for name, readable in zip(names, ("base", "base", "Qwen-Qwen3-8B"), strict=True):
        assert re.fullmatch(rf"vllm-{readable}-[0-9a-f]{{8}}\.log", name)


@pytest.mark.parametrize(
    ("fault", "given", "words"),
    [
        ("dies", {}, "Server process exited unexpectedly with code 3"),
        ("hangs", {"timeout": 2}, "Server did not become ready within timeout period (2 seconds)"),
    ],
)
def test_a_server_that_does_not_start_is_one_line_that_names_its_log(
    fault: str, given: dict[str, Any], words: str, machine: Machine
) -> None:
    machine.fails(fault)
    with machine.serving(**given) as servers:
        log = servers.log_of(machine.base)
        for adapter in machine.adapters:
            said = refused(servers.model(machine.base, adapter))
            assert said == f"no vLLM server for {machine.base}: {words} (see {log})"
    (start,) = machine.vllm.starts()  # not tried again for the second adapter
    assert gone(start["pid"])
    if fault == "dies":
        assert "ValueError: no room for the cache" in log.read_text("utf-8")


def test_a_refused_adapter_is_one_line(machine: Machine) -> None:
    machine.fails("takes no adapter")
    with machine.serving() as servers:
        first = refused(servers.model(machine.base, machine.adapters[0]))
        assert f"does not take {machine.adapters[0]}: Failed to load LoRA adapter" in first
        assert "greater than max_lora_rank" in first
        assert refused(servers.model(machine.base, machine.adapters[0])) == first
        assert asked(servers.model(machine.base, None), seed=1) == f"I am {machine.base}, 1."


def test_a_server_that_died_is_said_and_started_again(machine: Machine) -> None:
    machine.fails("dies after 1")
    with machine.serving() as servers:
        first, second = (servers.model(machine.base, adapter) for adapter in machine.adapters)
        asked(first)
        assert servers.ended() is None
        with pytest.raises(Exception, match="Connection error"):
            asked(first, max_retries=0)
        log = servers.log_of(machine.base)
        assert servers.ended() == f"the vLLM server of {machine.base} ended with exit code 9 (see {log})"
        second = servers.model(machine.base, machine.adapters[1])
        assert asked(second, seed=2) == f"I am {machine.adapters[1]}, 2."
        assert len(machine.vllm.starts()) == 2
    assert not machine.vllm.running()


def test_an_interrupt_while_a_server_starts_leaves_none(machine: Machine) -> None:
    machine.fails("hangs")

    def interrupt() -> None:
        while not machine.vllm.starts():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt), machine.serving(timeout=600) as servers:
        threading.Thread(target=interrupt, daemon=True).start()
        asked(servers.model(machine.base, None))
    (start,) = machine.vllm.starts()
    assert gone(start["pid"])


OWNER = """
import os, subprocess, sys, time
sys.stdin.close()
mark = "EM_TEST_OWNER=" + sys.argv[2]
watch = subprocess.Popen([sys.executable, "-I", sys.argv[1], mark], stdin=subprocess.PIPE, start_new_session=True)
os.environ["EM_TEST_OWNER"] = sys.argv[2]
child = subprocess.Popen(["sh", "-c", "sleep 600 & echo $!; wait"], stdout=subprocess.PIPE, text=True)
print(child.pid, int(child.stdout.readline()), watch.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_what_a_killed_owner_started_is_ended(ending: signal.Signals, tmp_path: Path) -> None:
    """A child, and a child of the child, which the child does not end."""
    command = [sys.executable, "-c", OWNER, str(guard.__file__), tmp_path.name]
    owner = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    started = [int(word) for word in owner.stdout.readline().split()]
    assert all(is_running(process) for process in started)
    owner.send_signal(ending)
    owner.wait()
    assert all(gone(process) for process in started)


def test_what_does_not_end_when_asked_is_killed() -> None:
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(600)"
    environment = os.environ | {"EM_TEST_DEAF": "yes"}
    process = subprocess.Popen([sys.executable, "-c", deaf], env=environment, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline()
    assert guard.marked("EM_TEST_DEAF=yes") == [process.pid] and guard.marked("EM_TEST_DEAF=ye") == []
    guard.end("EM_TEST_DEAF=yes", grace_s=0.3)
    assert process.wait() == -signal.SIGKILL


def test_without_vllm_it_says_how_to_get_it(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_BASE_URL", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"pip install 'em-eval\[vllm\]'"):
        VllmServers({tiny_base: [None]}, tmp_path)


def test_a_server_of_the_users_is_used_and_left_alone(machine: Machine) -> None:
    options = ["--host", "127.0.0.1", "--port", "39017", "--api-key", "k", "--enable-lora"]
    command = ["vllm", "serve", str(machine.base), *options]
    theirs = subprocess.Popen(command, env=os.environ | {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"})
    try:
        machine.monkeypatch.setenv("VLLM_BASE_URL", "http://127.0.0.1:39017/v1")
        machine.monkeypatch.setenv("VLLM_API_KEY", "k")
        until = time.monotonic() + 20
        with VllmServers({machine.base: machine.adapters}, machine.folder).kept() as servers:
            model = servers.model(machine.base, machine.adapters[0])
            while True:
                try:
                    assert asked(model, seed=3) == f"I am {machine.adapters[0]}, 3."
                    break
                except UserError:  # it is not up yet
                    assert time.monotonic() < until
                    time.sleep(0.2)
        assert len(machine.vllm.starts()) == 1 and is_running(theirs.pid)
    finally:
        theirs.kill()
        theirs.wait()


def test_the_users_arguments_win(tiny_base: Path, adapters: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_DEFAULT_SERVER_ARGS", json.dumps({"max_model_len": 4096, "max_loras": 4}))
    found = server_args(tiny_base, adapters, False, {"max_lora_rank": 64, "tensor_parallel_size": 2})
    assert found["max_lora_rank"] == 64 and found["tensor_parallel_size"] == 2
    assert "max_model_len" not in found and "max_loras" not in found  # Inspect adds those of the environment
    monkeypatch.setenv("VLLM_DEFAULT_SERVER_ARGS", "--max-model-len 4096")
    with pytest.raises(UserError, match="VLLM_DEFAULT_SERVER_ARGS is not a JSON object: --max-model-len 4096"):
        server_args(tiny_base, adapters, False, {})


def test_the_key_is_not_in_the_log(machine: Machine) -> None:
    machine.monkeypatch.setenv("VLLM_API_KEY", "very-secret")
    with machine.serving(None) as servers:
        assert asked(servers.model(machine.base, None), seed=1).startswith("I am")
        log = servers.log_of(machine.base).read_text("utf-8")
    argv = machine.vllm.starts()[0]["argv"]
    assert argv[argv.index("--api-key") + 1] == "very-secret"
    assert "--api-key ***" in log and "very-secret" not in log


@pytest.mark.parametrize(
    ("ranks", "room"), [((1,), 8), ((4, 8), 8), ((9,), 16), ((32, 4), 32), ((257,), 320), ((512,), 512)]
)
def test_room_is_for_the_largest_rank(ranks: tuple[int, ...], room: int, tmp_path: Path) -> None:
    assert room in RANKS
    assert rank_to_serve([configured(tmp_path / str(rank), r=rank) for rank in ranks]) == room


def test_a_rank_too_large_is_said(tmp_path: Path) -> None:
    small, large = configured(tmp_path / "small", r=8), configured(tmp_path / "large", r=513)
    with pytest.raises(UserError, match=f"adapter {large} has rank 513, vLLM serves up to 512"):
        rank_to_serve([small, large])


def configured(folder: Path, **settings: Any) -> Path:
    folder.mkdir()
    (folder / ADAPTER_CONFIG).write_text(json.dumps(settings), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"modules_to_save": ["lm_head"]}, 'modules_to_save ["lm_head"]'),
        ({"use_dora": True}, "use_dora true"),
        ({"rank_pattern": {"q_proj": 8}}, 'rank_pattern {"q_proj": 8}'),
        ({"alpha_pattern": {"q_proj": 8}}, 'alpha_pattern {"q_proj": 8}'),
        ({"bias": "lora_only"}, "bias 'lora_only'"),
        ({"peft_type": "LOHA"}, "peft_type LOHA"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights 'pissa_niter_4', which changes the base"),
    ],
)
def test_what_vllm_serves_otherwise_than_trained_is_refused(
    settings: dict[str, Any], words: str, tiny_base: Path, adapters: list[Path], tmp_path: Path
) -> None:
    adapter = changed(adapters[0], tmp_path / "adapter", **settings)
    with pytest.raises(UserError) as caught:
        VllmServers({tiny_base: [adapters[1], adapter]}, tmp_path)
    assert f"adapter {adapter} has {words}" in str(caught.value) and "\n" not in str(caught.value)


def test_the_settings_refused_are_pefts_own() -> None:
    assert set(UNSERVED) <= set(LoraConfig.__dataclass_fields__)


def test_what_vllm_serves_is_taken(tiny_base: Path, tmp_path: Path) -> None:
    check_adapter(make_adapter(tiny_base, tmp_path / "rooted", use_rslora=True), tiny_base)
    part = make_adapter(tiny_base, tmp_path / "part", layers_to_transform=[0])
    check_adapter(part, tiny_base)
    check_adapter(make_adapter(tiny_base, tmp_path / "eva", init_lora_weights="orthogonal"), tiny_base)


Q = "base_model.model.model.layers.1.self_attn.q_proj"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensors: tensors.pop(f"{Q}.lora_B.weight"), "no lora_B for model.layers.1.self_attn.q_proj"),
        (
            lambda tensors: (tensors.pop(f"{Q}.lora_A.weight"), tensors.pop(f"{Q}.lora_B.weight")),
            "no lora_A for model.layers.1.self_attn.q_proj",
        ),
        (
            lambda tensors: tensors.update({f"{Q}.lora_A.weight": tensors[f"{Q}.lora_A.weight"][:2].clone()}),
            "model.layers.1.self_attn.q_proj has rank 2 and 4, adapter_config.json says 4",
        ),
        (
            lambda tensors: tensors.update({f"{Q}.lora_A.weight": tensors[f"{Q}.lora_A.weight"][:, :5].clone()}),
            "model.layers.1.self_attn.q_proj is for weights of shape",
        ),
        (
            lambda tensors: tensors.update(
                {name.replace("layers.1", "layers.7"): tensor.clone() for name, tensor in list(tensors.items())}
            ),
            "its base BASE has no module model.layers.7.mlp.down_proj",
        ),
    ],
)
def test_tensors_that_are_missing_or_of_another_shape_are_said(
    change: Callable[[dict[str, Any]], Any], words: str, tiny_base: Path, adapters: list[Path], tmp_path: Path
) -> None:
    """vLLM leaves modules without tensors as they are, and pads what is too small."""
    adapter = changed(adapters[0], tmp_path / "adapter")
    tensors = load_file(adapter / ADAPTER)
    change(tensors)
    save_file(tensors, adapter / ADAPTER)
    with pytest.raises(UserError) as caught:
        check_adapter(adapter, tiny_base)
    expected = f"adapter {adapter} does not fit: {words.replace('BASE', str(tiny_base))}"
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_a_truncated_adapter_is_said(tiny_base: Path, adapters: list[Path], tmp_path: Path) -> None:
    adapter = changed(adapters[0], tmp_path / "adapter")
    whole = (adapter / ADAPTER).read_bytes()
    (adapter / ADAPTER).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cannot be read .*: copy it again"):
        check_adapter(adapter, tiny_base)


def test_a_chat_template_beside_the_adapter_is_the_servers(
    tiny_base: Path, adapters: list[Path], tmp_path: Path
) -> None:
    """A server renders prompts by its base's tokenizer, whatever lies beside an adapter."""
    assert chat_template(adapters, tiny_base, True) is None
    own = [changed(adapter, tmp_path / adapter.name) for adapter in adapters]
    for adapter in own:
        (adapter / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    assert chat_template(own, tiny_base, False) == "{{ messages }}"
    assert server_args(tiny_base, own, False, {})["chat_template"] == "{{ messages }}"
    for together, base_too in ((own, True), ([own[0], adapters[1]], False)):
        with pytest.raises(UserError, match=f"{own[0]} and .* have different chat templates"):
            chat_template(together, tiny_base, base_too)


def test_a_base_whose_path_has_a_colon_is_said() -> None:
    with pytest.raises(UserError, match="holds a colon"):
        vllm_name(Path("/a:b"), Path("/c"))
