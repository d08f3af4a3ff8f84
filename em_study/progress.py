"""How far each cell is, read from the disk: the same for every executor, from any process or machine.

Training leaves a line a step, an evaluation counts its answers in a file, and who works holds a lock.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from filelock import FileLock, Timeout
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from em_core.files import json_object
from em_core.manifest import manifest_or_none
from em_study.counting import COUNT_FILE
from em_study.execute import ERROR, LOCKS, checkpoint_of, evaluation_key
from em_study.logs import Logs, log_folder
from em_study.plan import FrozenCell, Plan, existing_run, is_done
from em_study.study import Evaluation
from em_train.step_record import STEPS_FILE, recorded_steps

State = Literal["done", "running", "failed", "waiting"]
PACE_STEPS = 20


@dataclass(frozen=True)
class Part:
    """Training or evaluation of one cell.

    Attributes:
        done, total: optimiser steps; finished logs of an evaluation, or answers while one is under way.
        seconds_left: by the pace so far; None where there is none yet.
        failure: what went wrong, in a line.
        pace: seconds an optimiser step.
    """

    state: State
    done: int
    total: int
    seconds_left: float | None = None
    failure: str = ""
    pace: float | None = None


@dataclass(frozen=True)
class Progress:
    """One cell: failed or running where one of its parts is, done where both are."""

    label: str
    training: Part
    evaluation: Part

    @property
    def state(self) -> State:
        states: tuple[State, State] = (self.training.state, self.evaluation.state)
        if "running" in states or "failed" in states:
            return "running" if "running" in states else "failed"
        return "done" if states == ("done", "done") else "waiting"


def progress(plan: Plan) -> list[Progress]:
    logs = Logs()
    return [Progress(cell.label, training(cell), evaluation(cell, logs)) for cell in plan.cells]


def summary(cells: list[Progress]) -> str:
    """Counts of each state, and the time left where there is a pace to tell it by."""
    counts = ", ".join(f"{sum(cell.state == state for cell in cells)} {state}" for state in get_args(State))
    left = seconds_left(cells)
    if left is None:
        return counts
    apart = sum(cell.evaluation.seconds_left is None for cell in cells)
    words = f", {apart} evaluations of unknown length apart" if apart else ""
    return f"{counts}; about {hours(left)} of work left{words}"


def seconds_left(cells: list[Progress]) -> float | None:
    """What is open still takes, one part after the other; evaluations whose length is not known count as nothing.

    A training without a pace of its own takes the mean one a step; None where no training, done or not, has a pace.
    """
    parts = [cell.training for cell in cells]
    paces = [part.pace for part in parts if part.pace is not None]
    open_parts = [part for part in parts if part.state in ("running", "waiting")]
    if open_parts and not paces:
        return None
    mean = sum(paces) / len(paces) if paces else 0.0
    trainings = sum(
        part.seconds_left if part.seconds_left is not None else mean * (part.total - part.done) for part in open_parts
    )
    return trainings + sum(cell.evaluation.seconds_left or 0.0 for cell in cells)


def hours(seconds: float) -> str:
    """A duration for people."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def status_table(study: str, cells: list[Progress]) -> Table:
    table = Table(title=f"{study}: {summary(cells)}", title_justify="left", box=SIMPLE_HEAD)
    for name in ("cell", "training", "evaluation"):
        table.add_column(name, overflow="fold")
    for cell in cells:
        table.add_row(cell.label, _words(cell.training), _words(cell.evaluation))
    return table


def _words(part: Part) -> str:
    if part.total == 0:
        return "running" if part.state == "running" else "-"
    if part.state == "done":
        return "[green]done[/]"
    if part.state == "failed":
        return f"[red]failed[/] at {part.done} of {part.total}: {escape(part.failure)}"
    left = "" if part.seconds_left is None or part.state == "waiting" else f", {hours(part.seconds_left)} left"
    began = f" at {part.done} of {part.total}" if part.done or part.state == "running" else ""
    return f"{part.state}{began}{left}"


def training(cell: FrozenCell) -> Part:
    total = cell.config.steps
    folder = existing_run(cell) or cell.folder
    whole = all(checkpoint_of(cell, folder / path.name) for path in cell.checkpoints())
    done, pace = steps_done(folder)
    if whole and is_done(folder):
        return Part("done", total, total, 0.0, pace=pace)
    left = None if pace is None else (total - done) * pace
    if is_locked(cell.run_id):
        return Part("running", done, total, left, pace=pace)
    if (reason := _failure(folder / ERROR)) is not None:
        return Part("failed", done, total, left, reason, pace)
    return Part("waiting", done, total, left, pace=pace)


def evaluation(cell: FrozenCell, logs: Logs) -> Part:
    """One evaluation that runs stands for the part, in answers; the time left is that of all that have no log yet."""
    done, failures, running, left = 0, [], None, 0.0
    whole = cell.asked()
    unknown = False
    for label, checkpoint, asked in whole:
        mean = logs.mean_seconds(asked)
        manifest = checkpoint_of(cell, checkpoint)
        if manifest is not None and logs.find(cell.study, label, manifest, asked) is not None:
            done += 1
            continue
        if manifest is not None and is_locked(evaluation_key(manifest, asked)):
            answered, answers, mean = _answers(_counts(cell.study, label, asked))
            running = answered, answers
        elif manifest is not None and (
            (reason := _failure(log_folder(cell.study, label) / asked.name / ERROR)) is not None
        ):
            failures.append(reason)
            continue
        unknown, left = unknown or mean is None, left + (mean or 0.0)
    seconds = None if unknown else left
    total = len(whole)
    if running is not None:
        return Part("running", *running, seconds)
    if failures:
        return Part("failed", done, total, seconds, failures[0])
    return Part("done" if done == total else "waiting", done, total, seconds)


def steps_done(folder: Path) -> tuple[int, float | None]:
    """(optimiser steps so far, seconds a step by the last ones)."""
    recorded = recorded_steps(folder / STEPS_FILE)
    pace = [row["seconds"] for row in recorded[-PACE_STEPS:]]
    return len(recorded), sum(pace) / len(pace) if pace else None


def answers_under_way(cell: FrozenCell) -> tuple[int, int, float | None]:
    """(answers so far, all answers, seconds left) of the evaluation of `cell` that runs now; zeros where none does."""
    for label, checkpoint, asked in cell.asked():
        manifest = manifest_or_none(checkpoint)
        counts = _counts(cell.study, label, asked)
        if manifest is not None and counts and is_locked(evaluation_key(manifest, asked)):
            return _answers(counts)
    return 0, 0, None


def _counts(study: str, label: str, asked: Evaluation) -> dict[str, Any]:
    """The newest count of answers of this evaluation, which lies with its logs (see `Logs.folder_for`)."""
    folder = log_folder(study, label)
    names = (asked.name, f"{asked.name}-{'[0-9a-f]' * 12}")
    found = [count for name in names for path in folder.glob(f"{name}/{COUNT_FILE}") if (count := json_object(path))]
    return max(found, key=lambda count: float(count["now"]), default={})


def _answers(count: dict[str, Any]) -> tuple[int, int, float | None]:
    if not count.get("done"):
        return 0, int(count.get("total", 0)), None
    pace = (count["now"] - count["started"]) / count["done"]
    return count["done"], count["total"], pace * (count["total"] - count["done"])


def is_locked(key: str) -> bool:
    """Whether some process works on this run or evaluation now."""
    path = LOCKS / f"{key}.lock"
    if not path.is_file():
        return False
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


def _failure(path: Path) -> str | None:
    """The last line of a kept traceback: what went wrong."""
    if not path.is_file():
        return None
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no reason kept"
