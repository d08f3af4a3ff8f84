"""`em run`, `em report`: a study file from training to report."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from em_core.errors import UserError

StudyFile = Annotated[Path, typer.Argument(help="study file, e.g. studies/demo.yaml", show_default=False)]


def add(app: typer.Typer) -> None:
    app.command(epilog="Example: em run studies/demo.yaml")(run)
    app.command(epilog="Example: em report studies/demo.yaml")(report)


def run(study: StudyFile) -> None:
    """Train and evaluate what is not done yet, then report. Killed anywhere, call it again."""
    from em_study.execute import evaluate_all, targets, train_all
    from em_study.study import load_study

    loaded = load_study(study)
    trained, failures = train_all(loaded)
    failures += evaluate_all(loaded, targets(trained))
    report(study)
    if failures:
        raise UserError(f"{len(failures)} of the study's parts failed: {'; '.join(failures)}")


def report(study: StudyFile) -> None:
    """Join what is there, print the table and write runs/NAME/report/index.html."""
    from em_study.execute import existing, targets
    from em_study.report import print_table, write_report
    from em_study.results import collect
    from em_study.study import load_study

    loaded = load_study(study)
    results = collect(loaded, targets(existing(loaded)))
    page = write_report(results, Path("runs") / loaded.name / "report")
    print_table(results, Console())
    print(f"report: {page}")
