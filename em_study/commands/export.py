"""`em export`: a study's answers and checkpoints as tables for other programs."""

from pathlib import Path
from typing import Annotated

import typer


def add(app: typer.Typer) -> None:
    app.command(epilog="Example: em export studies/demo.yaml")(export)


def export(
    study: Annotated[Path, typer.Argument(help="study file, e.g. studies/demo.yaml", show_default=False)],
    folder: Annotated[Path | None, typer.Option(help="where to; default: runs/NAME/export")] = None,
) -> None:
    """Write answers and checkpoints (one row each) as .parquet and .csv."""
    from em_core.files import made_folder
    from em_study.execute import absent, something
    from em_study.plan import RUNS, make_plan
    from em_study.study import load_study
    from em_study.table import all_results, write_tables

    loaded = load_study(study)
    plan = make_plan(loaded)
    found = something(plan, study)
    target = made_folder(folder or RUNS / loaded.name / "export")
    results = all_results(loaded, found)
    for name, rows in write_tables(results, target).items():
        print(f"{target / name}.parquet, .csv: {rows} rows")
    for line in absent(plan):
        print(f"absent: {line}")
