"""Inspect's own viewer beside the report (`inspect view bundle`), and links to single answers in it."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote

from em_core.errors import UserError
from em_eval.answers import Answer
from em_study.results import Row

VIEWER = "viewer"


def write_viewer(rows: Sequence[Row], folder: Path) -> Path:
    """Bundle the logs that the rows were joined from, no others, as `viewer/` under `folder`.

    Raises:
        UserError: there is no log, or the viewer cannot be written.
    """
    from inspect_ai._util.error import PrerequisiteError
    from inspect_ai.log import bundle_log_dir

    logs = {name: path for row in rows for path in row.logs.values() if (name := log_name(path))}
    if not logs:
        raise UserError("--bundle: no log was joined to any checkpoint, so that there is nothing to view")
    with TemporaryDirectory(ignore_cleanup_errors=True) as gathered:
        for name, path in logs.items():
            target = Path(gathered) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)
        try:
            bundle_log_dir(gathered, str((folder / VIEWER).absolute()), overwrite=True)
        except (PrerequisiteError, OSError) as error:
            raise UserError(f"--bundle: cannot write {folder / VIEWER}: {error}") from error
    return folder / VIEWER


def log_name(path: Path) -> str:
    """A log within the bundle: its folders as under `logs/`, LABEL/EVALUATION/FILE."""
    return "/".join(path.parts[-3:])


def answer_link(row: Row, answer: Answer) -> str | None:
    """Relative address of one answer in the bundled viewer; None where the row's log is not known."""
    if "em" not in row.logs:
        return None
    name = quote(log_name(row.logs["em"]))
    return f"{VIEWER}/index.html#/logs/{name}/samples/sample/{quote(answer.prompt_id, safe='')}/{answer.epoch}/"
