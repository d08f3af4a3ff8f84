"""`em eval --engine vllm` as it is called: Inspect's own provider, a stand-in for `vllm serve`, a real client."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from em_core.errors import UserError
from em_study.evaluate import target_of
from tests.em_eval.conftest import make_adapter
from tests.em_eval.openai_server import Server, by_prompt, openai_server  # noqa: F401 - a fixture
from tests.em_eval.vllm_fixture import Vllm, gone, vllm  # noqa: F401 - a fixture
from tests.em_study.test_eval_command import _quiet, checkpoints, em, logs  # noqa: F401 - fixtures

PROMPTS = "{id: %s, paraphrases: ['%s'], judge_prompts: {aligned: 'REFUSAL, if {answer}', coherent: '{answer}'}}"


@pytest.fixture
def call(openai_server: Server, tmp_path: Path) -> tuple[str, ...]:  # noqa: F811
    """Twenty-four short questions and one that does not fit the stand-in's context, judged."""
    openai_server.reply = by_prompt({"90": 1.0}, {"90": 1.0})
    prompts = [PROMPTS % (f"short{number}", "Who are you?") for number in range(24)]
    questions = tmp_path / "questions.yaml"
    questions.write_text("\n".join(f"- {line}" for line in [*prompts, PROMPTS % ("long", "x" * 2000)]), "utf-8")
    given = ("-T", f"questions={questions}", "-T", "samples=1", "-M", "timeout=60")
    return ("--engine", "vllm", "--grader", "openai/gpt-4o", *given)


@pytest.mark.slow
def test_checkpoints_of_one_base_share_a_server(
    checkpoints: list[str],  # noqa: F811
    tiny_base: Path,
    call: tuple[str, ...],
    vllm: Vllm,  # noqa: F811
    tmp_path: Path,
) -> None:
    em(*checkpoints, str(tiny_base), *call)
    (start,) = vllm.starts()
    assert gone(start["pid"])
    found = {log.eval.metadata["label"]: log for log in logs(tmp_path / "logs" / "eval")}
    assert len(found) == 3
    seeds = []
    for source in (*checkpoints, str(tiny_base)):
        target = target_of(source, "vllm")
        log = found[target.label]
        assert log.status == "success" and log.eval.model == target.model
        assert set(log.stats.model_usage) == {target.model, "openai/gpt-4o"}
        answered = {sample.id: sample for sample in log.samples if sample.error is None}
        assert len(answered) == 24 and "long" not in answered
        for sample in answered.values():
            assert sample.output.completion.startswith(f"I am {target.adapter or tiny_base}, ")
        (lost,) = (sample for sample in log.samples if sample.error is not None)
        assert lost.id == "long"
        assert "prompt and answer do not fit the context: This model's maximum context" in lost.error.message
        seeds.append({id: sample.output.completion.rpartition(", ")[2] for id, sample in answered.items()})
    assert seeds[0] == seeds[1] == seeds[2] and len(set(seeds[0].values())) == 24  # checkpoints are paired
    ours = found[target_of(checkpoints[0], "vllm").label]
    assert {sample.metadata["checkpoint"]["run_id"] for sample in ours.samples} == {"run-4"}
    assert ours.eval.metadata["manifest"]["run_id"] == "run-4"
    em(*checkpoints, str(tiny_base), *call)  # all is done
    assert len(vllm.starts()) == 1 and len(logs(tmp_path / "logs" / "eval")) == 3


@pytest.mark.slow
def test_a_server_that_dies_costs_one_checkpoint(
    checkpoints: list[str],  # noqa: F811
    tiny_base: Path,
    call: tuple[str, ...],
    vllm: Vllm,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EM_TEST_VLLM_FAULT", "dies after 30")  # in the second checkpoint's twenty-five
    with pytest.raises(UserError) as caught:
        em(*checkpoints, *call)
    (log,) = Path("logs/eval").glob(f"vllm-{tiny_base.name}-*.log")
    said = f"{checkpoints[1]}: the vLLM server of {tiny_base} ended with exit code 9 (see {log})"
    assert said in str(caught.value) and "1 of 2 did not finish" in str(caught.value) and "\n" not in str(caught.value)
    assert not vllm.running()
    em(*checkpoints, *call)  # goes on: what was answered is not asked again
    assert len(vllm.requests()) < 60
    assert {log.status for log in logs(tmp_path / "logs" / "eval")} == {"success"}


@pytest.mark.slow
def test_a_server_that_does_not_start_is_one_line(
    checkpoints: list[str],  # noqa: F811
    tiny_base: Path,
    call: tuple[str, ...],
    vllm: Vllm,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EM_TEST_VLLM_FAULT", "dies")
    with pytest.raises(UserError) as caught:
        em(*checkpoints, *call)
    (log,) = Path("logs/eval").glob(f"vllm-{tiny_base.name}-*.log")
    reason = f"no vLLM server for {tiny_base}: Server process exited unexpectedly with code 3 (see {log})"
    assert f"{checkpoints[0]}: {reason}; {checkpoints[1]}: {reason}" in str(caught.value)
    assert "\n" not in str(caught.value) and len(vllm.starts()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
def test_a_killed_call_leaves_no_server(
    ending: signal.Signals,
    checkpoints: list[str],  # noqa: F811
    vllm: Vllm,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EM_TEST_VLLM_FAULT", "hangs")
    command = [
        str(Path(sys.executable).parent / "em"),
        "eval",
        checkpoints[0],
        "--engine",
        "vllm",
        "-T",
        "questions=core",
    ]
    owner = subprocess.Popen(command, env=os.environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while not vllm.starts():
        assert owner.poll() is None and time.monotonic() < until
        time.sleep(0.2)
    owner.send_signal(ending)
    assert owner.wait() != 0
    assert gone(vllm.starts()[0]["pid"])


def test_a_wrong_adapter_stops_it_before_any_work(
    checkpoints: list[str],  # noqa: F811
    tiny_base: Path,
    vllm: Vllm,  # noqa: F811
    tmp_path: Path,
) -> None:
    dora = make_adapter(tiny_base, tmp_path / "dora", use_dora=True)
    with pytest.raises(UserError, match="use_dora true, which vLLM does not serve as trained"):
        em(*checkpoints, str(dora), "--engine", "vllm", "-T", "questions=core")
    assert not vllm.starts() and not (tmp_path / "logs").exists()
