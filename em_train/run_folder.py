"""The folder of a run: whose it is, how far it is, and where training may go on from."""

import json
import shutil
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ValidationError

from em_core.errors import UserError
from em_core.files import sweep_drafts, write_json
from em_core.manifest import MANIFEST, read_manifest
from em_train import processes
from em_train.step_record import STEPS_FILE, recorded_steps

if TYPE_CHECKING:
    from em_train.preparation import Prepared

RUN_FILE = "run.json"


class _Run(BaseModel):
    """run.json, as far as it is read: it also holds the configuration, for people."""

    run_id: str
    state: Literal["running", "done"]
    checkpoints: list[int]


def _read(folder: Path) -> _Run | None:
    """None where there is no run.json.

    Raises:
        UserError: it is damaged, or not of ours.
    """
    path = folder / RUN_FILE
    if not path.is_file():
        return None
    try:
        return _Run.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise UserError(f"{path} is damaged or not of a run of ours: choose another folder or delete it") from error


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoint folders that run.json lists, in order of steps: fewer than asked for where a run ended early.

    Raises:
        UserError: a run.json that cannot be read.
    """
    run = _read(folder)
    return [folder / f"checkpoint-{step}" for step in run.checkpoints] if run else []


def finished(folder: Path, run_id: str) -> bool:
    """Whether `folder` holds this run, complete.

    Raises:
        UserError: a run.json that cannot be read.
    """
    run = _read(folder)
    return run is not None and run.state == "done" and run.run_id == run_id


def claim(folder: Path, prepared: "Prepared") -> None:
    """Mark the folder as of this run, and clear away what a killed process left half written.

    Raises:
        UserError: it belongs to another run, or cannot be written to.
    """
    run = _read(folder)
    if run is not None and run.run_id != prepared.run_id:
        raise UserError(
            f"{folder} belongs to run {run.run_id}, this configuration is run {prepared.run_id}: "
            "choose another folder or delete it"
        )
    try:
        if run is None and (folder / "state").exists():
            shutil.rmtree(folder / "state")  # of a run whose identity is unknown
        folder.mkdir(parents=True, exist_ok=True)
        sweep_drafts(folder)
        write_run_file(folder, prepared, "running")
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror or error}: choose another folder") from error


def is_ours(checkpoint: Path, prepared: "Prepared") -> bool:
    """Whether a complete checkpoint of this very run lies there."""
    if not (checkpoint / MANIFEST).is_file():
        return False
    try:
        return read_manifest(checkpoint).run_id == prepared.run_id
    except UserError as error:
        raise UserError(f"{error}: delete {checkpoint}, and training makes it again") from error


def write_run_file(folder: Path, prepared: "Prepared", state: str) -> None:
    """List the checkpoints that are there; `state` is "running" or "done"."""
    written = [path for path in folder.glob("checkpoint-*") if is_ours(path, prepared)]
    steps = sorted(int(path.name.removeprefix("checkpoint-")) for path in written)
    config = prepared.config.model_dump(mode="json")
    write_json(
        folder / RUN_FILE,
        {"run_id": prepared.run_id, "state": state, "checkpoints": steps, "config": config},
    )


def last_state(folder: Path) -> Path | None:
    """The newest resumable state that was written whole, and whose steps were all recorded."""
    recorded = len(recorded_steps(folder / STEPS_FILE))
    states = {int(path.name.split("-")[-1]): path for path in (folder / "state").glob("checkpoint-*")}
    whole = [step for step, path in states.items() if step <= recorded and _is_whole(path)]
    return states[max(whole)] if whole else None


def _is_whole(state: Path) -> bool:
    """The trainer's own file comes last; of several processes each writes its random numbers at its own time.

    A state of another number of processes lacks these, and the run starts anew rather than goes on differently.
    """
    world = processes.world_size()
    names = ["rng_state.pth"] if world == 1 else [f"rng_state_{rank}.pth" for rank in range(world)]
    try:
        json.loads((state / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return all(zipfile.is_zipfile(state / name) for name in names)
