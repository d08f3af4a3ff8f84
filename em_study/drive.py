"""Drive a study to its end: hand out what is not done, follow it, and say what failed."""

from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from em_core.errors import UserError
from em_study.execute import Job, console, is_evaluated, is_trained
from em_study.executors import Executor
from em_study.logs import Logs, log_folder
from em_study.plan import RUNS, FrozenCell, Plan, freeze, make_plan, thaw
from em_study.progress import answers_done, steps_done
from em_study.study import Study


class Display(Protocol):
    """What the driver tells while it works."""

    def begin(self, total: int) -> None: ...

    def line(self, text: str) -> None: ...

    def follow(self, running: list[Job]) -> None: ...

    def advance(self) -> None: ...


def run_study(study: Study, executor: Executor, display: Display | None = None) -> tuple[Plan, list[str]]:
    """Train and evaluate what is not done; returns the plan and one line a failure.

    Raises:
        UserError: a mistake in the study, found before anything trains.
    """
    shown = display or Lines()
    if study.dtype == "auto" and not executor.same_machine:
        raise UserError(
            f"study '{study.name}': dtype auto means another thing on other machines: write dtype: bfloat16 (GPUs) or "
            "float32 into the study file for this executor"
        )
    plan = make_plan(study)
    freeze(plan)
    for label, reason in plan.left_out.items():
        shown.line(f"left out {label}: {reason}")
    return plan, drive(plan, executor, shown)


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

    trained: list[FrozenCell] = []
    for number, cell in enumerate(plan.cells, 1):
        done = is_trained(cell)
        display.line(f"[{number}/{len(plan.cells)}] {cell.label}: {'done' if done else 'training'}")
        if done:
            trained.append(cell)
            display.advance()
        else:
            executor.submit(Job("train", cell.file, cell.label))
            pending += 1
    logs = Logs()
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
    """A bar for the study and one for each job that runs, on a terminal; what jobs print goes to a file."""

    def __init__(self, study: str) -> None:
        self.study = study
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._progress: _Polled | None = None

    @contextmanager
    def shown(self) -> Iterator["Bars"]:
        path = RUNS / self.study / "output.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            path.open("a", encoding="utf-8") as output,
            _Polled(self._console) as self._progress,
            redirect_stdout(output),
            redirect_stderr(output),
        ):
            yield self

    def begin(self, total: int) -> None:
        assert self._progress is not None
        self._progress.whole = self._progress.add_task(self.study, total=total, left="")

    def line(self, text: str) -> None:
        if not text.endswith((": done", ": training")):  # the bars say that
            assert self._progress is not None
            self._progress.console.print(text)

    def follow(self, running: list[Job]) -> None:
        assert self._progress is not None
        self._progress.jobs = running

    def advance(self) -> None:
        assert self._progress is not None and self._progress.whole is not None
        self._progress.advance(self._progress.whole)


class _Polled(Progress):
    """Bars whose state is read from the disk at every refresh, so that they move whoever does the work."""

    def __init__(self, console: Console) -> None:
        self.jobs: list[Job] = []
        self.whole: TaskID | None = None
        self._bars: dict[Job, TaskID] = {}
        super().__init__(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=Console(file=console.file, highlight=False, soft_wrap=True),
            refresh_per_second=1,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def get_renderable(self):  # type: ignore[no-untyped-def]
        jobs = list(self.jobs)
        for job in set(self._bars) - set(jobs):
            self.remove_task(self._bars.pop(job))
        for job in jobs:
            self._show(job)
        return super().get_renderable()

    def _show(self, job: Job) -> None:
        if job not in self._bars:
            self._bars[job] = self.add_task(f"  {job.label}", total=None, left="")
        done, total, left = _state(job)
        words = "" if left is None else f"about {left:.0f} s left"
        self.update(self._bars[job], description=f"  {job.kind} {job.label}", completed=done, total=total, left=words)


def _state(job: Job) -> tuple[int, int | None, float | None]:
    cell = thaw(job.cell)
    if job.kind == "train":
        done, left = steps_done(cell.folder, cell.config.steps)
        return done, cell.config.steps, left
    for label, _ in cell.targets():
        done, total, left = answers_done(log_folder(cell.study, label))
        if total:
            return done, total, left
    return 0, None, None
