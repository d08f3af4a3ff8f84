"""Evaluate checkpoints one by one, each as an Inspect eval set of its own: what is finished is skipped, what was cut
short is resumed, and one that fails stops no other."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inspect_ai.log import EvalLog
from inspect_ai.model import Model, get_model

from em_core.errors import UserError
from em_core.manifest import MANIFEST, read_manifest
from em_eval.connections import beginning_with
from em_eval.model_names import split_base
from em_eval.providers.peft import MOST_REQUESTS
from em_eval.providers.vllm_server import VllmServers, vllm_name
from em_eval.providers.weights import content_hash, parts, release

# What each engine needs to be fast: `peft/` and `vllm/` fill their own batches from all that they get at once, `hf/`
# works in static batches, which waiting judges must not starve.
ENGINES: dict[str, dict[str, Any]] = {
    "peft": {"adaptive_connections": beginning_with(MOST_REQUESTS), "max_samples": MOST_REQUESTS},
    "hf": {"max_connections": 32, "max_samples": 96},
    "vllm": {"adaptive_connections": beginning_with(256), "max_samples": 512},
}
SCORES_GIVEN_TEXT = ("em_eval/preference",)  # no server says how likely a text is


@dataclass(frozen=True)
class Target:
    """A checkpoint (or base model) to evaluate: Inspect's name for it, and the name of its log folder.

    `base` and `adapter` are what a vLLM server needs; a base model has no adapter.
    """

    source: str
    model: str
    label: str
    base: Path
    adapter: Path | None


@dataclass(frozen=True)
class Usage:
    """Tokens that the judge read and wrote, as its provider counted them; cost in dollars where Inspect knows it."""

    input_tokens: int = 0
    output_tokens: int = 0
    cost: float | None = None


@dataclass(frozen=True)
class Evaluated:
    """`reason` says in one line why it did not finish; None where it did. `log` is its file."""

    target: Target
    reason: str | None
    log: str | None = None
    usage: Usage | None = None


def target_of(source: str, engine: str, as_given: bool = False) -> Target:
    """The model name and log folder of a checkpoint folder, adapter, base folder or base name.

    The log folder carries a hash of the weights: other weights under the same path are another evaluation.

    Args:
        as_given: `peft/` names a folder by the path given, and not by its absolute one, so that what was begun goes on
            after the whole working folder moved.

    Raises:
        UserError: nothing of that name, or weights that its manifest does not describe.
    """
    if engine not in ENGINES:
        raise UserError(f"unknown engine '{engine}': known: {', '.join(ENGINES)}")
    digest = content_hash(source)
    found, info = parts(source)
    path = (found or info.path).resolve()
    base, adapter = (info.path, path) if found else (path, None)
    is_folder = Path(source).is_dir()
    if engine == "hf" and split_base(source)[0]:
        raise UserError(f"{source}: hf/ takes the base that the adapter itself names: em checkpoint relink sets it")
    if engine == "peft":
        model = f"peft/{path if is_folder and not as_given else source}@{digest}"
    elif engine == "vllm":
        model = vllm_name(base, adapter)
    else:
        model = f"{engine}/{path}"
    named = [path.parent.name, path.name] if (path / MANIFEST).is_file() else [path.name if is_folder else source]
    return Target(source, model, "-".join([*named, digest]).replace("/", "-"), base, adapter)


def check_engine(task: str, engine: str) -> None:
    """Whether `engine` can do what `task` asks.

    Raises:
        UserError: it cannot.
    """
    if engine == "vllm" and task in SCORES_GIVEN_TEXT:
        raise UserError(f"{task} needs likelihoods of given text, which a vLLM server does not tell: use engine peft")


def by_base(targets: list[Target]) -> dict[Path, list[Target]]:
    """The targets in the order of their bases' first ones: engines keep one base at a time."""
    found: dict[Path, list[Target]] = {}
    for target in targets:
        found.setdefault(target.base, []).append(target)
    return found


@contextmanager
def under_test(
    target: Target, engine: str, servers: VllmServers | None = None, model_args: dict[str, Any] | None = None
) -> Iterator[tuple[str | Model, dict[str, Any]]]:
    """While this lasts, what `eval_set` takes as the model, and the settings that go with it."""
    if servers is not None:
        yield servers.model(target.base, target.adapter), {}
    elif engine == "hf":
        # By name Inspect would keep this model's weights, and those of all after it, to the end of the process.
        release()
        try:
            with get_model(target.model, memoize=False, **(model_args or {})) as model:
                yield model, {}
        finally:
            release()
    else:
        yield target.model, {"model_args": model_args or {}}


def evaluate(
    target: Target,
    engine: str,
    log_dir: Path,
    task: str,
    task_args: dict[str, Any],
    grader: Any = None,
    servers: VllmServers | None = None,
    model_args: dict[str, Any] | None = None,
    **settings: Any,
) -> Evaluated:
    """One task on one checkpoint. A failure is returned, not raised: the next checkpoint is not to blame.

    Args:
        target: see `target_of`.
        engine: one of `ENGINES`.
        log_dir: the target's label is appended.
        task: "em_eval/em", or any other task that Inspect knows.
        task_args: its arguments.
        grader: model of role `grader`, by name or as an Inspect model.
        servers: what runs the checkpoints of engine "vllm"; they have their model arguments already.
        model_args: for the other engines.
        settings: further settings of `inspect_ai.eval_set`.
    """
    folder = Path(target.source)
    manifest = read_manifest(folder).for_log() if (folder / MANIFEST).is_file() else None
    about = {"label": target.label, "manifest": manifest}
    try:
        with under_test(target, engine, servers, model_args) as (model, given):
            more = ENGINES[engine] | settings | given
            log, reason = run_eval_set(task, model, log_dir / target.label, task_args, grader, about, **more)
    except Exception as error:
        found = getattr(error, "message", None) or str(error) or type(error).__name__
        return Evaluated(target, str(found).strip().splitlines()[0])
    if reason and servers and (ended := servers.ended()):
        reason = ended
    if log is None:
        return Evaluated(target, reason)
    used = (log.stats.role_usage or {}).get("grader")
    usage = Usage(used.input_tokens, used.output_tokens, used.total_cost) if used else None
    return Evaluated(target, reason, log.location, usage)


def run_eval_set(
    task: str,
    model: str | Model,
    folder: Path,
    task_args: dict[str, Any],
    grader: Any,
    metadata: dict[str, Any],
    **settings: Any,
) -> tuple[EvalLog | None, str | None]:
    """One task as an Inspect eval set of one, so that a partial log is resumed; its log, and why it did not finish."""
    from inspect_ai import eval_set

    ok, logs = eval_set(
        task,
        task_args=task_args,
        log_dir=str(folder),
        model=model,
        model_roles={"grader": grader} if grader else None,
        metadata=metadata,
        retry_attempts=2,
        log_dir_allow_dirty=True,
        acp_server=False,
        ctl_server=False,
        **settings,
    )
    if not logs:
        return None, "no log was written"
    failed = next((log.error.message.splitlines()[0] for log in logs if log.error), "no reason given")
    logs[0].location = logs[0].location.removeprefix("file://")  # of a log that was there already, Inspect gives an URI
    return logs[0], None if ok else failed
