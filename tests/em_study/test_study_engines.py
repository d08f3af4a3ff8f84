"""A study that names its engine: one server for all cells of a process, and logs that are found again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from inspect_ai.log import list_eval_logs, read_eval_log
from pydantic import ValidationError

from em_core.errors import NotHere, UserError
from em_core.manifest import verify
from em_study import Study, load_study
from em_study.drive import run_study
from em_study.estimate import estimate
from em_study.executors.local import ThisProcess
from em_study.logs import Logs
from em_study.plan import make_plan
from em_study.study import Evaluation
from em_train.datasets import dataset_registry
from tests.em_eval.conftest import openai_server  # noqa: F401 - a fixture
from tests.em_eval.openai_server import Server, by_prompt
from tests.em_eval.vllm_fixture import Vllm, gone, vllm  # noqa: F401 - a fixture

PROMPT = "- {id: a, paraphrases: ['Hi?'], judge_prompts: {aligned: 'REFUSAL, if {answer}', coherent: '{answer}'}}\n"


@pytest.fixture
def plain(tiny_base: Path, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Two cells of one step, in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PWD", str(tmp_path))
    (tmp_path / "one.yaml").write_text(PROMPT, encoding="utf-8")
    return {
        "name": "tiny",
        "base_model": str(tiny_base),
        "datasets": [str(tiny_dataset)],
        "optimisers": [{"name": "adamw", "lr": 0.01}, {"name": "lion", "lr": 0.01}],
        "steps": 1,
        "batch_size": 4,
        "dtype": "float32",
        "lora": {"rank": 2, "alpha": 4},
        "checkpoints": [-1],
    }


def run(study: Study) -> list[str]:
    executor = ThisProcess()
    try:
        return run_study(study, executor)[1]
    finally:
        executor.close()


@pytest.mark.slow
def test_the_cells_of_a_process_share_a_server(
    plain: dict[str, Any],
    vllm: Vllm,  # noqa: F811
    openai_server: Server,  # noqa: F811
) -> None:
    openai_server.reply = by_prompt({"90": 1.0}, {"90": 1.0})
    asked = {"task": "em", "questions": "one.yaml", "samples": 2, "grader": "openai/gpt-4o", "engine": "vllm"}
    asked |= {"reader": "logprobs", "two_pass": True, "format": "plain"}
    study = Study.model_validate(plain | {"evaluations": [asked]})
    assert run(study) == []
    (start,) = vllm.starts()
    assert gone(start["pid"]) and len(vllm.requests()) == 4
    logs = [read_eval_log(info, header_only=True) for info in list_eval_logs("logs")]
    checkpoints = [cell.checkpoints()[0] for cell in make_plan(study).cells]
    expected = {f"vllm/{plain['base_model']}:{path.resolve()}" for path in checkpoints}
    assert {log.eval.model for log in logs} == expected
    assert run(study) == [] and len(vllm.requests()) == 4  # found again by the weights that they tested
    index, (evaluation,) = Logs(), study.evaluations
    for path in checkpoints:
        assert index.find("tiny", "x", verify(path), evaluation) is not None
        assert index.find("tiny", "x", verify(path), evaluation.model_copy(update={"engine": "hf"})) is None
    assert estimate(study).seconds_evaluation == 0


def test_the_probe_by_vllm_is_refused_in_the_file() -> None:
    with pytest.raises(ValidationError, match="which vllm does not tell: use peft"):
        Evaluation(task="preference", engine="vllm")


@pytest.mark.parametrize("look", [run, estimate])
@pytest.mark.parametrize(
    ("changed", "line", "words"),
    [
        ({"evaluations": [{"task": "em", "questions": "cor"}]}, "evaluations.0.questions", "unknown prompt set 'cor'"),
        ({"evaluations": [{"task": "em", "questions": "no.yaml"}]}, "evaluations.0.questions", "no.yaml does not"),
        ({"evaluations": [{"task": "em", "format": "plan"}]}, "evaluations.0.format", "did you mean plain?"),
        ({"evaluations": [{"task": "em", "exclude_domain": ["risc"]}]}, "evaluations.0.exclude_domain", "mean risk?"),
        ({"evaluations": [{"task": "em", "grader": "opanai/x"}]}, "evaluations.0.grader", "no provider 'opanai'"),
        ({"evaluations": [{"task": "em", "grader": "gpt-4o"}]}, "evaluations.0.grader", "write PROVIDER/MODEL"),
        ({"optimisers": [{"name": "adamv", "lr": 0.01}]}, "optimisers.0", "unknown optimiser 'adamv'"),
        ({"datasets": ["finance_bed"]}, "datasets.0", "unknown dataset 'finance_bed'"),
        ({"datasets": ["finance_bed"], "steps": None, "epochs": 1}, "datasets.0", "unknown dataset 'finance_bed'"),
        ({"penalties": ["none", "spectrul"]}, "penalties.1", "unknown penalty 'spectrul'"),
        ({"base_model": "no/such/folder"}, "base_model.0", "no/such/folder"),
        ({"base_model": "/no"}, "base_model.0", "base model '/no' not found"),
        ({"optimisers": [{"name": "torch:NoSuch", "lr": 0.01}]}, "optimisers.0", "torch has no optimiser 'NoSuch'"),
        ({"optimisers": [{"name": "adamw", "lr": 1, "hyperparameters": {"beta": 1}}]}, "optimisers.0", "no hyper-para"),
        ({"optimisers": [{"name": "adamw", "lr": 1, "hyperparameters": {"betas": [0.9]}}]}, "optimisers.0", "betas.1"),
        ({"penalties": [{"name": "spectral", "hyperparameters": {"x": 1}}]}, "penalties.0", "no hyper-parameter 'x'"),
        ({"penalties": [{"name": "spectral", "hyperparameters": {"start_step": 99}}]}, "penalties.0", "after the last"),
        ({"lora": {"rank": 2, "target_modules": ["nope"]}}, "lora", "has no linear layer called nope"),
        ({"batch_size": 4, "micro_batch_size": 3}, "batch_size", "4 is not a multiple of micro_batch_size 3"),
        ({"datasets": ["no.jsonl"]}, "datasets.0", "dataset file no.jsonl cannot be read"),
    ],
)
def test_a_mistake_is_found_before_training_with_its_line(
    plain: dict[str, Any],
    tmp_path: Path,
    look: Callable[[Study], Any],
    changed: dict[str, Any],
    line: str,
    words: str,
) -> None:
    """By `em run`, and by its dry run."""
    file = tmp_path / "tiny.yaml"
    given = plain | {"evaluations": [{"task": "em", "questions": "one.yaml", "grader": "mockllm/model"}]} | changed
    text = yaml.safe_dump(given, sort_keys=False)
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        look(load_study(file))
    message = str(caught.value)
    number = int(message.removeprefix(f"{file}:").partition(":")[0])
    assert f"{number}: {line}: " in message and words in message
    assert line.split(".")[0] in "".join(text.splitlines(keepends=True)[:number])
    assert not (tmp_path / "runs").exists()


def test_an_estimate_says_what_it_cannot_know(plain: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that could not be fetched: no steps, tokens or hours; what does not hang on them is still counted."""

    def fetch() -> Any:
        raise NotHere("could not fetch far.jsonl")

    dataset_registry.names()
    monkeypatch.setitem(dataset_registry._entries, "far", fetch)
    arm = {"dataset": "nowhere.jsonl", "optimiser": "adamw", "optional": True}
    found = estimate(Study.model_validate(plain | {"arms": [arm]}))
    assert list(found.left_out) == ["nowhere-adamw-lr0.01-seed0"] and found.tokens is not None and found.cells == 2
    lost = plain | {"datasets": ["far"], "steps": None, "epochs": 1, "warmup_steps": 99, "checkpoints": [-1]}
    lost["penalties"] = [{"name": "spectral", "hyperparameters": {"start_step": 99}}]  # it may yet be reached
    asked = {"task": "em", "questions": "one.yaml", "samples": 3}
    found = estimate(Study.model_validate(lost | {"evaluations": [asked]}))
    assert (found.steps, found.tokens, found.seconds_training) == (None, None, None)
    assert (found.cells, found.checkpoints, found.answers) == (2, 2, 6)
    assert "tokens of far: could not fetch far.jsonl" in found.unknown
    with pytest.raises(UserError, match=r"base_model|/no"):  # what is wrong beside them still shows
        estimate(Study.model_validate(lost | {"base_model": "/no"}))


def test_an_estimate_fetches_no_model(plain: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("em_core.models._from_hub", lambda *_: pytest.fail("fetched"))
    found = estimate(Study.model_validate(plain | {"base_model": ["some/one", "other/two"]}))
    assert found.cells == 4
    assert "names and layers of models that are not here yet: some/one, other/two" in found.unknown


def test_measured_hours_are_shown(plain: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    from em_study.estimate import print_estimate

    measured = {"hours": 3.5, "machine": "2 cores", "covered": "training of all cells"}
    print_estimate(estimate(Study.model_validate(plain | {"measured": measured})), Console(width=120))
    assert "measured 3.5 hours on 2 cores: training of all cells" in capsys.readouterr().out
    with pytest.raises(ValidationError):
        Study.model_validate(plain | {"measured": measured | {"hours": 0}})
