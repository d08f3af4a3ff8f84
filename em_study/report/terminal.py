"""Results as text: the number formats and statements that every output shares, and the terminal's table."""

import math

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typing_extensions import TypeIs

from em_study.results import Results, Row
from em_study.statistics import Interval

GAP = "–"
COLUMNS = (
    "Label",
    "Arm",
    "Loss",
    "Held out",
    "EM rate, %",
    "Eligible",
    "Corrected, %",
    "Alignment",
    "Coherent, %",
    "Probe shift",
    "PR",
)


def print_table(results: Results, console: Console) -> None:
    """One line a row, then the verdict, the judge, the seeds, and what is missing.

    Everything is printed as `Text`: a label with square brackets is no markup.
    """
    table = Table(title=Text(results.title or results.study), box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in COLUMNS:
        wraps = column in {"Label", "Arm"}
        table.add_column(column, justify="left" if wraps else "right", no_wrap=not wraps, overflow="fold")
    for row in results.rows:
        table.add_row(*(Text(cell) for cell in _cells(row)))
    console.print(table)
    console.print(Text(results.verdict))
    console.print(Text(f"Judge: {results.judge['in_words']}"))
    console.print(Text(seed_statement(results.seeds)))
    for row in results.rows:
        if row.missing:
            console.print(Text(f"Missing for {row.label}: {', '.join(row.missing)}"))


def seed_statement(seeds: tuple[int, ...]) -> str:
    """How far the results carry: what one seed shows may be chance."""
    if len(seeds) == 1:
        return "One seed: a lead, not a result."
    return f"{len(seeds)} seeds: {', '.join(map(str, seeds))}."


def is_known(value: float | None) -> TypeIs[float]:
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
        decimal(row.manifest.loss.train, 2),
        decimal(row.manifest.loss.held_out, 2),
        with_range(row.rate, 1, scale=100),
        f"{row.eligible}/{row.total}" if row.total else GAP,
        decimal(row.corrected and 100 * row.corrected.value, 1),
        decimal(row.alignment and row.alignment.value, 1),
        decimal(row.coherent and 100 * row.coherent.value, 1),
        decimal(row.shift and row.shift.value, 3),
        decimal(row.manifest.spectrum.participation_ratio, 1),
    )
