"""From a study to frozen cells: each with its identity, its folder, and a file that one command can run.

A run's identity is the hash of its contents, so that a run which another study has made already is linked to
instead of trained again.
"""

import json
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from em_core.errors import UserError
from em_core.files import json_object, write_json
from em_core.manifest import manifest_or_none
from em_study.cells import Cell, cells
from em_study.soundness import check_evaluations, sound_cells
from em_study.study import Evaluation, Study
from em_train.config import TrainConfig

RUNS = Path("runs")
PLAN_FILE = "plan.json"
RUN_FILE = "run.json"


class FrozenCell(BaseModel):
    """Everything that training and evaluating one cell takes; paths are relative to the folder of the study's run.

    Attributes:
        base_label: set where this cell's step 0 stands for its base model: the label of that evaluation.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    study: str
    label: str
    run_id: str
    config: TrainConfig
    evaluations: tuple[Evaluation, ...]
    base_label: str | None = None

    @property
    def folder(self) -> Path:
        return RUNS / self.study / f"{self.label}-{self.run_id}"

    @property
    def file(self) -> Path:
        return RUNS / self.study / "cells" / f"{self.label}-{self.run_id}.json"

    def steps(self) -> list[int]:
        """The steps of the checkpoints: those asked for, or of a finished run those kept (it may have ended early)."""
        run = json_object(self.folder / RUN_FILE)
        kept: list[int] = run["checkpoints"] if run.get("state") == "done" else self.config.kept_steps()
        return kept

    def checkpoints(self) -> list[Path]:
        """The checkpoint folders, in order of steps."""
        return [self.folder / f"checkpoint-{step}" for step in self.steps()]

    def targets(self) -> list[tuple[str, Path]]:
        """(label, checkpoint) of what this cell evaluates: step 0 only where it stands for the base model."""
        found = []
        for step, checkpoint in zip(self.steps(), self.checkpoints(), strict=True):
            if step > 0:
                found.append((f"{self.label}-step{step}", checkpoint))
            elif self.base_label is not None:
                found.insert(0, (self.base_label, checkpoint))
        return found

    def asked(self) -> list[tuple[str, Path, Evaluation]]:
        """(label, checkpoint, evaluation) of everything that this cell evaluates, in the order in which it does.

        Checkpoint by checkpoint, and those of one engine after each other, so that a server starts once.
        """
        found = [
            (label, checkpoint, evaluation)
            for label, checkpoint in self.targets()
            for evaluation in self.evaluations
            if self._asks(evaluation, checkpoint)
        ]
        return sorted(found, key=lambda asked: asked[2].engine)

    def _asks(self, evaluation: Evaluation, checkpoint: Path) -> bool:
        return checkpoint.name in {f"checkpoint-{step}" for step in evaluation.steps(self.steps())}


@dataclass(frozen=True)
class Plan:
    """The cells of a study in order, and those left out with the reason."""

    study: str
    cells: list[FrozenCell]
    left_out: dict[str, str]


def make_plan(study: Study, check_rows: bool = False) -> Plan:
    """Resolve every cell before anything trains: a mistake anywhere stops the study here.

    Args:
        check_rows: encode every row as training would, which takes a while with large datasets, and look at what the
            evaluations need.

    Raises:
        UserError: unknown names, datasets or bases that are not at hand; with `check_rows`, rows that cannot be
            trained on, and prompt sets and judges that cannot be had. Names file and line of a study from a file.
            And as `check_folder`.
    """
    from em_train.preparation import Resolved, prepare, resolve_run

    check_folder(study.name)
    if check_rows:
        check_evaluations(study)

    def look(cell: Cell) -> Resolved:
        if not check_rows:
            return resolve_run(cell.config)
        from em_train.lora import check_targets

        found = prepare(cell.config)
        check_targets(found.base.id, found.base.path, cell.config.lora)
        return found

    resolved, left_out = sound_cells(study, cells(study), look)
    frozen = [
        FrozenCell(
            study=study.name,
            label=cell.label,
            run_id=found.run_id,
            config=found.config,
            evaluations=study.evaluations,
        )
        for cell, found in resolved
    ]
    return with_bases(Plan(study.name, frozen, left_out), lambda cell: not has_step_0(cell))


def check_folder(study: str) -> None:
    """Look that the folder of the study's runs can be there.

    Raises:
        UserError: something else has its name.
    """
    for path in (RUNS, RUNS / study):
        if os.path.lexists(path) and not path.is_dir():
            raise UserError(f"{path} is no folder, but the runs of study '{study}' belong there: move it away")


def with_bases(plan: Plan, order: Callable[[FrozenCell], int]) -> Plan:
    """The plan with one cell for each base model that evaluates it, as its own step 0: the lowest in `order`, and the
    first of several, of those that keep step 0."""
    first: dict[tuple[str, str | None], str] = {}
    for cell in sorted((cell for cell in plan.cells if 0 in cell.config.kept_steps()), key=order):
        first.setdefault((cell.config.base_model, cell.config.base_revision), cell.label)
    several = len(first) > 1
    names = {label: f"base-{Path(base).name}-step0" if several else "base-step0" for (base, _), label in first.items()}
    cells = [cell.model_copy(update={"base_label": names.get(cell.label)}) for cell in plan.cells]
    return replace(plan, cells=cells)


def has_step_0(cell: FrozenCell) -> bool:
    return manifest_or_none((existing_run(cell) or cell.folder) / "checkpoint-0") is not None


def freeze(plan: Plan, chosen: Collection[FrozenCell] | None = None) -> None:
    """Write one file a cell, and the list of them; what says the same already is left alone.

    Of cells that are not `chosen` for work now, a file that differs in who evaluates the base alone is left too:
    another `em run` may be at work on it.
    """
    for cell in plan.cells:
        if chosen is None or cell in chosen or not _same_but_for_base(cell):
            _write(cell.file, cell.model_dump(mode="json"))
    files = [cell.file.name for cell in plan.cells]
    _write(RUNS / plan.study / PLAN_FILE, {"study": plan.study, "cells": files, "left_out": plan.left_out})


def _same_but_for_base(cell: FrozenCell) -> bool:
    kept = json_object(cell.file)
    return bool(kept) and kept | {"base_label": None} == cell.model_dump(mode="json") | {"base_label": None}


def frozen_plan(study: str) -> Plan:
    """The plan as the last `em run` of a study wrote it, without looking at models or data.

    Raises:
        UserError: there is none.
    """
    check_folder(study)
    path = RUNS / study / PLAN_FILE
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        names, left_out = kept["cells"], kept["left_out"]
    except OSError as error:
        raise UserError(f"study '{study}' was not run here yet (no {path}): em run starts it") from error
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(f"{path} is damaged: em run writes it anew") from error
    return Plan(study, [thaw(path.parent / "cells" / name) for name in names], left_out)


def plan_here(study: Study) -> Plan:
    """As the last `em run` wrote it; made anew where the study's runs came from elsewhere, as from an archive.

    Raises:
        UserError: as `frozen_plan`, or as `make_plan`.
    """
    folder = RUNS / study.name
    if folder.is_dir() and not (folder / PLAN_FILE).exists():
        plan = make_plan(study)
        if any(existing_run(cell) for cell in plan.cells):
            return plan
    return frozen_plan(study.name)


def _write(path: Path, value: Any) -> None:
    if json_object(path) != value:
        write_json(path, value)


def thaw(path: Path) -> FrozenCell:
    """A frozen cell.

    Raises:
        UserError: missing, or of another version.
    """
    try:
        return FrozenCell.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read cell {path}: {error.strerror}: em run writes it") from error
    except ValidationError as error:
        field = ".".join(str(part) for part in error.errors()[0]["loc"]) or "file"
        raise UserError(f"{path} is not a cell of this version ({field}): em run writes it anew") from error


def existing_run(cell: FrozenCell) -> Path | None:
    """The folder that holds this run already, in whatever study.

    The dataset's name must agree too: it is no part of the run's identity, but of what a report says about it.
    """
    own = RUNS / cell.study
    found = sorted(RUNS.glob(f"*/*-{cell.run_id}/{RUN_FILE}"), key=lambda path: (path.parent.parent != own, path))
    for path in found:
        if not path.parent.is_symlink() and _dataset(path) == Path(cell.config.dataset).name:
            return path.parent
    return None


def is_done(folder: Path) -> bool:
    """Whether the run in `folder` was trained to its end."""
    return json_object(folder / RUN_FILE).get("state") == "done"


def _dataset(run_file: Path) -> str:
    return Path(str(json_object(run_file).get("config", {}).get("dataset", ""))).name


def place(cell: FrozenCell) -> Path:
    """The cell's run folder; where another study holds the run, the folder becomes a link to that.

    A link whose study was deleted is dropped, and the run is trained again.
    """
    folder = cell.folder
    if folder.is_symlink() and not folder.exists():
        folder.unlink()
    held = existing_run(cell)
    if not folder.exists() and held is not None and held != folder:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.symlink_to(os.path.relpath(held, folder.parent), target_is_directory=True)
    return folder
