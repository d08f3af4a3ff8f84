"""How far each cell is, read from the disk: the same for every executor, from any process or machine.

Training leaves a line a step, an evaluation counts its answers in a file, and who works holds a lock.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from filelock import FileLock, Timeout
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from em_core.manifest import MANIFEST, read_manifest
from em_study.counting import COUNT_FILE
from em_study.execute import ERROR, LOCKS, evaluation_key
from em_study.logs import Logs, log_folder
from em_study.plan import FrozenCell, Plan, existing_run, is_done

State = Literal["done", "running", "failed", "waiting"]
PACE_STEPS = 20


@dataclass(frozen=True)
class Part:
    """Training or evaluation of one cell.

    Attributes:
        done, total: optimiser steps; finished logs of an evaluation, or answers while one is under way.
        seconds_left: by the pace so far; None where there is none yet.
        failure: what went wrong, in a line.
    """

    state: State
    done: int
    total: int
    seconds_left: float | None = None
    failure: str = ""


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
    return counts if left is None else f"{counts}; about {hours(left)} of work left, evaluations not begun apart"


def seconds_left(cells: list[Progress]) -> float | None:
    """What running and waiting trainings and running evaluations still take, one after the other.

    A training without a pace of its own takes the mean one a step; None where no training has a pace.
    """
    parts = [cell.training for cell in cells if cell.state != "done"]
    paces = [p.seconds_left / (p.total - p.done) for p in parts if p.seconds_left is not None and p.done < p.total]
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
        return "-"
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
    whole = all((folder / path.name / MANIFEST).is_file() for path in cell.checkpoints())
    if whole and is_done(folder):
        return Part("done", total, total, 0.0)
    done, left = steps_done(folder, total)
    if is_locked(cell.run_id):
        return Part("running", done, total, left)
    if (reason := _failure(folder / ERROR)) is not None:
        return Part("failed", done, total, left, reason)
    return Part("waiting", done, total, left)


def evaluation(cell: FrozenCell, logs: Logs) -> Part:
    done, failures, running = 0, [], None
    whole = cell.asked()
    for label, checkpoint, asked in whole:
        if not (checkpoint / MANIFEST).is_file():
            continue
        manifest = read_manifest(checkpoint)
        if logs.find(cell.study, label, manifest, asked) is not None:
            done += 1
        elif is_locked(evaluation_key(manifest, asked)):
            running = answers_done(log_folder(cell.study, label))
        elif (reason := _failure(log_folder(cell.study, label) / asked.name / ERROR)) is not None:
            failures.append(reason)
    total = len(whole)
    if running is not None:
        return Part("running", *running)
    if failures:
        return Part("failed", done, total, None, failures[0])
    return Part("done" if done == total else "waiting", done, total)


def steps_done(folder: Path, total: int) -> tuple[int, float | None]:
    """(optimiser steps so far, seconds left by the pace of the last ones)."""
    path = folder / "steps.jsonl"
    if not path.is_file():
        return 0, None
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    pace = [json.loads(line)["seconds"] for line in lines[-PACE_STEPS:]]
    return len(lines), (total - len(lines)) * sum(pace) / len(pace) if pace else None


def answers_done(folder: Path) -> tuple[int, int, float | None]:
    """(answers so far, all answers, seconds left) of the evaluation that is under way below `folder`."""
    for path in folder.glob(f"*/{COUNT_FILE}"):
        count = _json(path)
        if count.get("done"):
            pace = (count["now"] - count["started"]) / count["done"]
            return count["done"], count["total"], pace * (count["total"] - count["done"])
        return 0, int(count.get("total", 0)), None
    return 0, 0, None


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


def _json(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found


def _failure(path: Path) -> str | None:
    """The last line of a kept traceback: what went wrong."""
    if not path.is_file():
        return None
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no reason kept"
