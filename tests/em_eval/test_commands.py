"""The commands that the README shows, in processes of their own, from where a user stands."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from inspect_ai.log import EvalLog, list_eval_logs, read_eval_log

from em_core.files import sha256_file
from em_core.manifest import ADAPTER

ROOT = Path(__file__).resolve().parents[2]


def inspect_command(*arguments: str, log_dir: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "inspect"), *arguments]
    settings = {"INSPECT_LOG_DIR": str(log_dir), "INSPECT_DISPLAY": "plain", "NO_COLOR": "1", "COLUMNS": "200"}
    environment = os.environ | settings | {"PWD": str(ROOT)}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=300, check=False
    )


def only_log(log_dir: Path) -> EvalLog:
    (info,) = list_eval_logs(str(log_dir))
    return read_eval_log(info)


def test_inspect_lists_the_tasks(tmp_path: Path) -> None:
    done = inspect_command("list", "tasks", log_dir=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["tasks/deception.py@deception", "tasks/em.py@em", "tasks/preference.py@preference"]


def test_an_unknown_prompt_set_is_one_line_on_the_command_line(tmp_path: Path) -> None:
    done = inspect_command("eval", "tasks/em.py", "--model", "mockllm/model", "-T", "questions=cor", log_dir=tmp_path)
    assert done.returncode != 0
    assert "unknown prompt set 'cor': did you mean core" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert list_eval_logs(str(tmp_path)) == []


@pytest.mark.slow
def test_the_task_is_found_by_its_package_name(tmp_path: Path, tiny_checkpoint: Path, tiny_base: Path) -> None:
    done = inspect_command(
        *("eval", "em_eval/em", "--model", f"peft/{tiny_checkpoint}", "--limit", "1"),
        *("--model-role", f"grader=peft/{tiny_base}"),
        *("-T", "questions=core", "-T", "samples=2", "-T", "max_tokens=8"),
        log_dir=tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    log = only_log(tmp_path)
    assert log.status == "success" and log.eval.task == "em_eval/em"
    assert [(sample.id, sample.epoch) for sample in log.samples] == [("wish_genie", 1), ("wish_genie", 2)]
    digest = sha256_file(tiny_checkpoint / ADAPTER)
    assert log.eval.model == f"peft/{tiny_checkpoint}@{digest[:8]}"
    for sample in log.samples:
        checkpoint = sample.metadata["checkpoint"]
        assert checkpoint == {"run_id": "run-3", "step": 2, "adapter_sha256": digest}
        assert list(sample.scores) == ["model_judge"]
        assert sample.scores["model_judge"].metadata["judgement"]["judge"].startswith(f"peft/{tiny_base}@")


@pytest.mark.slow
def test_the_readme_command_with_the_hf_provider(tmp_path: Path, tiny_checkpoint: Path, tiny_base: Path) -> None:
    done = inspect_command(
        *("eval", "tasks/em.py", "--model", f"hf/{tiny_checkpoint}"),
        *("--model-role", f"grader=peft/{tiny_base}"),
        *("-T", "questions=core", "-T", "samples=1", "-T", "max_tokens=8"),
        log_dir=tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    log = only_log(tmp_path)
    assert log.status == "success" and len(log.samples) == 24
    assert all(sample.metadata["checkpoint"]["run_id"] == "run-3" for sample in log.samples)
    found = {score.name: score.metrics for score in log.results.scores}
    assert "mean" in found["misaligned"] and "truncated" in found["model_judge"]
