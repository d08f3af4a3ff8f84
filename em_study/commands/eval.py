"""`em eval`: one task on many checkpoints, the cost before, the usage after, and what the judge failed on."""

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console

from em_core.errors import UserError

EXAMPLES = """\
Examples:

em eval runs/demo/*/checkpoint-34 --grader openai/gpt-4o-2024-08-06

em eval runs/demo/*/checkpoint-34 --grader openai/gpt-4o-2024-08-06 -T samples=50 --estimate

em eval smollm2-135m RUN/checkpoint-34 -T questions=core --engine hf

em eval runs/demo/*/checkpoint-* --engine vllm -M tensor_parallel_size=2

em eval --rescore logs/eval/RUN-checkpoint-34-1a2b3c4d/LOG.eval"""

JUDGE_ARGUMENTS = {"reader": "reader", "two_pass": "two_pass", "judge_draws": "draws", "judge_cache": "cache"}
console = Console(highlight=False, soft_wrap=True)


def add(app: typer.Typer) -> None:
    app.command("eval", epilog=EXAMPLES)(evaluate)


def evaluate(
    checkpoints: Annotated[
        list[str] | None,
        typer.Argument(help="checkpoint folders, adapters, or base models by name", show_default=False),
    ] = None,
    task: Annotated[str, typer.Option(help="an Inspect task")] = "em_eval/em",
    task_args: Annotated[
        list[str] | None, typer.Option("-T", metavar="NAME=VALUE", help="task argument, as for inspect eval")
    ] = None,
    grader: Annotated[
        str | None, typer.Option(help="judge: a model name, or '{model: NAME, max_connections: 10, ...}'")
    ] = None,
    engine: Annotated[str, typer.Option(help="what runs the checkpoints: peft, hf or vllm")] = "peft",
    model_args: Annotated[
        list[str] | None,
        typer.Option("-M", metavar="NAME=VALUE", help="model argument, as for inspect eval; with vllm, of its server"),
    ] = None,
    log_dir: Annotated[Path, typer.Option(help="one folder a checkpoint is made in it")] = Path("logs/eval"),
    limit: Annotated[int | None, typer.Option(help="only so many prompts")] = None,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="print the judge's calls and tokens, run nothing")
    ] = False,
    rescore: Annotated[
        list[Path] | None, typer.Option(help="judge again what the judge failed on in this log; generates nothing")
    ] = None,
) -> None:
    """Evaluate checkpoints, each in a log folder of its own. Killed anywhere, the same call goes on from there."""
    if rescore:
        if checkpoints:
            raise UserError(f"--rescore works on logs alone: leave out {checkpoints[0]}")
        return _rescore(rescore, grader)
    if not checkpoints:
        raise UserError("name at least one checkpoint, or a log with --rescore")
    arguments = _named(task_args or [], "-T")
    given = _named(model_args or [], "-M")
    judge = _grader(grader)
    if estimate:
        return _estimate(len(checkpoints), task, arguments, judge is not None, limit)
    _run(checkpoints, engine, given, log_dir, task, arguments, judge, limit)


def _run(
    checkpoints: list[str],
    engine: str,
    model_args: dict[str, Any],
    log_dir: Path,
    task: str,
    arguments: dict[str, Any],
    judge: Any,
    limit: int | None,
) -> None:
    from em_study.evaluate import by_base, evaluate, target_of

    targets = [target_of(source, engine) for source in checkpoints]  # a wrong name stops it before any work
    failures = []
    with ExitStack() as stack:
        servers = None
        if engine == "vllm":
            from em_eval.providers.vllm_server import VllmServers

            bases = by_base(targets)
            targets = [target for group in bases.values() for target in group]
            adapters = {base: [target.adapter for target in group] for base, group in bases.items()}
            servers = stack.enter_context(VllmServers(adapters, log_dir, model_args).kept())
        if judge is not None and task == "em_eval/em" and arguments.get("judge", "auto") in {"auto", "model"}:
            _check_judge(judge, str(arguments.get("reader", "auto")))
        for number, target in enumerate(targets, 1):
            console.print(f"[{number}/{len(targets)}] {target.source}", markup=False)
            done = evaluate(target, engine, log_dir, task, arguments, judge, servers, model_args, limit=limit)
            if done.usage:
                cost = f", {done.usage.cost:.2f} $" if done.usage.cost else ""
                read, wrote = done.usage.input_tokens, done.usage.output_tokens
                console.print(f"the judge read {read:,} tokens and wrote {wrote:,}{cost}")
            if done.reason:
                failures.append(f"{target.source}: {done.reason}")
            else:
                console.print(f"log: {done.log}", markup=False)
    if failures:
        raise UserError(
            f"{len(failures)} of {len(targets)} did not finish (call again to go on): {'; '.join(failures)}"
        )


def _check_judge(judge: Any, reader: str) -> None:
    """The self-test of the scorer, before hours of generation rather than after."""
    import anyio
    from inspect_ai.model import GenerateConfig, get_model

    from em_eval.judge.selftest import choose

    made = (
        judge if not isinstance(judge, str) else get_model(judge, config=GenerateConfig(max_retries=2), memoize=False)
    )
    try:
        chosen = anyio.run(choose, made, reader)
    except UserError:
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"judge {judge} cannot be asked: {type(error).__name__}: {reason}") from error
    console.print(f"judge: {made}, read by {chosen}", markup=False)


def _estimate(checkpoints: int, task: str, arguments: dict[str, Any], judged: bool, limit: int | None) -> None:
    from em_eval.judge.estimate import ANSWER_TOKENS, estimate
    from em_eval.judge.settings import JudgeSettings
    from em_eval.task import DEFAULT_MAX_TOKENS, DEFAULT_QUESTIONS, DEFAULT_SAMPLES, answers_a_prompt, choose

    if task != "em_eval/em":
        raise UserError(f"--estimate knows em_eval/em, not {task}")
    settings = JudgeSettings(**{ours: arguments[name] for name, ours in JUDGE_ARGUMENTS.items() if name in arguments})
    tags = {name: arguments.get(name) for name in ("format", "category", "exclude_domain")}
    chosen = choose(arguments.get("questions", DEFAULT_QUESTIONS), **tags)
    samples = answers_a_prompt(chosen, arguments.get("samples"), arguments.get("preset"), DEFAULT_SAMPLES)
    longest = int(arguments.get("max_tokens", DEFAULT_MAX_TOKENS))
    questions = [(prompt.question, prompt.judge_prompts) for prompt in chosen[:limit]]
    found = estimate(questions, samples, longest, settings)
    console.print(f"answers: {checkpoints * found.answers:,} ({checkpoints} x {len(questions)} prompts x {samples})")
    if not judged or arguments.get("judge") == "embedded":
        console.print("judge: the embedded one, no calls (name a model with --grader)")
        return
    for name, (least, most) in (
        ("judge calls", found.calls),
        ("judge input tokens", found.input_tokens),
        ("judge output tokens", found.output_tokens),
    ):
        least, most = checkpoints * least, checkpoints * most
        console.print(f"{name}: {least:,}" if least == most else f"{name}: {least:,} to {most:,}")
    console.print(f"(answers of {ANSWER_TOKENS} to {longest} tokens, 4 characters a token)")


def _rescore(logs: list[Path], grader: str | None) -> None:
    from em_eval.rescore import rescore

    for log in logs:
        done = rescore(log, _grader(grader))
        if not done.asked:
            console.print(f"{log}: the judge failed on no answer, nothing to do", markup=False)
        else:
            filled = done.asked - done.failed
            console.print(f"{log}: {filled} of {done.asked} failed judgements filled in", markup=False)


def _named(given: list[str], option: str) -> dict[str, Any]:
    found = {}
    for item in given:
        name, equals, value = item.partition("=")
        if not equals or not name:
            raise UserError(f"{option} {item} is not NAME=VALUE")
        found[name] = _yaml(value, f"{option} {item}")
    return found


def _grader(given: str | None) -> Any:
    """A model's name, or an Inspect model with settings of its own, as `--model-role grader=` takes them."""
    if given is None or not given.lstrip().startswith("{"):
        return given
    from inspect_ai.model import GenerateConfig, get_model

    settings = _yaml(given, "--grader")
    if "model" not in settings:
        raise UserError(f"--grader {given} names no model: write {{model: NAME, ...}}")
    model, url, more = settings.pop("model"), settings.pop("base_url", None), settings.pop("model_args", {})
    unknown = set(settings) - set(GenerateConfig.model_fields)
    if unknown:
        raise UserError(f"--grader has no setting '{sorted(unknown)[0]}': it takes those of Inspect's GenerateConfig")
    return get_model(model, config=GenerateConfig(**settings), base_url=url, **more)


def _yaml(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{where} is not YAML: {str(error).splitlines()[0]}") from error
