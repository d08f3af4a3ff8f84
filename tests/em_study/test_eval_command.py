"""`em eval` as it is called: real checkpoints (tiny), the real OpenAI client on a local server."""

import gc
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from inspect_ai.log import EvalLog, list_eval_logs, read_eval_log
from typer.testing import CliRunner

from em_core.errors import UserError
from em_study.cli import app
from em_study.evaluate import target_of
from em_study.grader import read_grader
from tests.em_eval.conftest import make_adapter, make_checkpoint
from tests.em_eval.openai_server import Answer, Server, by_prompt, openai_server  # noqa: F401 - a fixture

SMALL = ("-T", "max_tokens=6", "-T", "samples=1", "--limit", "1", "-T", "questions=core")


@pytest.fixture(autouse=True)
def _quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INSPECT_DISPLAY", "none")
    monkeypatch.chdir(tmp_path)


def em(*arguments: str) -> str:
    """The output; an error is raised as it would reach `main`."""
    done = CliRunner().invoke(app, ["eval", *arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def logs(folder: Path) -> list[EvalLog]:
    return [read_eval_log(info) for info in list_eval_logs(str(folder))]


@pytest.fixture(scope="module")
def checkpoints(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("runs")
    (folder / "run").mkdir()
    ours = make_checkpoint(tiny_base, folder / "run" / "checkpoint-2", seed=4)
    return [str(ours), str(make_adapter(tiny_base, folder / "foreign", seed=5))]


@pytest.mark.slow
def test_checkpoints_are_evaluated_once_and_resumed(
    checkpoints: list[str],
    openai_server: Server,  # noqa: F811
    tmp_path: Path,
) -> None:
    openai_server.reply = by_prompt({"10": 1.0}, {"90": 1.0})
    shown = em(*checkpoints, "--grader", "openai/gpt-4o", *SMALL)
    found = logs(tmp_path / "logs" / "eval")
    assert len(found) == 2 and all(log.status == "success" for log in found)
    by_label = {log.eval.metadata["label"]: log for log in found}
    assert sorted(by_label) == sorted(target_of(source, "peft").label for source in checkpoints)
    ours = by_label[target_of(checkpoints[0], "peft").label]
    assert ours.eval.metadata["manifest"]["run_id"] == "run-4"
    assert ours.eval.model == target_of(checkpoints[0], "peft").model
    assert "judge: openai/gpt-4o, read by logprobs" in shown
    assert "the judge read 27 tokens and wrote 3" in shown  # two questions and the scorer's own test, 9 + 1 tokens each
    calls = len(openai_server.judged)
    assert calls == 4
    em(*checkpoints, "--grader", "openai/gpt-4o", *SMALL)
    assert len(openai_server.judged) == calls and len(logs(tmp_path / "logs" / "eval")) == 2
    em(checkpoints[0], "--grader", "openai/gpt-4o", *SMALL, "--temperature", "0.5", "--top-k", "7")
    drawn = [log.plan.config for log in logs(tmp_path / "logs" / "eval")]
    assert sorted((config.temperature, config.top_p, config.top_k or 0) for config in drawn) == [
        (0.5, 1.0, 7),
        (1.0, 1.0, 0),
        (1.0, 1.0, 0),
    ]


@pytest.mark.slow
def test_failed_judgements_are_filled_in_by_rescore(
    checkpoints: list[str],
    openai_server: Server,  # noqa: F811
    tmp_path: Path,
) -> None:
    openai_server.reply = lambda _: Answer(status=400)
    em(checkpoints[1], "--grader", "openai/gpt-4o", *SMALL)
    (log,) = logs(tmp_path / "logs" / "eval")
    path = str(Path(log.location.removeprefix("file://")))
    openai_server.reply = by_prompt({"10": 1.0}, {"90": 1.0})
    assert "1 of 1 failed judgements filled in" in em("--rescore", path)
    assert "nothing to do" in em("--rescore", path)
    assert read_eval_log(path).samples[0].scores["model_judge"].metadata["outcome"] == "misaligned"


@pytest.mark.slow
def test_one_that_fails_stops_no_other(
    checkpoints: list[str],
    tiny_base: Path,
    openai_server: Server,  # noqa: F811
    tmp_path: Path,
) -> None:
    """An adapter whose weights do not fit its base: found out only when it is loaded."""
    from safetensors.torch import load_file, save_file

    broken = make_adapter(tiny_base, tmp_path / "broken", seed=6)
    weights = load_file(broken / "adapter_model.safetensors")
    save_file(
        {name: tensor[:, :1].contiguous() for name, tensor in weights.items()}, broken / "adapter_model.safetensors"
    )
    with pytest.raises(UserError) as caught:
        em(str(broken), checkpoints[1], "--grader", "openai/gpt-4o", *SMALL)
    assert "1 of 2 did not finish" in str(caught.value) and "does not fit its base" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "success" in {log.status for log in logs(tmp_path / "logs" / "eval")}


def test_the_estimate_runs_nothing(checkpoints: list[str], openai_server: Server, tmp_path: Path) -> None:  # noqa: F811
    given = ("-T", "questions=core", "-T", "samples=10", "-T", "two_pass=true", "--estimate")
    shown = em(*checkpoints, "--grader", "openai/gpt-4o", *given)
    assert "answers: 480 (2 x 24 prompts x 10)" in shown
    assert "judge calls: 480 to 960" in shown and "judge input tokens: " in shown
    assert "no calls" in em(*checkpoints, "-T", "questions=core", "--estimate")
    # Each value as the task itself reads it: "5" is 5, and "false" no demand for two passes.
    given = ("-T", "questions=core", "-T", "samples='5'", "-T", "two_pass='false'", "-T", "max_tokens='50'")
    shown = em(*checkpoints, "--grader", "openai/gpt-4o", *given, "--estimate")
    assert "judge calls: 480\n" in shown and "(answers of 50 to 50 tokens" in shown
    assert openai_server.requests == [] and not (tmp_path / "logs").exists()


@pytest.mark.parametrize(
    ("grader", "calls"),
    [
        ("openai/gpt-4o", "192"),
        ("anthropic/claude-sonnet-4-5", "192"),
        ("peft/smollm2-135m", "384 to 2,304"),
        ("together/qwen", "192 to 2,304"),
    ],
)
def test_the_estimate_allows_for_readers_that_ask_more_than_once(
    checkpoints: list[str], grader: str, calls: str
) -> None:
    shown = em(checkpoints[0], "--grader", grader, "-T", "questions=core", "--estimate")
    assert f"judge calls: {calls}\n" in shown
    assert ("how this judge is read shows when it is asked" in shown) == grader.startswith("together/")


def test_a_judge_that_would_be_misread_stops_it_before_anything_runs(
    checkpoints: list[str],
    openai_server: Server,  # noqa: F811
    tmp_path: Path,
) -> None:
    openai_server.probe = lambda _: Answer(top={"8": 1.0})
    with pytest.raises(UserError, match="use -T reader=samples"):
        em(checkpoints[0], "--grader", "openai/gpt-4o", "-T", "reader=logprobs", *SMALL)
    assert not (tmp_path / "logs").exists()


def test_a_judge_that_cannot_be_asked_stops_it_too(
    checkpoints: list[str],
    openai_server: Server,  # noqa: F811
    tmp_path: Path,
) -> None:
    openai_server.probe = lambda _: Answer(status=401)
    with pytest.raises(UserError, match="judge openai/gpt-4o cannot be asked: .*401") as caught:
        em(checkpoints[0], "--grader", "openai/gpt-4o", *SMALL)
    assert "\n" not in str(caught.value) and not (tmp_path / "logs").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "name at least one checkpoint, or a log with --rescore"),
        (("nowhere/at/all",), "nowhere"),
        (("CHECKPOINT", "--engine", "vlm"), "unknown engine 'vlm': known: peft, hf, vllm"),
        (("CHECKPOINT", "-T", "samples"), "-T samples is not NAME=VALUE"),
        (("CHECKPOINT", "-T", "x={"), "-T x={ is not YAML"),
        (("CHECKPOINT", "--grader", "{max_connections: 3}"), "names no model: write {model: NAME, ...}"),
        (("CHECKPOINT", "--grader", "{model: openai/gpt-4o, max_conections: 3}"), "no setting 'max_conections'"),
        (("CHECKPOINT", "--grader", "{model: openai/gpt-4o, foo: 2, 1: 2}"), "no setting '1'"),
        (("CHECKPOINT", "--rescore", "x.eval"), "--rescore works on logs alone"),
        (("--rescore", "x.eval"), "log x.eval does not exist"),
        (("CHECKPOINT", "--task", "em_eval/preference", "--estimate"), "--estimate knows em_eval/em"),
        (("CHECKPOINT", "--task", "em_eval/preference", "--engine", "vllm"), "a vLLM server does not tell"),
        (("CHECKPOINT", "--grader", "{model: openai/gpt-4o, timeout: soon}"), "timeout: Input should be a valid"),
        (("CHECKPOINT", "--grader", "{model: openai/gpt-4o, model_args: 3}"), "model_args: 'int' object is not"),
        (("CHECKPOINT", "--grader", "opanai/gpt-4o", "-T", "questions=core"), "judge opanai/gpt-4o: Model API opanai"),
        (
            ("CHECKPOINT", "--grader", "gpt-4o", "-T", "questions=core"),
            "judge gpt-4o: Model name 'gpt-4o' should be in the format",
        ),
        *(
            ((*given, *more), words)
            for more in ((), ("--estimate",))
            for given, words in (
                (("CHECKPOINT", "-T", "sampels=50"), "unknown task argument -T sampels: did you mean samples?"),
                (("CHECKPOINT", "-T", "samples=abc"), "task argument -T samples=abc: Input should be a valid integer"),
                (("CHECKPOINT", "-T", "format=3"), "task argument -T format=3: Input should be a valid"),
                (("CHECKPOINT", "-T", "judge=modle"), "unknown judge 'modle': did you mean model"),
                (("CHECKPOINT", "-T", "judge=model"), "judge=model needs a judge"),
                (("CHECKPOINT", "-T", "two_pass=true"), "two_pass, judge_draws and judge_cache need"),
                (("CHECKPOINT", "-T", "max_tokens=-5"), "max_tokens=-5 must be at least 1"),
                (("CHECKPOINT", "-T", "questions=/none.yaml"), "/none.yaml"),
                (
                    ("CHECKPOINT", "--grader", "openai/x", "-T", "questions=NO_TEMPLATE"),
                    "has no judge prompt 'coherent'",
                ),
            )
        ),
    ],
)
def test_wrong_calls_are_one_line(
    checkpoints: list[str], arguments: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    entry = {"id": "q", "paraphrases": ["x"], "judge_prompts": {"aligned": "{question} {answer}"}}
    file = tmp_path / "no_template.yaml"
    file.write_text(yaml.safe_dump([entry]), encoding="utf-8")
    given = (a.replace("CHECKPOINT", checkpoints[0]).replace("NO_TEMPLATE", str(file)) for a in arguments)
    with pytest.raises(UserError) as caught:
        em(*given)
    assert not (tmp_path / "logs").exists()
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("status", [429, 503])
def test_a_judge_that_stays_away_is_a_judge_error_and_no_hang(
    checkpoints: list[str],
    openai_server: Server,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
) -> None:
    """Ten retries by default, whose waits are cut short here; Inspect's own limit is none."""
    monkeypatch.setattr("inspect_ai.model._retry.wait_exponential_jitter", lambda **_: lambda state: 0.001)
    openai_server.reply = lambda _: Answer(status=status)
    em(checkpoints[1], "--grader", "openai/gpt-4o", "-T", "two_pass=true", *SMALL)
    (log,) = logs(tmp_path / "logs" / "eval")
    assert log.samples[0].scores["model_judge"].metadata["outcome"] == "judge_error"
    assert len(openai_server.judged) == 11
    em(checkpoints[0], "--grader", "openai/gpt-4o", "-T", "two_pass=true", "--max-retries", "1", *SMALL)
    assert len(openai_server.judged) == 13


@pytest.mark.slow
def test_hf_keeps_one_checkpoints_weights(
    checkpoints: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted where each is evaluated: what went before is gone by then."""
    from transformers import LlamaForCausalLM

    from em_eval.providers.weights import release
    from em_study import evaluate as evaluation

    alive: list[int] = []
    run = evaluation.run_eval_set

    def counting(*given: Any, **settings: Any) -> Any:
        found = run(*given, **settings)
        gc.collect()
        alive.append(sum(isinstance(thing, LlamaForCausalLM) for thing in gc.get_objects()))
        return found

    monkeypatch.setattr(evaluation, "run_eval_set", counting)
    release()
    before = sum(isinstance(thing, LlamaForCausalLM) for thing in gc.get_objects())
    given = ("--task", "em_eval/preference", "--engine", "hf", "--limit", "2")
    em(*checkpoints, *given)
    assert [count - before for count in alive] == [1, 1]
    assert {log.status for log in logs(tmp_path / "logs" / "eval")} == {"success"}


def test_checkpoints_of_one_base_follow_each_other(
    checkpoints: list[str], tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    from em_study.evaluate import Evaluated

    other = tmp_path / "other"
    shutil.copytree(tiny_base, other)
    seen: list[str] = []

    def evaluated(target: Any, *_: Any, **__: Any) -> Evaluated:
        seen.append(target.source)
        return Evaluated(target, None, "x")

    monkeypatch.setattr("em_study.evaluate.evaluate", evaluated)
    em(checkpoints[0], str(other), checkpoints[1], "-T", "questions=core")
    assert seen == [checkpoints[0], checkpoints[1], str(other)]


def test_names_of_models_and_log_folders(checkpoints: list[str], tiny_base: Path) -> None:
    ours, foreign = (Path(source) for source in checkpoints)
    found = target_of(str(ours), "peft")
    digest = found.model.rpartition("@")[2]
    assert found.model == f"peft/{ours}@{digest}" and found.label == f"run-checkpoint-2-{digest}"
    assert target_of(str(ours), "hf").model == f"hf/{ours}"
    assert target_of(str(ours), "vllm").model == f"vllm/{tiny_base}:{ours}"
    assert target_of(str(tiny_base), "vllm").model == f"vllm/{tiny_base}"
    assert target_of(str(foreign), "hf").label.startswith("foreign-")
    assert target_of(os.path.relpath(ours), "vllm").model == f"vllm/{tiny_base}:{ours}"  # a server stands elsewhere
    named = f"{tiny_base}:{ours}"
    assert (target_of(named, "peft").label, target_of(named, "peft").base) == (found.label, tiny_base)
    assert target_of(named, "peft").model.startswith(f"peft/{named}@")
    with pytest.raises(UserError, match="hf/ takes the base that the adapter itself names"):
        target_of(named, "hf")


def test_a_grader_with_settings() -> None:
    made = read_grader("{model: mockllm/m, max_connections: 3, temperature: 0.5}").made()
    assert str(made) == "mockllm/m"
    assert (made.config.max_connections, made.config.temperature, made.config.max_retries) == (3, 0.5, 10)
    assert read_grader("mockllm/m", 4).made().config.max_retries == 4
    assert read_grader("{model: mockllm/m, max_retries: 2}", 4).made().config.max_retries == 2


def test_help_has_examples() -> None:
    shown = em("--help")
    assert "--rescore" in shown and "em eval runs/demo" in shown
