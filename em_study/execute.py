"""Run a study on this machine: train every cell, evaluate every kept checkpoint, one process, one base in memory.

Each cell is idempotent and isolated: a finished one is skipped, a failed one keeps its traceback and never stops
another, and whatever was killed goes on at the next call.
"""

import gc
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from em_core.errors import UserError
from em_core.files import write_text
from em_core.manifest import MANIFEST, read_manifest
from em_eval.providers.weights import content_hash
from em_study.study import Cell, Evaluation, Study, cells

console = Console(stderr=True, highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Trained:
    """A cell with the checkpoints that it left."""

    cell: Cell
    folder: Path
    checkpoints: list[Path]


@dataclass(frozen=True)
class Target:
    """A checkpoint to evaluate and report. `label` also names its log folder."""

    label: str
    cell: Cell
    checkpoint: Path


def run_folder(study: Study, cell: Cell, run_id: str) -> Path:
    return Path("runs") / study.name / f"{cell.label}-{run_id}"


def train_all(study: Study) -> tuple[list[Trained], list[str]]:
    """Train what is not trained yet; returns (trained cells, one line a failure)."""
    from em_train.run import finished, prepare, train

    trained: list[Trained] = []
    failures: list[str] = []
    planned: list[tuple[Cell, str]] = []
    for cell in cells(study):  # all of them first: a mistake anywhere stops the study before any training
        try:
            planned.append((cell, prepare(cell.config).run_id))
        except UserError as error:
            if not cell.optional:
                raise
            console.print(f"left out {cell.label}: {error}")
    for number, (cell, run_id) in enumerate(planned, 1):
        folder = run_folder(study, cell, run_id)
        state = "done" if finished(folder, run_id) else "training"
        console.print(f"[{number}/{len(planned)}] {cell.label}: {state}")
        try:
            trained.append(Trained(cell, folder, train(cell.config, folder)))
        except Exception as error:  # one cell's failure never stops another's
            failures.append(_keep_failure(folder, f"training of {cell.label}", error))
        gc.collect()  # a trainer holds its model in a cycle of references: free it before the next one
    return trained, failures


def existing(study: Study) -> list[Trained]:
    """The cells that have checkpoints already, finished or not, without training anything."""
    from em_train.run import RUN_FILE, checkpoints, prepare

    found = []
    for cell in cells(study):
        try:
            folder = run_folder(study, cell, prepare(cell.config).run_id)
        except UserError:
            if cell.optional:
                continue
            raise
        kept = checkpoints(folder) if (folder / RUN_FILE).is_file() else []
        kept = [checkpoint for checkpoint in kept if (checkpoint / MANIFEST).is_file()]
        if kept:
            found.append(Trained(cell, folder, kept))
    return found


def targets(trained: list[Trained]) -> list[Target]:
    """The checkpoints to evaluate: step 0 once for each base (B = 0: the base itself), then every later one."""
    found: list[Target] = []
    bases: set[str] = set()
    for run in trained:
        for checkpoint in run.checkpoints:
            manifest = read_manifest(checkpoint)
            if manifest.step == 0:
                if manifest.base.weights_sha256 in bases:
                    continue
                bases.add(manifest.base.weights_sha256)
                found.insert(0, Target("base-step0", run.cell, checkpoint))
            else:
                found.append(Target(f"{run.cell.label}-step{manifest.step}", run.cell, checkpoint))
    return found


def evaluate_all(study: Study, chosen: list[Target]) -> list[str]:
    """Evaluate what has no finished log yet; returns one line a failure."""
    failures: list[str] = []
    for number, target in enumerate(chosen, 1):
        for evaluation in study.evaluations:
            name = f"{target.label}: {evaluation.task}"
            try:
                reason = evaluate(study, target, evaluation, f"[{number}/{len(chosen)}] {name}")
            except Exception as error:
                failures.append(_keep_failure(log_folder(study, target), f"evaluation {name}", error))
                continue
            if reason is not None:
                failures.append(f"evaluation {name} did not finish ({reason}): see {log_folder(study, target)}")
    return failures


def log_folder(study: Study, target: Target) -> Path:
    return Path("logs") / study.name / target.label


def evaluate(study: Study, target: Target, evaluation: Evaluation, heading: str) -> str | None:
    """One Inspect task on one checkpoint, as an eval set of one: finished logs are kept, partial ones resumed.

    Returns why it did not finish, or None.
    """
    from inspect_ai import eval_set

    model = f"peft/{target.checkpoint}@{content_hash(str(target.checkpoint))}"
    folder = log_folder(study, target) / evaluation.task
    started = time.monotonic()
    console.print(f"{heading} ...", end=" ")
    ok, logs = eval_set(
        f"em_eval/{evaluation.task}",
        task_args=evaluation.arguments(),
        log_dir=str(folder),
        model=model,
        model_roles={"grader": evaluation.grader} if evaluation.grader else None,
        metadata={
            "study": study.name,
            "label": target.label,
            "manifest": manifest_for_log(target.checkpoint),
        },
        display="none",
        log_level="error",
        retry_attempts=2,
        max_samples=256,
        log_dir_allow_dirty=True,
        acp_server=False,
        ctl_server=False,
        **evaluation.sampling(),
    )
    console.print(f"{'done' if ok else 'not finished'} ({time.monotonic() - started:.0f} s)")
    if ok:
        return None
    return next((log.error.message.splitlines()[0] for log in logs if log.error), "no reason given")


def manifest_for_log(checkpoint: Path) -> dict[str, Any]:
    """The manifest as the log carries it; the training example and the environment stay with the checkpoint."""
    return read_manifest(checkpoint).model_dump(mode="json", exclude={"first_example", "environment"})


def _keep_failure(folder: Path, what: str, error: Exception) -> str:
    path = folder / "error.txt"
    write_text(path, "".join(traceback.format_exception(error)))
    line = f"{what} failed: {str(error).splitlines()[0] if str(error) else type(error).__name__} (see {path})"
    console.print(line)
    return line
