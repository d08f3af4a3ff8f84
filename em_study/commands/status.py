"""`em status`: how far a study is, from any terminal that sees its folder."""

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live

WATCH_EVERY_S = 5.0


def add(app: typer.Typer) -> None:
    app.command(epilog="Examples: em status studies/demo.yaml | em status studies/demo.yaml --watch")(status)


def status(
    study: Annotated[Path, typer.Argument(help="study file, e.g. studies/demo.yaml", show_default=False)],
    watch: Annotated[bool, typer.Option("--watch", "-w", help="keep the table up to date until all is done")] = False,
) -> None:
    """Cells done, running, failed and waiting, and the time left."""
    from em_study.plan import plan_here
    from em_study.progress import progress, status_table
    from em_study.study import load_study

    loaded = load_study(study)
    name = loaded.name
    console = Console()
    with Live(console=console, auto_refresh=False) as live:
        while True:
            plan = plan_here(loaded)
            cells = progress(plan)
            live.update(status_table(name, cells), refresh=True)
            if not watch or all(cell.state in ("done", "failed") for cell in cells):
                break
            time.sleep(WATCH_EVERY_S)
    for label, reason in plan.left_out.items():
        console.print(f"left out {label}: {reason}", soft_wrap=True, markup=False)
