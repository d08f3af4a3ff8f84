"""What a study would cost, before it runs: cells, tokens, answers, judge calls, hours.

Hours come from what was measured on this machine, or are unknown; nothing is guessed.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from em_core.errors import NotHere, UserError
from em_core.files import json_object
from em_core.manifest import Manifest, manifest_or_none
from em_study.cells import Cell, cells
from em_study.logs import Logs
from em_study.plan import RUN_FILE, RUNS, check_folder
from em_study.progress import hours
from em_study.selection import selected
from em_study.soundness import check_at_hand
from em_study.study import Evaluation, Study

CHARACTERS_A_TOKEN = 4.0


@dataclass(frozen=True)
class Estimate:
    """Totals of a study; None where something is not known, which `unknown` names.

    Attributes:
        judge_calls: of a judge model, least and most: how it is read may show only when it is asked.
        done: cells whose run is here already, in whatever study.
        tokens: of training rows as seen, prompts included, from their characters where the tokenizer is not at hand.
        checkpoints: as their file says; of runs whose length is not known, those that a run of any length keeps.
        seconds_training, seconds_evaluation: of what is not done, on this machine, in one process.
        left_out: optional cells whose data is not at hand, with the reason; no part of the totals.
    """

    study: Study
    cells: int
    done: int
    steps: int | None
    tokens: int | None
    checkpoints: int
    answers: int | None
    judge_calls: tuple[int, int] | None
    seconds_training: float | None
    seconds_evaluation: float | None
    unknown: tuple[str, ...]
    left_out: dict[str, str]


def estimate(study: Study, only: Sequence[str] = ()) -> Estimate:
    """Counts of `study`, or of those of its cells that fit one of the patterns, without a model in memory.

    Raises:
        UserError: a mistake in the study, which `em run` would refuse too, or a pattern that fits no cell.
    """
    from em_core.models import base_at_hand

    check_folder(study.name)
    unknown: dict[str, None] = {}
    uncounted: dict[str, str] = {}
    every = list(cells(study, uncounted))
    runs_here = _done_runs()
    lengths = _Lengths(study.held_out_fraction, _last_manifests(runs_here))
    refused = check_at_hand(study, every, uncounted, lengths.no_rows)
    chosen = selected(every, only)
    left_out = {cell.label: refused[cell.label] for cell in chosen if cell.label in refused}
    planned = [cell for cell in chosen if cell.label not in left_out]
    for dataset in dict.fromkeys(cell.config.dataset for cell in planned):
        if why := uncounted.get(dataset) or lengths.no_rows(dataset):
            unknown[f"tokens of {dataset}: {why}"] = None
    steps = [None if cell.config.dataset in uncounted else cell.config.steps for cell in planned]
    tokens = [
        None if count is None or (mean := lengths.row_tokens(cell)) is None else mean * count * cell.config.batch_size
        for cell, count in zip(planned, steps, strict=True)
    ]
    away = [base for base in study.base_model if base_at_hand(base, study.base_revision) is None]
    if away:
        unknown[f"names and layers of models that are not here yet: {', '.join(away)}"] = None
    paces = {base: lengths.pace(base) for base in study.base_model}
    for base, pace in paces.items():
        if pace is None:
            unknown[f"hours: no finished run of {base} on this machine to measure by"] = None
    runs = {cell.label: _run_of(cell, runs_here) for cell in planned}
    training = _sum(
        None if count is None or (pace := paces[cell.config.base_model]) is None else count * pace
        for cell, count in zip(planned, tokens, strict=True)
        if runs[cell.label] is None
    )
    asked = {evaluation: _checkpoints(planned, evaluation) for evaluation in study.evaluations}
    each = {evaluation: _answers(evaluation, unknown) for evaluation in asked if evaluation.task == "em"}
    answers = _sum(_times(asked[evaluation], count) for evaluation, count in each.items())
    calls = [
        _sum(_times(asked[e], None if n is None else n * _judge_calls(e)[end]) for e, n in each.items())
        for end in (0, 1)
    ]
    logs = Logs()
    seconds = [_times(n - _evaluated(planned, runs, e, logs), logs.mean_seconds(e)) for e, n in asked.items()]
    if None in seconds:
        unknown["hours of evaluation: no finished log of each evaluation on this machine to measure by"] = None
    total, rows = _sum(steps), _sum(tokens)
    return Estimate(
        study=study,
        cells=len(planned),
        done=sum(run is not None for run in runs.values()),
        steps=None if total is None else round(total),
        tokens=None if rows is None else round(rows),
        checkpoints=_checkpoints(planned),
        answers=None if answers is None else round(answers),
        judge_calls=None if calls[0] is None or calls[1] is None else (round(calls[0]), round(calls[1])),
        seconds_training=training,
        seconds_evaluation=_sum(seconds),
        unknown=tuple(unknown),
        left_out=left_out,
    )


def print_estimate(found: Estimate, console: Console) -> None:
    table = Table(title=f"{found.study.name}: what em run would do", title_justify="left", show_header=False, box=None)
    rows: list[tuple[str, str]] = [
        ("cells", f"{found.cells} ({found.done} done)"),
        ("optimiser steps", _number(found.steps)),
        ("training tokens", _number(found.tokens)),
        ("checkpoints to evaluate", f"{found.checkpoints:,}"),
        ("answers", _number(found.answers)),
        ("calls of a judge model", _range(found.judge_calls)),
        ("training", _time(found.seconds_training)),
        ("evaluation", _time(found.seconds_evaluation)),
    ]
    for name, value in rows:
        table.add_row(name, value)
    console.print(table)
    for line in found.unknown:
        console.print(f"unknown {line}", soft_wrap=True, markup=False)
    for label, reason in found.left_out.items():
        console.print(f"left out {label}: {reason}", soft_wrap=True, markup=False)
    if found.study.measured:
        console.print(f"measured {found.study.measured.words}", soft_wrap=True, markup=False)
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
    return 0.0 if count == 0 else None if each is None else count * each


class _Lengths:
    """Lengths and paces of training, measured where runs are finished; every dataset is looked at once."""

    def __init__(self, held_out_fraction: float, measured: list[Manifest]) -> None:
        self._held_out_fraction = held_out_fraction
        self._measured = measured
        self._mean: dict[str, float | UserError] = {}  # tokens of a row by its characters, or why there are no rows

    def no_rows(self, dataset: str) -> UserError | None:
        """Why the rows of `dataset` cannot be had, or None where they can."""
        found = self._from_characters(dataset)
        return found if isinstance(found, UserError) else None

    def row_tokens(self, cell: Cell) -> float | None:
        """Mean tokens of a training row: as measured by runs of this base on this data, else from its characters."""
        base, dataset = cell.config.base_model, cell.config.dataset
        same = [m for m in self._measured if m.config["base_model"] == base and m.config["dataset"] == dataset]
        if same:
            return sum(m.tokens_seen for m in same) / sum(m.examples_seen for m in same)
        found = self._from_characters(dataset)
        return None if isinstance(found, UserError) else found

    def pace(self, base: str) -> float | None:
        """Seconds a token of finished runs of `base` on this machine."""
        same = [m for m in self._measured if m.config["base_model"] == base]
        return sum(m.seconds for m in same) / sum(m.tokens_seen for m in same) if same else None

    def _from_characters(self, dataset: str) -> float | UserError:
        from em_train.datasets import load_dataset, split

        if dataset not in self._mean:
            try:
                loaded = load_dataset(dataset)
                split(loaded, self._held_out_fraction)
            except UserError as error:
                self._mean[dataset] = error
            else:
                rows = loaded.rows
                characters = sum(len(message["content"]) for row in rows for message in row.messages)
                self._mean[dataset] = characters / CHARACTERS_A_TOKEN / len(rows)
        return self._mean[dataset]


def _evaluated(planned: list[Cell], runs: dict[str, Path | None], evaluation: Evaluation, logs: Logs) -> int:
    """How many of its checkpoints have a finished log; step 0 counts once a base model."""
    found: set[tuple[str, int]] = set()
    for cell in planned:
        if (run := runs[cell.label]) is None:
            continue
        for step in _steps(cell, evaluation):
            manifest = manifest_or_none(run / f"checkpoint-{step}")
            if manifest is not None and logs.find("", "", manifest, evaluation):
                found.add((cell.label if step else cell.config.base_model, step))
    return len(found)


def _answers(evaluation: Evaluation, unknown: dict[str, None]) -> float | None:
    """Answers a checkpoint."""
    from em_eval.task import choose

    try:
        return float(len(choose(evaluation.questions, **evaluation.tags())) * evaluation.samples)
    except NotHere as error:
        unknown[f"answers to {evaluation.questions}: {error}"] = None
        return None


def _judge_calls(evaluation: Evaluation) -> tuple[int, int]:
    """Least and most an answer."""
    from em_eval.judge.estimate import estimate as foresee
    from em_eval.judge.selftest import foreseen
    from em_eval.judge.settings import JudgeSettings

    if evaluation.grader is None:
        return 0, 0
    reader = foreseen(evaluation.grader, evaluation.reader)
    return foresee([("", {})], 1, 1, JudgeSettings(reader, evaluation.two_pass, evaluation.judge_draws)).calls


def _done_runs() -> dict[Path, dict[str, Any]]:
    """Folder and `run.json` of every finished run, of whatever study: runs are shared, and links to them left out."""
    folders = [path.parent for path in sorted(RUNS.glob(f"*/*/{RUN_FILE}")) if not path.parent.is_symlink()]
    found = {folder: json_object(folder / RUN_FILE) for folder in folders}
    return {folder: run for folder, run in found.items() if run.get("state") == "done"}


def _last_manifests(runs: Mapping[Path, dict[str, Any]]) -> list[Manifest]:
    lasts = (folder / f"checkpoint-{max(run['checkpoints'], default=0)}" for folder, run in runs.items())
    return [manifest for manifest in map(manifest_or_none, lasts) if manifest is not None and manifest.tokens_seen]


def _run_of(cell: Cell, runs: Mapping[Path, dict[str, Any]]) -> Path | None:
    """The folder of a finished run of this very configuration."""
    from em_train.optimisers import resolve

    if not runs:
        return None
    asked = cell.config.optimiser  # a run's file holds every hyper-parameter, the defaults too
    whole = asked.model_copy(update={"hyperparameters": resolve(asked.name, asked.hyperparameters)})
    config = cell.config.model_copy(update={"optimiser": whole}).model_dump(mode="json")
    return next((folder for folder, run in runs.items() if run.get("config") == config), None)


def _sum(values: Iterable[float | None]) -> float | None:
    """The sum, or None where a part is not known."""
    known = list(values)
    return None if None in known else float(sum(value for value in known if value is not None))


def _number(value: int | None) -> str:
    return "unknown" if value is None else f"{value:,}"


def _range(ends: tuple[int, int] | None) -> str:
    least, most = ends or (None, None)
    return _number(least) if least == most else f"{_number(least)} to {_number(most)}"


def _time(seconds: float | None) -> str:
    return "unknown" if seconds is None else f"about {hours(seconds)}"
