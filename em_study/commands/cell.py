"""`em cell`: one part of one cell from its frozen file: what executors run, for those who schedule by hand."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from em_core.errors import UserError


def add(app: typer.Typer) -> None:
    app.command(hidden=True, epilog="Example: em cell train runs/demo/cells/CELL.json")(cell)


def cell(
    part: Annotated[Literal["train", "evaluate"], typer.Argument(help="train or evaluate", show_default=False)],
    file: Annotated[Path, typer.Argument(help="frozen cell, as em run writes it", show_default=False)],
) -> None:
    """Train or evaluate one frozen cell, in the folder that holds runs/ and logs/. Idempotent."""
    from em_study.execute import perform

    failures = perform(str(Path.cwd()), part, str(file))
    if failures:
        raise UserError("; ".join(failures))
