"""`em run`, `em report`: a study file from training to report."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from em_core.errors import UserError

StudyFile = Annotated[Path, typer.Argument(help="study file, e.g. studies/demo.yaml", show_default=False)]


def add(app: typer.Typer) -> None:
    app.command(
        epilog="Examples: em run studies/demo.yaml | em run studies/demo.yaml --dry-run | "
        "em run big.yaml --only '*-seed0' | "
        "em run big.yaml --executor slurm -o slurm_partition=gpu -o gpus_per_node=1 -o timeout_min=600"
    )(run)
    app.command(epilog="Example: em report studies/demo.yaml --bundle")(report)


def run(
    study: StudyFile,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what it would do and cost, and do nothing")] = False,
    executor: Annotated[str, typer.Option(help="where cells run: local, slurm, ray")] = "local",
    address: Annotated[str | None, typer.Option(help="of a Ray cluster (auto, or HOST:PORT)")] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(help="pattern of labels, e.g. '*-seed0': work on these cells alone, for now; repeatable"),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", "-o", help="NAME=VALUE of the executor, e.g. workers=2, num_gpus=1; repeatable"),
    ] = None,
) -> None:
    """Train and evaluate what is not done yet, then report. Killed anywhere, call it again."""
    from em_study.study import load_study

    loaded = load_study(study)
    if dry_run:
        from em_study.estimate import estimate, print_estimate

        print_estimate(estimate(loaded, only or ()), Console())
        return
    from em_study.drive import Bars, run_study
    from em_study.execute import console, existing
    from em_study.executors import choose

    options = _options(option or [], address)
    chosen = choose(executor, loaded.name, options)
    try:
        if console.is_terminal:
            with Bars(loaded.name).shown() as bars:
                plan, failures = run_study(loaded, chosen, bars, only or ())
        else:
            plan, failures = run_study(loaded, chosen, only=only or ())
    finally:
        chosen.close()
    if existing(plan):
        report(study)
    if failures:
        raise UserError(f"{len(failures)} of the study's parts failed: {'; '.join(failures)}")


def report(
    study: StudyFile,
    bundle: Annotated[
        bool, typer.Option("--bundle", help="put Inspect's viewer and the logs beside the page, and link answers to it")
    ] = False,
) -> None:
    """Join what is there, print the table and write runs/NAME/report/index.html, with figures as SVG and PNG."""
    from em_core.files import made_folder
    from em_study.execute import absent, something
    from em_study.plan import RUNS, make_plan
    from em_study.report import print_table, write_reports
    from em_study.study import load_study
    from em_study.table import all_results

    loaded = load_study(study)
    plan = make_plan(loaded)
    found = something(plan, study)
    folder = made_folder(RUNS / loaded.name / "report")
    results = all_results(loaded, found, absent(plan))
    page = write_reports(results, folder, study, bundle)
    for name, rows in results.items():
        if len(results) > 1:
            print(f"evaluation {name}")
        print_table(rows, Console())
    print(f"report: {page}")


def _options(pairs: list[str], address: str | None) -> dict[str, str | int | float]:
    """NAME=VALUE, numbers as numbers."""
    found: dict[str, str | int | float] = {"address": address} if address else {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign or not name:
            raise UserError(f"--option {pair}: write NAME=VALUE")
        found[name] = _number(value)
    return found


def _number(text: str) -> str | int | float:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
