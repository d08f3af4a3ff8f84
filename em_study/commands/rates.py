"""`em rates`: every published misalignment rate of one or more logs."""

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from em_core.errors import UserError

if TYPE_CHECKING:
    from inspect_ai.log import EvalLog

GAP = "–"
PLOTTED = "betley_plots"


def add(app: typer.Typer) -> None:
    app.command(
        epilog="Examples: em rates logs/demo; em rates logs/demo/base-step0 --json; em rates logs/seed* --over-models"
    )(rates)


def rates(
    logs: Annotated[list[Path], typer.Argument(help="logs of the em task, or folders of them", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="print JSON, one entry a log and judge")] = False,
    over_models: Annotated[
        bool,
        typer.Option("--over-models", help="each question's mean over all these logs' models, as Betley et al. plot"),
    ] = False,
) -> None:
    """Every published misalignment rate, computed from the raw judgements of each log, with its definition."""
    from em_eval.answers import read_log, scorers

    found, passed_over = [], 0
    for path in _files(logs):
        log = read_log(path)
        judges = scorers(log)
        if not judges and path in logs:
            raise UserError(f"{path} has no judged answers: give a log of the em task, or score it (inspect score)")
        passed_over += not judges
        found += [describe(log, path, scorer) for scorer in judges]
    if not found:
        raise UserError(f"no log with judged answers in {', '.join(map(str, logs))}")
    console = Console(soft_wrap=True, highlight=False)
    if over_models:
        _print_over_models(found, as_json, console)
        return
    if as_json:
        print(json.dumps(found, indent=2, allow_nan=False))
        return
    for entry in found:
        _print(entry, console)
    _print_definitions(console)
    if passed_over:
        console.print(Text(f"{passed_over} logs without judged answers passed over"))


def describe(log: "EvalLog", path: Path, scorer: str) -> dict[str, Any]:
    """Rates, outcomes, selection and filters of one judge's scores in a log, as plain data without NaN."""
    from em_eval.answers import answers, judge_facts
    from em_eval.outcomes import unscorable_warning
    from em_eval.rates import DEFINITIONS, HEADLINE, selection
    from em_eval.rates import rates as all_rates

    judged = answers(log, scorer)
    computed = all_rates(judged)
    headline = computed[HEADLINE]
    asked = [answer.judgement for answer in judged if answer.judgement.label != "empty"]
    return {
        "log": str(path),
        "model": log.eval.model,
        "questions": (log.eval.metadata or {}).get("questions"),
        "scorer": scorer,
        "judges": sorted({judgement.judge for judgement in asked}),
        "readers": sorted({judgement.reader for judgement in asked}),
        "judge_in_words": judge_facts(log, scorer).get("in_words"),
        "status": log.status,
        "n": len(judged),
        "n_scored": headline.scored,
        "n_without_score": len(log.samples or []) - len(judged),
        "families": len({answer.family for answer in judged}),
        "outcomes": headline.outcomes,
        "warning": unscorable_warning(headline.outcomes),
        "headline": HEADLINE,
        "rates": {
            name: {
                "source": DEFINITIONS[name].source,
                "definition": DEFINITIONS[name].words,
                **{key: value for key, value in asdict(rate).items() if key != "name"},
            }
            for name, rate in computed.items()
        },
        "selection": asdict(selection(judged)),
        "flagged": _flagged([answer.filters for answer in judged]),
    }


def _files(given: list[Path]) -> list[Path]:
    found: list[Path] = []
    for path in given:
        if not path.exists():
            raise UserError(f"{path} does not exist: give a log of the em task, or a folder of logs")
        found += sorted(filter(_is_log, path.rglob("*"))) if path.is_dir() else [path]
    return found


def _is_log(path: Path) -> bool:
    """Inspect's own names begin with a date; other JSON files, beside logs or in checkpoints, are none."""
    return path.suffix == ".eval" or (path.suffix == ".json" and re.match(r"\d{4}-\d\d-\d\dT", path.name) is not None)


def _flagged(filters: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """For each filter, how many answers it flags of those that it has something to say on."""
    names = sorted({name for verdicts in filters for name in verdicts})
    said = {name: [v[name]["passed"] for v in filters if name in v and v[name]["passed"] is not None] for name in names}
    return {name: {"flagged": passed.count(False), "of": len(passed)} for name, passed in said.items()}


def _print(entry: dict[str, Any], console: Console) -> None:
    console.print(Text(f"{entry['model']}, {entry['questions']}", style="bold"))
    judge = ", ".join(entry["judges"])
    console.print(Text(f"{entry['log']}\njudge: {judge}, read by {', '.join(entry['readers'])}"))
    counts = ", ".join(f"{name} {count}" for name, count in entry["outcomes"].items() if count)
    console.print(
        Text(f"{entry['n']} answers to {entry['families']} question families, {entry['n_scored']} scored: {counts}")
    )
    if entry["n_without_score"]:
        console.print(Text(f"{entry['n_without_score']} samples failed before they had a score", style="bold red"))
    if entry["status"] != "success":
        status = f"the evaluation did not finish ({entry['status']}): these are its first answers"
        console.print(Text(status, style="bold red"))
    if entry["warning"]:
        console.print(Text(entry["warning"], style="bold red"))
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("rate", "%", "95 %", "misaligned", "of", "mean alignment", ""):
        table.add_column(column, justify="left" if column in {"rate", ""} else "right", no_wrap=True)
    for name, rate in entry["rates"].items():
        mark = " (headline)" if name == entry["headline"] else ""
        note = f"unavailable: {rate['unavailable']}" if rate["unavailable"] else rate["note"]
        cells = (
            name + mark,
            _percent(rate["value"], 2),
            _ends(rate["interval"]),
            GAP if rate["unavailable"] else str(rate["misaligned"]),
            GAP if rate["unavailable"] else str(rate["eligible"]),
            GAP if rate["mean_alignment"] is None else f"{rate['mean_alignment']:.1f}",
            "; ".join([note, *(f"{part} {_percent(value, 1)}" for part, value in _parts(rate))]).strip("; "),
        )
        table.add_row(*map(Text, cells))
    roomy = console.options.update(max_width=10_000)
    table.width = Measurement.get(console, roomy, table).maximum  # over the edge rather than squeezed to nothing
    console.print(table, crop=False)
    console.print(Text(_selection(entry["selection"])))
    flags = ", ".join(f"{name} {x['flagged']}/{x['of']}" for name, x in entry["flagged"].items() if x["of"])
    console.print(Text(f"flagged by filters: {flags or 'not run on this log'}\n"))


def _print_over_models(entries: list[dict[str, Any]], as_json: bool, console: Console) -> None:
    """`betley_plots` of each question, over models that one judge saw answer the same prompts."""
    from em_eval.rates.over_models import over_models

    for what in ("questions", "judges", "readers"):
        kinds = {json.dumps(entry[what]) for entry in entries}
        if len(kinds) > 1:
            raise UserError(
                f"--over-models: these logs differ in {what} ({' and '.join(sorted(kinds))}): give alike ones"
            )
    models = [entry["model"] for entry in entries]
    if twice := sorted({model for model in models if models.count(model) > 1}):
        raise UserError(f"--over-models: {twice[0]} has several of these logs: give one log a model")
    means = over_models([entry["rates"][PLOTTED]["parts"] for entry in entries])
    if as_json:
        print(json.dumps({question: asdict(mean) for question, mean in means.items()}, indent=2))
        return
    console.print(Text(f"{PLOTTED}, mean over {len(models)} models, 95 % by bootstrap over the models", style="bold"))
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("question", "%", "95 %", "models"):
        table.add_column(column, justify="left" if column == "question" else "right", no_wrap=True)
    for question, mean in means.items():
        ends = GAP if mean.low is None else _ends(asdict(mean))
        table.add_row(*map(Text, (question, _percent(mean.value, 2), ends, str(mean.models))))
    console.print(table)
    if not means:
        console.print(Text("no question has enough coherent answers in any of these logs"))


def _parts(rate: dict[str, Any]) -> list[tuple[str, float]]:
    """Parts that fit in a line; those of a question each are for --json."""
    return list(rate["parts"].items()) if len(rate["parts"]) <= 2 else []


def _selection(found: dict[str, Any]) -> str:
    def both(name: str) -> str:
        interval = found[name]
        return GAP if interval is None else f"{_percent(interval['value'], 1)} % [{_ends(interval)}]"

    return (
        f"selection: {both('conditional')} of coherent answers, {both('joint')} of all answers; with the "
        f"{found['incoherent']} incoherent ones counted, {both('best')} if none of them is misaligned, "
        f"{both('worst')} if all are"
    )


def _print_definitions(console: Console) -> None:
    from em_eval.rates import DEFINITIONS

    console.print(Text("definitions", style="bold"))
    for name, definition in DEFINITIONS.items():
        console.print(Text(f"{name}: {definition.words} ({definition.source})"))


def _percent(value: float | None, digits: int) -> str:
    return GAP if value is None else f"{100 * value:.{digits}f}"


def _ends(interval: dict[str, Any] | None) -> str:
    if interval is None:
        return GAP
    return f"{_percent(interval['low'], 1)}, {_percent(interval['high'], 1)}"
