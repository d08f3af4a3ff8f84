"""From a study file to its cells: every point of the grid, and the single arms beside it, as a training run."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

from em_core.errors import NotHere, UserError
from em_study import blame
from em_study.study import OptimiserAxis, Study
from em_train.config import OptimiserConfig, PenaltyConfig, TrainConfig, parse_config
from em_train.datasets import label as dataset_label


@dataclass(frozen=True)
class Cell:
    """One training run of a study. `label` is for people; the run's identity is the hash of its contents."""

    label: str
    config: TrainConfig
    optional: bool = False


def cells(study: Study, uncounted: dict[str, str] | None = None) -> Iterator[Cell]:
    """Every run of the study: the grid first, then the single arms.

    Args:
        uncounted: takes, for each dataset that is not here and whose rows an epoch has to count, why; its cells then
            have `epochs` and no true number of steps, as those of optional arms have anyway. Without it, an error.

    Raises:
        UserError: an arm names an optimiser that is not in the grid, two cells would have one label, or a dataset
            cannot be read whose rows an epoch has to count.
    """
    seen: dict[str, _Point] = {}
    for point in _points(study):
        cell = _cell(study, point, uncounted)
        if cell.label in seen:
            place = _place_of_second(study, seen[cell.label], point)
            raise UserError(f"{place}two cells are called {cell.label}: change or remove this one")
        seen[cell.label] = point
        yield cell


@dataclass(frozen=True)
class _Point:
    """One point of a study's grid, or one arm beside it: what every axis is set to."""

    base: str
    batch: int
    dataset: str
    axis: OptimiserAxis
    lr: float
    penalty: dict[str, Any] | None
    seed: int
    arm: int | None = None
    optional: bool = False


def _place_of_second(study: Study, first: _Point, second: _Point) -> str:
    """Where the second of two points that would have one label stands, or differs from the first."""
    if second.arm is not None:
        return study.place("arms", second.arm)
    if second.base != first.base:
        return study.place("base_model", study.base_model.index(second.base))
    if second.dataset != first.dataset:
        return study.place("datasets", study.datasets.index(second.dataset))
    axis = study.optimisers.index(second.axis)
    if second.axis != first.axis:
        return study.place("optimisers", axis)
    if second.lr != first.lr:
        return study.place("optimisers", axis, "lr", second.axis.lr.index(second.lr))
    return blame.penalty(study, PenaltyConfig(**second.penalty)) if second.penalty else study.place("penalties")


def _points(study: Study) -> Iterator[_Point]:
    known = {axis.name: axis for axis in reversed(study.optimisers)}
    for place, arm in enumerate(study.arms):
        if arm.optimiser not in known:
            raise UserError(
                f"{study.place('arms', place, 'optimiser')}study '{study.name}': arm on {arm.dataset} names optimiser "
                f"'{arm.optimiser}', which is not in its grid: {', '.join(axis.name for axis in study.optimisers)}"
            )
    blocks = [(base, batch) for base in study.base_model for batch in study.batch_size]
    penalties = [setting for penalty in study.penalties for setting in penalty.each()]
    for base, batch in blocks:
        for dataset in study.datasets:
            for axis in study.optimisers:
                for lr, penalty, seed in product(axis.lr, penalties, study.seeds):
                    yield _Point(base, batch, dataset, axis, lr, penalty, seed)
    for base, batch in blocks:
        for number, arm in enumerate(study.arms):
            axis = known[arm.optimiser]
            for penalty, seed in product(arm.penalty.each(), study.seeds):
                yield _Point(base, batch, arm.dataset, axis, axis.lr[0], penalty, seed, number, arm.optional)


def _cell(study: Study, point: _Point, uncounted: dict[str, str] | None) -> Cell:
    axis, own = point.axis, point.axis.training.model_dump(exclude_none=True)
    length = {"epochs": study.epochs} if study.epochs is not None else {"steps": study.steps} if study.steps else {}
    given = {
        "base_model": point.base,
        "base_revision": study.base_revision,
        "dataset": point.dataset,
        "optimiser": OptimiserConfig(name=axis.name, lr=point.lr, hyperparameters=axis.hyperparameters),
        "lora": study.lora_on(point.base),
        "batch_size": point.batch,
        "micro_batch_size": study.micro_batch_size and min(study.micro_batch_size, point.batch),
        "warmup_steps": study.warmup_steps,
        "schedule": study.schedule,
        "max_grad_norm": study.max_grad_norm,
        "max_length": study.max_length,
        "held_out_fraction": study.held_out_fraction,
        "gradient_checkpointing": study.gradient_checkpointing,
        "dtype": study.dtype,
        "seed": point.seed,
        "data_seed": point.seed,
        "checkpoints": study.checkpoints,
        **({} if "steps" in own else length),
        **own,
    }
    if point.penalty is not None:
        given["penalty"] = point.penalty
    label = _label(study, point)
    where = f"study '{study.name}', cell {label}"
    try:
        parsed = parse_config(given, where)
    except UserError as error:
        place = blame.by_words(study, point.base, str(error).removeprefix(where), axis)
        raise UserError(f"{place}{error}") from error
    config = _with_steps(study, parsed, where, point.optional, uncounted)
    _check_evaluated_steps(study, config, where)
    return Cell(label, config, point.optional)


def _check_evaluated_steps(study: Study, config: TrainConfig, where: str) -> None:
    kept = config.kept_steps()
    for number, evaluation in enumerate(study.evaluations):
        if lost := sorted(set(evaluation.steps(kept)) - set(kept)):
            raise UserError(
                f"{study.place('evaluations', number, 'checkpoints')}{where}: evaluation '{evaluation.name}' asks for "
                f"step {lost[0]}, which the run does not keep; its checkpoints are {', '.join(map(str, kept))}"
            )


def _with_steps(
    study: Study, config: TrainConfig, where: str, optional: bool, uncounted: dict[str, str] | None
) -> TrainConfig:
    """With the steps that its epochs make, counted on the dataset's rows."""
    if config.epochs is None or (uncounted and config.dataset in uncounted):
        return config
    try:
        rows = _train_rows(config.dataset, config.held_out_fraction)
    except UserError as error:
        unknown = isinstance(error, NotHere) and uncounted is not None
        if not (optional or unknown):
            raise UserError(f"{blame.dataset(study, config.dataset)}{where}: {error}") from error
        if uncounted is not None:
            uncounted[config.dataset] = str(error)
        return config
    try:
        return config.for_rows(rows)
    except UserError as error:
        raise UserError(f"{blame.by_words(study, config.base_model, str(error))}{where}: {error}") from error


@lru_cache
def _train_rows(dataset: str, held_out_fraction: float) -> int:
    from em_train.datasets import load_dataset, split

    return len(split(load_dataset(dataset), held_out_fraction)[0])


def _label(study: Study, point: _Point) -> str:
    """What the study varies, in words; the same optimiser or penalty twice is told apart by its other settings."""
    axis = point.axis
    twice = Counter(other.name for other in study.optimisers)[axis.name] > 1
    parts = [
        Path(point.base).name if len(study.base_model) > 1 else "",
        dataset_label(point.dataset),
        _axis_words(axis) if twice else _compact(axis.name),
        f"lr{point.lr:g}",
        f"batch{point.batch}" if len(study.batch_size) > 1 else "",
        _penalty_words(study, point.penalty) if point.penalty else "",
        f"seed{point.seed}",
    ]
    return "-".join(part for part in parts if part)


def _axis_words(axis: OptimiserAxis) -> str:
    """What tells this axis from another one of the same optimiser."""
    given = axis.hyperparameters | axis.training.model_dump(exclude_none=True)
    return "-".join([_compact(axis.name), *(f"{name}{_compact(value)}" for name, value in given.items())])


def _penalty_words(study: Study, penalty: dict[str, Any]) -> str:
    words = f"{penalty['name']}{penalty['strength']:g}"
    axes = {
        (axis.name, repr(axis.hyperparameters)) for axis in (*study.penalties, *(arm.penalty for arm in study.arms))
    }
    if Counter(name for name, _ in axes)[penalty["name"]] > 1:
        words += "".join(f"-{name}{_compact(value)}" for name, value in penalty["hyperparameters"].items())
    return words


def _compact(value: Any) -> str:
    """A value as part of a folder's name."""
    if isinstance(value, list | tuple):
        return "_".join(_compact(part) for part in value)
    return re.sub(r"[^A-Za-z0-9.+-]", "_", f"{value:g}" if isinstance(value, float) else str(value))
