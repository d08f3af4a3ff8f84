"""`em eval`: one task on many checkpoints, the cost before, the usage after, and what the judge failed on."""

from contextlib import ExitStack
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Console

from em_core import strict_yaml
from em_core.errors import UserError
from em_study.sampling import Temperature, TopK, TopP, chosen

if TYPE_CHECKING:
    from em_eval.judge.settings import JudgeSettings
    from em_eval.task import Asked
    from em_study.grader import Grader

EM = "em_eval/em"
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
    task: Annotated[str, typer.Option(help="an Inspect task")] = EM,
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
    limit: Annotated[int | None, typer.Option(help="only so many prompts", min=1)] = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    max_retries: Annotated[
        int | None,
        typer.Option(help="of a judge's failing call, before the answer counts as judge_error \\[default: 10]", min=0),
    ] = None,
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
        return _rescore(rescore, _read(grader, max_retries))
    if not checkpoints:
        raise UserError("name at least one checkpoint, or a log with --rescore")
    arguments = _named(task_args or [], "-T")
    given = _named(model_args or [], "-M")
    judge = _read(grader, max_retries)
    if estimate and task != EM:
        raise UserError(f"--estimate knows em_eval/em, not {task}")
    checked = _checked(arguments) if task == EM else None
    if estimate and checked:
        return _estimate(len(checkpoints), _asked(checked, judge is not None), checked, judge, limit)
    settings = {"limit": limit, **chosen(temperature, top_p, top_k)}
    _run(checkpoints, engine, given, log_dir, task, arguments, checked, judge, settings)


def _run(
    checkpoints: list[str],
    engine: str,
    model_args: dict[str, Any],
    log_dir: Path,
    task: str,
    arguments: dict[str, Any],
    checked: dict[str, Any] | None,
    grader: "Grader | None",
    settings: dict[str, Any],
) -> None:
    from em_study.evaluate import by_base, check_engine, evaluate, target_of

    check_engine(task, engine)  # whatever is wrong stops it before any work
    bases = by_base([target_of(source, engine) for source in checkpoints])
    targets = [target for group in bases.values() for target in group]
    if checked:
        _asked(checked, grader is not None)
    failures = []
    with ExitStack() as stack:
        servers = None
        if engine == "vllm":
            from em_eval.providers.vllm_server import VllmServers

            adapters = {base: [target.adapter for target in group] for base, group in bases.items()}
            servers = stack.enter_context(VllmServers(adapters, log_dir, model_args).kept())
        if grader is not None and task == EM and arguments.get("judge", "auto") in {"auto", "model"}:
            _check_judge(grader, str(arguments.get("reader", "auto")))
        judge = grader.made() if grader else None
        for number, target in enumerate(targets, 1):
            console.print(f"[{number}/{len(targets)}] {target.source}", markup=False)
            done = evaluate(target, engine, log_dir, task, arguments, judge, servers, model_args, **settings)
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


def _check_judge(grader: "Grader", reader: str) -> None:
    """The self-test of the scorer, before hours of generation rather than after."""
    import anyio

    from em_eval.judge.selftest import choose
    from em_study.grader import BEFORE_WORK

    async def ask() -> str:
        async with made:
            return await choose(made, reader)

    most = min(BEFORE_WORK, grader.config.max_retries or 0)
    made = grader.made(apart=True, max_retries=most)
    try:
        chosen = anyio.run(ask)
    except UserError:
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"judge {made} cannot be asked: {type(error).__name__}: {reason}") from error
    console.print(f"judge: {made}, read by {chosen}", markup=False)


def _checked(given: dict[str, Any]) -> dict[str, Any]:
    """All arguments of the em task, of the types that the task itself would make of them.

    Raises:
        UserError: an unknown name, with the nearest known one, or a value of the wrong type.
    """
    from functools import wraps

    from inspect_ai._util.error import PrerequisiteError

    from em_eval._registry import em
    from em_eval.arguments import build
    from em_eval.task import em_task

    known = signature(em_task).parameters
    defaults = {name: parameter.default for name, parameter in signature(em).parameters.items() if name in known}

    @wraps(em_task)
    def as_they_are(**arguments: Any) -> Any:
        return arguments

    try:
        unknown = {name: value for name, value in given.items() if name not in known}
        found = build(as_they_are, unknown, **(defaults | {name: given[name] for name in given if name in known}))
    except PrerequisiteError as error:
        raise error.__cause__ or error from None
    return cast(dict[str, Any], found)


def _asked(arguments: dict[str, Any], grader: bool) -> "Asked":
    from em_eval.task import ask

    named = ("questions", "samples", "preset", "max_tokens", "judge", "format", "category", "exclude_domain")
    return ask(settings=_settings(arguments), grader=grader, **{name: arguments[name] for name in named})


def _settings(arguments: dict[str, Any]) -> "JudgeSettings":
    from em_eval.judge.settings import JudgeSettings

    return JudgeSettings(**{ours: arguments[name] for name, ours in JUDGE_ARGUMENTS.items()})


def _estimate(
    checkpoints: int, asked: "Asked", arguments: dict[str, Any], grader: "Grader | None", limit: int | None
) -> None:
    from em_eval.judge.estimate import ANSWER_TOKENS, estimate
    from em_eval.judge.selftest import foreseen

    questions = [(prompt.question, prompt.judge_prompts) for prompt in asked.prompts[:limit]]
    answers = checkpoints * len(questions) * asked.samples
    console.print(f"answers: {answers:,} ({checkpoints} x {len(questions)} prompts x {asked.samples})")
    if asked.judge != "model" or grader is None:
        hint = "" if grader else " (name a model with --grader)"
        return console.print(f"judge: {asked.judge}, no calls of a model{hint}")
    settings, longest = _settings(arguments), arguments["max_tokens"]
    settings = replace(settings, reader=foreseen(grader.name, settings.reader))
    found = estimate(questions, asked.samples, longest, settings)
    for name, (least, most) in (
        ("judge calls", found.calls),
        ("judge input tokens", found.input_tokens),
        ("judge output tokens", found.output_tokens),
    ):
        least, most = checkpoints * least, checkpoints * most
        console.print(f"{name}: {least:,}" if least == most else f"{name}: {least:,} to {most:,}")
    console.print(f"(answers of {min(ANSWER_TOKENS, longest)} to {longest} tokens, 4 characters a token)")
    if settings.reader == "auto":
        console.print("(how this judge is read shows when it is asked; -T reader= narrows the estimate)")


def _rescore(logs: list[Path], grader: "Grader | None") -> None:
    from em_eval.rescore import rescore

    judge = grader.made() if grader else None
    for log in logs:
        done = rescore(log, judge)
        if not done.asked:
            console.print(f"{log}: the judge failed on no answer, nothing to do", markup=False)
        else:
            filled = done.asked - done.failed
            console.print(f"{log}: {filled} of {done.asked} failed judgements filled in", markup=False)


def _read(grader: str | None, max_retries: int | None) -> "Grader | None":
    from em_study.grader import read_grader

    return read_grader(grader, max_retries) if grader else None


def _named(given: list[str], option: str) -> dict[str, Any]:
    found = {}
    for item in given:
        name, equals, value = item.partition("=")
        if not equals or not name:
            raise UserError(f"{option} {item} is not NAME=VALUE")
        found[name] = _yaml(value, f"{option} {item}")
    return found


def _yaml(text: str, where: str) -> Any:
    try:
        return strict_yaml.load(text)
    except ValueError as error:
        raise UserError(f"{where} is not YAML: {error}") from error
