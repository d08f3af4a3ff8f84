"""Run a study: train every cell, evaluate its kept checkpoints, on whatever executor.

Training and evaluating a cell are two idempotent commands on a frozen file (`em cell`): what is finished is left
alone, what was killed goes on, a failure keeps its traceback in `error.txt` and never stops another cell.
"""

import os
import shutil
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from filelock import FileLock
from rich.console import Console

from em_core.allocation import return_freed_memory
from em_core.errors import UserError
from em_core.files import sha256_json, write_text
from em_core.manifest import ADAPTER, MANIFEST, Manifest, manifest_or_none, read_manifest
from em_study.logs import Logs, contents_of, log_folder
from em_study.plan import RUNS, FrozenCell, Plan, existing_run, has_step_0, is_done, place, thaw, with_bases
from em_study.study import JUDGED_BY, TAGS, Evaluation

console = Console(stderr=True, highlight=False, soft_wrap=True)
Kind = Literal["train", "evaluate"]
WORK: dict[Kind, str] = {"train": "training", "evaluate": "evaluation"}
ERROR = "error.txt"
LEFT_OUT = ": left out ("  # in a line of `absent`: on purpose
LOCKS = RUNS / ".locks"


@dataclass(frozen=True)
class Job:
    """A unit of work on one cell; `cell` is its frozen file, relative to the folder of the study's run."""

    kind: Kind
    cell: Path
    label: str


@dataclass(frozen=True)
class Target:
    """A checkpoint to report.

    Attributes:
        label: also names its log folder.
        asked: the study's evaluations of it, by name.
        manifest: as its logs carry it, where there are logs alone and no run folder; None where the folder has it.
        told: then, all manifests of the run that its logs carry, in order of steps.
        run_done: then, whether the last checkpoint that the study asks of is among those.
    """

    label: str
    checkpoint: Path
    asked: tuple[str, ...] = ()
    manifest: Manifest | None = None
    told: tuple[Manifest, ...] = ()
    run_done: bool | None = None


def perform(root: str, kind: Kind, cell: str, keep_server: bool = False) -> list[str]:
    """One job, in whatever process and on whatever machine; returns one line a failure, and raises none.

    Args:
        root: folder that holds `runs/` and `logs/`, the same for all machines.
        cell: the frozen cell's file, relative to `root`.
        keep_server: leave a vLLM server running for the next evaluation in this process, whose GPU is its own.
    """
    from em_study import servers
    from em_study.quiet import quiet_environment

    quiet_environment()
    try:
        os.chdir(root)
        os.environ["PWD"] = root  # what a relative prompt file is found by
        frozen = thaw(Path(cell))
        if kind == "train":
            servers.stop()  # it holds the GPU
            return train_cell(frozen)
        return evaluate_cell(frozen)
    except Exception as error:
        return [f"{WORK[kind]} of {Path(cell).stem} failed: {type(error).__name__}: {_first_line(error)}"]
    finally:
        if not keep_server:
            servers.stop()


def train_cell(cell: FrozenCell) -> list[str]:
    """Train what is not trained yet. Two processes on one run never train it at once: the second waits."""
    from em_train.preparation import resolve_run
    from em_train.run import train

    folder = cell.folder
    try:
        with _alone(cell.run_id):
            folder = place(cell)
            if (found := resolve_run(cell.config).run_id) != cell.run_id:
                raise UserError(
                    f"the contents of this cell make run {found} here, it was planned as {cell.run_id}: data, base "
                    "or hardware changed; call em run again, with dtype float32 or bfloat16 in the study file where "
                    "machines differ"
                )
            console.print(f"training {cell.label}")
            # What an archive left of a cell that is to be trained again: training would take it for done.
            if (bare := _without_weights(cell)) and not is_trained(cell, Logs()):
                for checkpoint in bare:
                    shutil.rmtree(checkpoint)
            train(cell.config, folder)
    except Exception as error:  # one cell's failure never stops another's
        return [_keep_failure(folder, f"training of {cell.label}", error)]
    finally:
        return_freed_memory()
    (folder / ERROR).unlink(missing_ok=True)
    return []


def is_trained(cell: FrozenCell, logs: Logs) -> bool:
    """Whether every checkpoint of the cell is there, here or in another study (then a link is made).

    Without its weights, as an archive has it, only if nothing is left to be asked of it.
    """
    from em_train.run_folder import finished

    if existing_run(cell) is None:
        return False
    folder = place(cell)
    kept = all(checkpoint_of(cell, path) for path in cell.checkpoints())
    if not kept or not finished(folder, cell.run_id):
        return False
    return not _without_weights(cell) or is_evaluated(cell, logs)


def _without_weights(cell: FrozenCell) -> list[Path]:
    """The checkpoints of which there is the manifest alone."""
    kept = [path for path in cell.checkpoints() if checkpoint_of(cell, path)]
    return [path for path in kept if not (path / ADAPTER).is_file()]


def evaluate_cell(cell: FrozenCell) -> list[str]:
    """Every evaluation of the cell's checkpoints that has no finished log yet; of a failed run, those that it left."""
    return [
        failure
        for label, checkpoint, evaluation in cell.asked()
        if checkpoint_of(cell, checkpoint)
        if (failure := evaluate(cell.study, label, checkpoint, evaluation)) is not None
    ]


def is_evaluated(cell: FrozenCell, logs: Logs) -> bool:
    """Whether every evaluation of what the cell left on the disk has a finished log."""
    return all(
        logs.find(cell.study, label, manifest, evaluation)
        for label, checkpoint, evaluation in cell.asked()
        if (manifest := checkpoint_of(cell, checkpoint))
    )


def evaluate(study: str, label: str, checkpoint: Path, evaluation: Evaluation) -> str | None:
    """One evaluation of one checkpoint; a line on failure, with the traceback kept beside the logs."""
    name = f"{label}: {evaluation.name}"
    error_file = log_folder(study, label) / evaluation.name / ERROR
    try:
        manifest = read_manifest(checkpoint)
        with _alone(evaluation_key(manifest, evaluation)):
            logs = Logs()
            if logs.find(study, label, manifest, evaluation) is None:
                folder = logs.folder_for(study, label, evaluation)
                reason = _inspect(study, label, checkpoint, evaluation, folder)
                if reason is not None:
                    write_text(error_file, f"{reason}\n")
                    return f"evaluation {name} did not finish ({reason}): see {folder}"
    except Exception as error:
        return _keep_failure(error_file.parent, f"evaluation {name}", error)
    finally:
        return_freed_memory()
    error_file.unlink(missing_ok=True)
    return None


def evaluation_key(manifest: Manifest, evaluation: Evaluation) -> str:
    """Names the lock of one evaluation of these weights."""
    later = (*JUDGED_BY, *TAGS)  # which other versions of ours, at work beside this one, do not have
    content = evaluation.model_dump(mode="json", exclude={"name", "checkpoints", *later}) | evaluation.given(later)
    return sha256_json([manifest.adapter_sha256, content])[:16]


def _inspect(study: str, label: str, checkpoint: Path, evaluation: Evaluation, folder: Path) -> str | None:
    """One Inspect task as an eval set of one, so that a partial log is resumed; why it did not finish, or None."""
    from em_study import servers
    from em_study.counting import counted
    from em_study.evaluate import ENGINES, run_eval_set, target_of, under_test
    from em_study.grader import read_grader

    started = time.monotonic()
    console.print(f"  {label}: {evaluation.name} ...", end=" ")
    about = {
        "study": study,
        "label": label,
        "evaluation": evaluation.name,
        "contents": contents_of(evaluation),
        "manifest": read_manifest(checkpoint).for_log(),
    }
    target = target_of(str(checkpoint), evaluation.engine, as_given=True)
    serving = None
    if evaluation.engine == "vllm":
        serving = servers.servers_for(target, RUNS / study / "servers")
    else:
        servers.stop()
    with counted(folder), under_test(target, evaluation.engine, serving) as (model, given):
        _, reason = run_eval_set(
            f"em_eval/{evaluation.task}",
            model,
            folder,
            evaluation.arguments(),
            read_grader(evaluation.grader).made() if evaluation.grader else None,
            about,
            display="none",
            log_level="error",
            **(ENGINES[evaluation.engine] | evaluation.sampling() | given),
        )
    if reason and serving and (ended := serving.ended()):
        reason = ended
    console.print(f"{'not finished' if reason else 'done'} ({time.monotonic() - started:.0f} s)")
    return reason


def existing(plan: Plan) -> list[Target]:
    """The checkpoints that are there already, bases first, then in order of cells, without training anything.

    Of a cell that has no run folder here, those that its logs tell of.
    """
    found: list[Target] = []
    bases: list[Target] = []
    logs = Logs()
    for cell in _based(plan, logs).cells:
        place(cell)
        told = _told(cell, logs)
        own = tuple(manifest for manifest in told.values() if manifest.run_id == cell.run_id)
        run_done = max(map(_step, _asked(cell)), default=-1) in told if told else None
        for label, checkpoint in cell.targets():
            manifest = told.get(_step(checkpoint.name))
            if manifest or checkpoint_of(cell, checkpoint):
                asked = tuple(evaluation.name for other, _, evaluation in cell.asked() if other == label)
                target = Target(label, checkpoint, asked, manifest, own, run_done)
                (bases if label == cell.base_label else found).append(target)
    return bases + found


def something(plan: Plan, study_file: Path) -> list[Target]:
    """As `existing`, for who can do nothing without.

    Raises:
        UserError: nothing is there.
    """
    found = existing(plan)
    if not found:
        raise UserError(f"study '{plan.study}' has no checkpoint here, nor a log of one: em run {study_file} first")
    return found


def _based(plan: Plan, logs: Logs) -> Plan:
    """With the base model at the first cell that has its answers, or could have them: by its folder or by logs."""

    def order(cell: FrozenCell) -> int:
        if has_step_0(cell):
            return 0
        told = logs.told(cell.run_id)
        return 0 if 0 in told else 1 if told else 2

    return with_bases(plan, order)


def _told(cell: FrozenCell, logs: Logs) -> dict[int, Manifest]:
    """By step, the manifests in the logs of a cell that has no run folder here; its step 0 may be another run's."""
    if cell.folder.exists():
        return {}
    told = logs.told(cell.run_id)
    if told and cell.base_label is not None and 0 not in told:
        base = logs.told_base(next(iter(told.values())).base.weights_sha256)
        return told if base is None else {0: base} | told
    return told


def _asked(cell: FrozenCell) -> set[str]:
    """Names of the checkpoint folders that the study asks something of."""
    return {checkpoint.name for _, checkpoint, _ in cell.asked()}


def _step(name: str) -> int:
    return int(name.removeprefix("checkpoint-"))


def absent(plan: Plan) -> list[str]:
    """What the plan asks for and the disk does not hold, a line a cell: left out, failed or not trained to its end."""
    lines = [f"{label}{LEFT_OUT}{why})" for label, why in plan.left_out.items()]
    logs = Logs()
    for cell in _based(plan, logs).cells:
        folder = place(cell)
        told = _told(cell, logs)
        steps = cell.steps()
        if told:  # no log could tell of what nobody asked of
            asked = set(map(_step, _asked(cell)))
            steps = [step for step in steps if step in asked]
        paths = {step: folder / f"checkpoint-{step}" for step in steps}
        lost = [step for step, path in paths.items() if step not in told and not (path / MANIFEST).is_file()]
        damaged = [path for path in paths.values() if (path / MANIFEST).is_file() and not checkpoint_of(cell, path)]
        if lost:
            lines.append(f"{cell.label}: no checkpoint at step {', '.join(map(str, lost))}")
        elif not told and not is_done(folder):
            lines.append(f"{cell.label}: not trained to its end")
        lines += [f"{cell.label}: {path / MANIFEST} is damaged, or another checkpoint's" for path in damaged]
    return lines


def checkpoint_of(cell: FrozenCell, folder: Path) -> Manifest | None:
    """The manifest of one of the cell's checkpoints; None where there is none, half a one, or another checkpoint's."""
    manifest = manifest_or_none(folder)
    if manifest is None or (manifest.run_id, f"checkpoint-{manifest.step}") != (cell.run_id, folder.name):
        return None
    return manifest


@contextmanager
def _alone(key: str) -> Iterator[None]:
    """Hold the lock of one run or evaluation; a killed process gives it back."""
    LOCKS.mkdir(parents=True, exist_ok=True)
    with FileLock(LOCKS / f"{key}.lock"):
        yield


def _keep_failure(folder: Path, what: str, error: Exception) -> str:
    path = folder / ERROR
    write_text(path, "".join(traceback.format_exception(error)))
    return f"{what} failed: {_first_line(error)} (see {path})"


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def keep_death(job: Job, how: str) -> str:
    """What a process that died could not leave: a line for its cell in `error.txt`, where its failure would lie.

    Returns:
        The line, with the cell named.
    """
    said = f"{WORK[job.kind]} of {job.label} failed: its process {how}"
    try:
        cell = thaw(job.cell)
        folder = cell.folder if job.kind == "train" else _unfinished(cell)
        if folder is None:
            return said
        write_text(folder / ERROR, f"its process {how}\n")
    except (OSError, UserError) as error:
        return f"{said} ({_first_line(error)})"
    return f"{said} (see {folder / ERROR})"


def _unfinished(cell: FrozenCell) -> Path | None:
    """Where the first evaluation without a finished log keeps its failure."""
    logs = Logs()
    for label, checkpoint, evaluation in cell.asked():
        manifest = checkpoint_of(cell, checkpoint)
        if manifest is not None and not logs.find(cell.study, label, manifest, evaluation):
            return log_folder(cell.study, label) / evaluation.name
    return None
