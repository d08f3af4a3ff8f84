"""Results as text: the number formats and statements that every output shares, and the terminal's table."""

import math
from typing import TypeGuard

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from em_eval.intervals import Interval
from em_study.gaps import gathered
from em_study.report.rows import missing
from em_study.results import Results, Row

GAP = "–"
COLUMNS = (
    "Checkpoint",
    "Arm",
    "Held\nout",
    "EM rate, %",
    "Eligible",
    "Corr.\n%",
    "Align.",
    "Coh.\n%",
    "Probe\nshift",
    "PR",
)
KEY = (
    "Held out: loss, nats a token. Corr.: the rate corrected for the judge's errors. Align.: mean alignment, "
    "0 to 100. Coh.: share coherent. Probe shift: nats a token from the base. PR: participation ratio of BA."
)


def print_table(results: Results, console: Console) -> None:
    """One line a row, then the verdict, the judge, the seeds, and what is absent or missing.

    Everything is printed as `Text`: a label with square brackets is no markup. A table too wide for the
    console runs over its edge, where rich by itself would squeeze labels to nothing.
    """
    table = Table(title=Text(results.title or results.study), box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for column in COLUMNS:
        table.add_column(column, justify="left" if column in {"Checkpoint", "Arm"} else "right", no_wrap=True)
    for row in results.rows:
        table.add_row(*(Text(cell) for cell in _cells(row)))
    roomy = console.options.update(max_width=10_000)
    table.width = Measurement.get(console, roomy, table).maximum
    console.print(table, crop=False, soft_wrap=True)
    for line in (KEY, results.verdict, f"Judge: {judge_in_words(results)}", seed_statement(results.seeds)):
        console.print(Text(line))
    for what, lines in (("Absent: ", results.absent), ("Missing for ", missing(results.rows))):
        for line in gathered(lines, "the report"):
            console.print(Text(what + line), soft_wrap=True)


def seed_statement(seeds: tuple[int, ...]) -> str:
    """How far the results carry: what one seed shows may be chance."""
    if len(seeds) == 1:
        return "One seed: a lead, not a result."
    return f"{len(seeds)} seeds: {', '.join(map(str, seeds))}."


def judge_in_words(results: Results) -> str:
    """The judge as its logs describe it; without logs there is nothing to go by."""
    words = str(results.judge.get("in_words") or "not described in the logs that were joined.")
    return f"{results.judge['grader']}: {words}" if "grader" in results.judge else words


def is_known(value: float | None) -> TypeGuard[float]:
    """Whether there is a number to show; NaN stands for none."""
    return value is not None and math.isfinite(value)


def decimal(value: float | None, digits: int) -> str:
    """A number with a true minus sign, or an en dash where there is none. Never "−0.0"."""
    if not is_known(value):
        return GAP
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", "−")


def with_range(interval: Interval | None, digits: int, scale: float = 1) -> str:
    """Value and 95 % interval in one line, e.g. "12.3 [4.5, 20.1]"."""
    if interval is None or not is_known(interval.value):
        return GAP
    low, high = (decimal(scale * bound, digits) for bound in (interval.low, interval.high))
    return f"{decimal(scale * interval.value, digits)} [{low}, {high}]"


def _cells(row: Row) -> tuple[str, ...]:
    """In the order of `COLUMNS`."""
    return (
        row.label,
        row.arm,
        decimal(row.manifest.loss.held_out, 2),
        with_range(row.rate, 1, scale=100),
        f"{row.eligible}/{row.total}" if row.total else GAP,
        _centre(row.corrected, 1, scale=100),
        _centre(row.alignment, 1),
        _centre(row.coherent, 1, scale=100),
        GAP if row.arm == "base" else _centre(row.shift, 3),
        decimal(row.manifest.spectrum.participation_ratio, 1),
    )


def _centre(interval: Interval | None, digits: int, scale: float = 1) -> str:
    """The value alone, where the line has no room for its interval."""
    return GAP if interval is None else decimal(scale * interval.value, digits)
