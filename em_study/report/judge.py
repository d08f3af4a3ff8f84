"""The judge's figures and notes, as the page shows them."""

from dataclasses import dataclass
from typing import Any

from em_eval.intervals import Interval
from em_study.report.terminal import GAP, decimal, with_range


@dataclass(frozen=True)
class JudgeTable:
    """Figures of the judge as text: column names, then (row name, cells)."""

    title: str
    columns: list[str]
    rows: list[tuple[str, list[str]]]


def judge_notes(facts: dict[str, Any]) -> list[str]:
    """What else a reader of the judge's scores must know: its method, its operating points, who labelled."""
    labels = facts.get("labels") or {}
    notes = [str(facts[name]) for name in ("method", "operating_points") if facts.get(name)]
    if labels:
        agreement = ", ".join(f"{name} {value}" for name, value in labels["kappa_between_passes"].items())
        notes.append(
            f"Fitted on {labels['n']} labelled answers, {labels['sampled']} of them sampled from models; labelled by "
            f"{labels['labelled_by']}; kappa between the passes: {agreement}"
        )
    if facts and not facts.get("figures"):
        notes.append(
            "How far this judge agrees with labels or with people was not measured, so that no rate is corrected for it"
        )
    return notes


def judge_tables(figures: dict[str, Any], title: str = "") -> list[JudgeTable]:
    """Nested figures as small tables, whatever their names.

    Plain values make a table of one column; dictionaries of plain values beside each other make one table
    with a row each; anything deeper gets tables of its own.
    """
    plain = {name: value for name, value in figures.items() if not isinstance(value, dict)}
    nested = {name: value for name, value in figures.items() if isinstance(value, dict)}
    deep = {name for name, inner in nested.items() if any(isinstance(x, dict) for x in inner.values())}
    flat = {name: inner for name, inner in nested.items() if name not in deep}
    tables = []
    if plain:
        rows = [(_words(name), [_leaf(value)]) for name, value in plain.items()]
        tables.append(JudgeTable(title, ["value"], rows))
    if flat:
        columns = list(dict.fromkeys(name for inner in flat.values() for name in inner))
        rows = [(_words(name), [_leaf(inner.get(c)) for c in columns]) for name, inner in flat.items()]
        tables.append(JudgeTable(title, [_words(c) for c in columns], rows))
    for name, inner in nested.items():
        if name in deep:
            tables += judge_tables(inner, f"{title}, {_words(name)}" if title else _words(name))
    return tables


def _leaf(value: Any) -> str:
    """One of the judge's figures; three numbers, the first between the others, are value and interval."""
    if value is None:
        return GAP
    if isinstance(value, list | tuple):
        if len(value) == 3 and all(isinstance(x, int | float) for x in value):
            centre, low, high = value
            if low <= centre <= high:
                return with_range(Interval(centre, low, high, ""), 2)
        return ", ".join(map(_leaf, value))
    if isinstance(value, float):
        return decimal(value, 2)
    return str(value)


def _words(name: Any) -> str:
    return str(name).replace("_", " ")
