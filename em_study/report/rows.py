"""Which rows of the results a figure or a section is about."""

from collections.abc import Sequence

from em_study.blocks import last_of_runs
from em_study.results import Row


def trained(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.arm != "base"]


def last(rows: Sequence[Row]) -> list[Row]:
    """The last checkpoint that there is of each run, finished or not."""
    return last_of_runs(trained(rows))


def of_optimisers(rows: Sequence[Row]) -> list[str]:
    """The optimisers' names, in order of appearance."""
    return list(dict.fromkeys(str(row.manifest.optimiser["name"]) for row in trained(rows)))


def runs(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The trained rows of each run, in order of steps."""
    found: dict[str, list[Row]] = {}
    for row in sorted(trained(rows), key=lambda row: row.manifest.step):
        found.setdefault(row.manifest.run_id, []).append(row)
    return found


def missing(rows: Sequence[Row]) -> list[str]:
    """What each row lacks, a line a row."""
    return [f"{row.label}: {', '.join(row.missing)}" for row in rows if row.missing]
