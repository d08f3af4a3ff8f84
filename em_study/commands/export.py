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
    from em_study.execute import absent, existing
    from em_study.plan import RUNS, make_plan
    from em_study.study import load_study
    from em_study.table import all_results, answer_table, checkpoint_table

    loaded = load_study(study)
    plan = make_plan(loaded)
    results = all_results(loaded, existing(plan))
    target = folder or RUNS / loaded.name / "export"
    target.mkdir(parents=True, exist_ok=True)
    for name, table in (("answers", answer_table(results)), ("checkpoints", checkpoint_table(results))):
        for ending, write in (("parquet", table.to_parquet), ("csv", table.to_csv)):
            draft = target / f".{name}.{ending}"
            write(draft, index=False)
            draft.replace(target / f"{name}.{ending}")
        print(f"{target / name}.parquet, .csv: {len(table)} rows")
    for line in absent(plan):
        print(f"absent: {line}")
