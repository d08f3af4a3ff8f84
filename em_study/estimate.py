"""What a study would cost, before it runs: cells, tokens, answers, judge calls, hours.

Hours come from what was measured on this machine, or are unknown; nothing is guessed.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from em_core.errors import UserError
from em_core.manifest import MANIFEST, Manifest, read_manifest
from em_study.plan import RUN_FILE, RUNS
from em_study.progress import hours
from em_study.study import Cell, Evaluation, Study, cells

CHARACTERS_A_TOKEN = 4.0
GRADER_CALLS = 2  # alignment and coherence


@dataclass(frozen=True)
class Estimate:
    """Totals of a study; None where something is not known, which `unknown` names.

    Attributes:
        done: cells whose run is here already, by their frozen files.
        tokens: of training rows as seen, prompts included, from their characters where the tokenizer is not at hand.
        seconds_training, seconds_evaluation: of what is not done, on this machine, in one process.
    """

    study: Study
    cells: int
    done: int
    steps: int
    tokens: int | None
    checkpoints: int
    answers: int | None
    judge_calls: int | None
    seconds_training: float | None
    seconds_evaluation: float | None
    unknown: tuple[str, ...]


def estimate(study: Study) -> Estimate:
    """Counts of `study`, without a model in memory.

    Raises:
        UserError: a mistake in the study; a dataset that is not at hand where its rows are counted (`epochs`).
    """
    unknown: dict[str, None] = {}
    planned = list(cells(study))
    measured = _finished_runs()
    row_tokens = cache(partial(_row_tokens, measured=measured, unknown=unknown))
    tokens = [
        None if (mean := row_tokens(c.config.dataset, c.config.base_model)) is None else mean * _rows_seen(c)
        for c in planned
    ]
    paces = {base: _pace(base, measured) for base in study.base_model}
    for base, pace in paces.items():
        if pace is None:
            unknown[f"hours: no finished run of {base} on this machine to measure by"] = None
    open_cells = [(cell, count) for cell, count in zip(planned, tokens, strict=True) if not _is_done(study.name, cell)]
    training = _sum(
        None if count is None or (pace := paces[cell.config.base_model]) is None else count * pace
        for cell, count in open_cells
    )
    kept = _checkpoints(planned)
    asked = {evaluation: _checkpoints(planned, evaluation) for evaluation in study.evaluations}
    answers = _sum(_times(n, _answers(e, unknown)) for e, n in asked.items() if e.task == "em")
    calls = _sum(_times(n, _answers(e, unknown)) for e, n in asked.items() if e.grader)
    seconds = [_times(n, _evaluation_pace(e)) for e, n in asked.items()]
    if study.evaluations and None in seconds:
        unknown["hours of evaluation: no finished log of each evaluation on this machine to measure by"] = None
    return Estimate(
        study=study,
        cells=len(planned),
        done=len(planned) - len(open_cells),
        steps=sum(cell.config.steps for cell in planned),
        tokens=None if (total := _sum(tokens)) is None else round(total),
        checkpoints=kept,
        answers=None if answers is None else round(answers),
        judge_calls=None if calls is None else round(calls) * GRADER_CALLS,
        seconds_training=training,
        seconds_evaluation=_sum(seconds),
        unknown=tuple(unknown),
    )


def print_estimate(found: Estimate, console: Console) -> None:
    table = Table(title=f"{found.study.name}: what em run would do", title_justify="left", show_header=False, box=None)
    rows: list[tuple[str, str]] = [
        ("cells", f"{found.cells} ({found.done} done)"),
        ("optimiser steps", f"{found.steps:,}"),
        ("training tokens", _number(found.tokens)),
        ("checkpoints to evaluate", f"{found.checkpoints:,}"),
        ("answers", _number(found.answers)),
        ("calls of a judge model", _number(found.judge_calls)),
        ("training", _time(found.seconds_training)),
        ("evaluation", _time(found.seconds_evaluation)),
    ]
    for name, value in rows:
        table.add_row(name, value)
    console.print(table)
    for line in found.unknown:
        console.print(f"unknown {line}", soft_wrap=True, markup=False)
    for assumption in found.study.assumptions:
        why = f": {assumption.why}" if assumption.why else ""
        console.print(f"{assumption.source} {assumption.setting}{why}", soft_wrap=True, markup=False)
    for dropped in found.study.drops:
        console.print(f"left out {dropped}", soft_wrap=True, markup=False)


def _checkpoints(planned: list[Cell], evaluation: Evaluation | None = None) -> int:
    """Trained checkpoints and bases that are kept, or that `evaluation` asks for."""
    steps = [(cell, step) for cell in planned for step in _steps(cell, evaluation)]
    return sum(step > 0 for _, step in steps) + len({cell.config.base_model for cell, step in steps if step == 0})


def _steps(cell: Cell, evaluation: Evaluation | None) -> list[int]:
    kept = cell.config.kept_steps()
    return kept if evaluation is None else evaluation.steps(kept)


def _times(count: int, each: float | None) -> float | None:
    return None if each is None else count * each


def _rows_seen(cell: Cell) -> int:
    return cell.config.steps * cell.config.batch_size


def _row_tokens(dataset: str, base: str, measured: list[Manifest], unknown: dict[str, None]) -> float | None:
    """Mean tokens of a training row: as measured by runs of this base on this data, else from its characters."""
    same = [m for m in measured if m.config["base_model"] == base and m.config["dataset"] == dataset]
    if same:
        return sum(m.tokens_seen for m in same) / sum(m.examples_seen for m in same)
    from em_train.datasets import load_dataset

    try:
        rows = load_dataset(dataset).rows
    except UserError as error:
        unknown[f"tokens of {dataset}: {error}"] = None
        return None
    characters = sum(len(message["content"]) for row in rows for message in row.messages)
    return characters / CHARACTERS_A_TOKEN / len(rows)


def _answers(evaluation: Evaluation, unknown: dict[str, None]) -> float | None:
    """Answers a checkpoint."""
    from em_eval import prompts

    try:
        return float(len(prompts.load(evaluation.questions)) * evaluation.samples)
    except UserError as error:
        unknown[f"answers to {evaluation.questions}: {error}"] = None
        return None


def _pace(base: str, measured: list[Manifest]) -> float | None:
    """Seconds a token of finished runs of `base` on this machine."""
    same = [m for m in measured if m.config["base_model"] == base]
    return sum(m.seconds for m in same) / sum(m.tokens_seen for m in same) if same else None


def _evaluation_pace(evaluation: Evaluation) -> float | None:
    """Mean seconds of a finished log of this evaluation."""
    from em_study.logs import Logs

    return Logs().mean_seconds(evaluation)


def _finished_runs() -> list[Manifest]:
    """The last manifest of every run in `runs/` that is done."""
    found = []
    for path in sorted(RUNS.glob(f"*/*/{RUN_FILE}")):
        run = _json(path)
        if run.get("state") == "done" and not path.parent.is_symlink():
            last = path.parent / f"checkpoint-{max(run['checkpoints'], default=0)}"
            if (last / MANIFEST).is_file() and (manifest := read_manifest(last)).tokens_seen:
                found.append(manifest)
    return found


def _is_done(study: str, cell: Cell) -> bool:
    """Whether a run of this very configuration lies in the study's folder, done."""
    from em_train.optimisers import resolve

    runs = [
        run for path in (RUNS / study).glob(f"{cell.label}-*/{RUN_FILE}") if (run := _json(path)).get("state") == "done"
    ]
    if not runs:
        return False
    asked = cell.config.optimiser  # a run's file holds every hyper-parameter, the defaults too
    whole = asked.model_copy(update={"hyperparameters": resolve(asked.name, asked.hyperparameters)})
    config = cell.config.model_copy(update={"optimiser": whole}).model_dump(mode="json")
    return any(run["config"] == config for run in runs)


def _json(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found


def _sum(values: Iterable[float | None]) -> float | None:
    """The sum, or None where a part is not known."""
    known = list(values)
    return None if None in known else float(sum(value for value in known if value is not None))


def _number(value: int | None) -> str:
    return "unknown" if value is None else f"{value:,}"


def _time(seconds: float | None) -> str:
    return "unknown" if seconds is None else f"about {hours(seconds)}"
