"""Drive a study to its end: hand out what is not done, follow it, and say what failed."""

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from em_core.errors import UserError
from em_study.execute import Job, console, is_evaluated, is_trained
from em_study.executors import Executor
from em_study.logs import Logs
from em_study.plan import RUNS, FrozenCell, Plan, freeze, make_plan, thaw, with_bases
from em_study.progress import answers_under_way, hours, steps_done
from em_study.selection import selected
from em_study.study import Study


class Display(Protocol):
    """What the driver tells while it works."""

    def begin(self, total: int) -> None: ...

    def line(self, text: str) -> None: ...

    def follow(self, running: list[Job]) -> None: ...

    def advance(self) -> None: ...


def run_study(
    study: Study, executor: Executor, display: Display | None = None, only: Sequence[str] = ()
) -> tuple[Plan, list[str]]:
    """Train and evaluate what is not done; returns the plan and one line a failure.

    Args:
        only: patterns of labels, of which a cell must fit one to be worked on; the plan is of the whole study.

    Raises:
        UserError: a mistake in the study, or a pattern that fits no cell, found before anything trains.
    """
    shown = display or Lines()
    if study.dtype == "auto" and not executor.same_machine:
        raise UserError(
            f"study '{study.name}': dtype auto means another thing on other machines: write dtype: bfloat16 (GPUs) or "
            "float32 into the study file for this executor"
        )
    plan = make_plan(study, check_rows=True)
    labels = {cell.label for cell in selected(plan.cells, only)}
    plan = with_bases(plan, lambda cell: cell.label not in labels) if only else plan
    chosen = replace(plan, cells=[cell for cell in plan.cells if cell.label in labels])
    freeze(plan, chosen.cells)
    for label, reason in plan.left_out.items():
        shown.line(f"left out {label}: {reason}")
    return plan, drive(chosen, executor, shown)


def drive(plan: Plan, executor: Executor, display: Display) -> list[str]:
    """Trainings first, in order; each cell's evaluation as soon as its training ended."""
    failures: list[str] = []
    cells = {cell.label: cell for cell in plan.cells}
    evaluated = sum(bool(cell.evaluations) for cell in plan.cells)
    display.begin(len(cells) + evaluated)
    pending = 0

    def evaluate(cell: FrozenCell, logs: Logs) -> int:
        if not cell.evaluations:
            return 0
        if is_evaluated(cell, logs):
            display.advance()
            return 0
        executor.submit(Job("evaluate", cell.file, cell.label))
        return 1

    logs = Logs()
    trained: list[FrozenCell] = []
    for number, cell in enumerate(plan.cells, 1):
        done = is_trained(cell, logs)
        display.line(f"[{number}/{len(plan.cells)}] {cell.label}: {'done' if done else 'to train'}")
        if done:
            trained.append(cell)
            display.advance()
        else:
            executor.submit(Job("train", cell.file, cell.label))
            pending += 1
    pending += sum(evaluate(cell, logs) for cell in trained)
    while pending:
        display.follow(executor.running())
        for job, failed in executor.ended():
            pending -= 1
            display.advance()
            failures += failed
            for line in failed:
                display.line(line)
            if job.kind == "train":
                pending += evaluate(cells[job.label], Logs())
    return failures


class Lines:
    """Plain lines, for files, pipes and tests."""

    def begin(self, total: int) -> None:
        pass

    def line(self, text: str) -> None:
        console.print(text)

    def follow(self, running: list[Job]) -> None:
        pass

    def advance(self) -> None:
        pass


class Bars:
    """A bar for the study and one for each job that runs, on a terminal; what jobs print goes to a file.

    A thread reads the jobs' state from the disk, so that bars move whoever does the work, this process included.
    """

    def __init__(self, study: str, every_s: float = 1.0) -> None:
        self.study, self.every_s = study, every_s
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            # A console of this very stream: stderr itself is turned into a file below.
            console=Console(file=sys.stderr, highlight=False, soft_wrap=True),
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._whole: TaskID | None = None
        self._jobs: list[Job] = []
        self._bars: dict[Job, TaskID] = {}
        self._over = threading.Event()

    @contextmanager
    def shown(self) -> Iterator["Bars"]:
        path = RUNS / self.study / "output.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        thread = threading.Thread(target=self._poll, daemon=True)
        with path.open("a", encoding="utf-8") as output, self._progress:
            thread.start()
            try:
                with redirect_stdout(output), redirect_stderr(output):
                    yield self
            finally:
                self._over.set()
                thread.join()

    def begin(self, total: int) -> None:
        self._whole = self._progress.add_task(self.study, total=total, left="")

    def line(self, text: str) -> None:
        if not text.endswith((": done", ": to train")):  # the bars say that
            self._progress.console.print(text)

    def follow(self, running: list[Job]) -> None:
        self._jobs = running

    def advance(self) -> None:
        assert self._whole is not None  # the driver begins first
        self._progress.advance(self._whole)

    def _poll(self) -> None:
        while not self._over.wait(self.every_s):
            jobs = list(self._jobs)
            for job in set(self._bars) - set(jobs):
                self._progress.remove_task(self._bars.pop(job))
            for job in jobs:
                self._show(job)

    def _show(self, job: Job) -> None:
        if job not in self._bars:
            self._bars[job] = self._progress.add_task(f"  {job.kind} {job.label}", total=None, left="")
        done, total, left = _state(job)
        words = "" if left is None else f"{hours(left)} left"
        self._progress.update(self._bars[job], completed=done, total=total, left=words)


def _state(job: Job) -> tuple[int, int | None, float | None]:
    cell = thaw(job.cell)
    if job.kind == "train":
        done, pace = steps_done(cell.folder)
        return done, cell.config.steps, None if pace is None else (cell.config.steps - done) * pace
    done, total, left = answers_under_way(cell)
    return done, total or None, left
