"""The report as files: one page of tables and figures, and the transcripts of each row.

Answers come from misaligned models: everything is escaped, and the pages forbid themselves to load anything.
"""

import math
import re
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from em_core.files import write_text
from em_eval.answers import Answer
from em_eval.intervals import Interval
from em_eval.outcomes import OUTCOMES
from em_eval.rates import DEFINITIONS, HEADLINE
from em_study.contrasts import NO_DRAW, PAIRED, WIDER
from em_study.report.figures import PAGE_COLOURS, draw_all, palette
from em_study.report.terminal import GAP, decimal, is_known, judge_in_words, seed_statement, with_range
from em_study.results import Results, Row, display_name

TRANSCRIPTS = "transcripts"
METHODS = {
    "family bootstrap": "question families drawn anew 10,000 times, corrected for bias and skewness (BCa)",
    "Clopper-Pearson, effective n": (
        "exact binomial interval on the number of independent answers these are worth; used where families "
        "or events are few, and never of zero width"
    ),
    "clustered t": "Student's t with errors clustered by question family",
    "Rogan-Gladen": "draws of rate, sensitivity and specificity within their own intervals",
    PAIRED: "the same draws of question families and seeds for both sides of a difference",
    WIDER: (
        "the same draws of question families and seeds for both sides, or squares of both rates' intervals added "
        "(Newcombe 1998), whichever is wider; used where families or events are few"
    ),
    NO_DRAW: "nothing is known: in every draw of question families one side has no answer that counts",
}


@dataclass(frozen=True)
class Line:
    """A row with what the page needs beside it.

    Attributes:
        slug: name of its transcripts, unique among the rows.
        colour: as in the figures.
        why: for each quantity that may be missing, why it would be.
    """

    row: Row
    slug: str
    colour: str
    why: dict[str, str]


@dataclass(frozen=True)
class JudgeTable:
    """Figures of the judge as text: column names, then (row name, cells)."""

    title: str
    columns: list[str]
    rows: list[tuple[str, list[str]]]


def write_report(results: Results, folder: Path) -> Path:
    """Write `index.html` and `transcripts/<slug>.html` under `folder`; returns the path of the first."""
    environment = _environment()
    slugs = unique_slugs([row.label for row in results.rows])
    colours = palette(results.rows)
    lines = [
        Line(row, slug, PAGE_COLOURS.get(colours[row.label], colours[row.label]), reasons(row))
        for row, slug in zip(results.rows, slugs, strict=True)
    ]
    transcript = environment.get_template("transcript.html.j2")
    for line in lines:
        page = transcript.render(
            line=line,
            study=results.title or results.study,
            answers=worst_first(line.row.answers),
            counts=Counter(answer.outcome for answer in line.row.answers),
            outcomes=OUTCOMES,
        )
        write_text(folder / TRANSCRIPTS / f"{line.slug}.html", page)
    index = folder / "index.html"
    write_text(index, environment.get_template("report.html.j2").render(**_facts(results, lines)))
    return index


def unique_slugs(labels: Sequence[str]) -> list[str]:
    """File names for labels; a repeated one gets a number."""
    slugs: list[str] = []
    for label in labels:
        stem = re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")[:80] or "row"
        slug, number = stem, 1
        while slug in slugs:
            number += 1
            slug = f"{stem}-{number}"
        slugs.append(slug)
    return slugs


def worst_first(answers: Sequence[Answer]) -> list[Answer]:
    """By alignment, lowest first; answers without a number come last."""

    def key(answer: Answer) -> tuple[float, str, int]:
        score = answer.judgement.alignment
        return (score if is_known(score) else math.inf, answer.prompt_id, answer.epoch)

    return sorted(answers, key=key)


def reasons(row: Row) -> dict[str, str]:
    """Why each quantity of a row is missing, where it is."""
    base = row.arm == "base"
    untrained = "the base model: nothing was trained"
    no_answers = "no answers were joined to this checkpoint"
    return {
        "trained": untrained if base else "not in the checkpoint's manifest",
        "spectrum": f"{untrained}, so BA = 0" if base else "BA = 0, or not in the checkpoint's manifest",
        "held_out": "not measured at this checkpoint",
        "rate": "no answer was eligible" if row.total else no_answers,
        "corrected": "needs a rate, and a judge that beats chance and was measured on answers drawn as these were",
        "alignment": "no scores from at least two question families" if row.total else no_answers,
        "coherent": "no answer has a coherence score" if row.total else no_answers,
        "shift": "the reference: its shift is 0 by definition"
        if base
        else "no probe of both this checkpoint and the base model",
        "outcomes": no_answers,
    }


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


def gap(why: str) -> Markup:
    """What stands where there is no value."""
    return Markup('<span class="gap" title="{}">{}</span>').format(why, GAP)


def number(value: float | None, why: str, digits: int = 2) -> Markup | str:
    return decimal(value, digits) if is_known(value) else gap(why)


def interval(x: Interval | None, why: str, digits: int = 1, scale: float = 1) -> Markup:
    """The value, and under it its 95 % interval; how that was made is in the title."""
    if x is None or not is_known(x.value):
        return gap(why)
    low, high = decimal(scale * x.low, digits), decimal(scale * x.high, digits)
    return Markup('<span title="95 % interval: {}">{}<span class="range">{} to {}</span></span>').format(
        x.method, decimal(scale * x.value, digits), low, high
    )


def probability(p: float) -> str:
    return "< 0.001" if p < 0.001 else decimal(p, 3)


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "interval": interval,
        "gap": gap,
        "probability": probability,
        "display_name": display_name,
    }
    return environment


def _facts(results: Results, lines: list[Line]) -> dict[str, Any]:
    """Everything that the index page's template names."""
    used = {x.method: METHODS.get(x.method, "") for x in _intervals(results)}
    return {
        "results": results,
        "lines": lines,
        "outcomes": OUTCOMES,
        "seed_statement": seed_statement(results.seeds),
        "drawings": draw_all(results.rows),
        "judge_in_words": judge_in_words(results),
        "judge_notes": judge_notes(results.judge),
        "judge_tables": judge_tables(results.judge.get("figures") or {}),
        "definition": DEFINITIONS[HEADLINE],
        "methods": used,
        "view_command": f"inspect view --log-dir {shlex.quote(str(results.log_dir))}",
    }


def _intervals(results: Results) -> list[Interval]:
    """Every interval of the report, in the order in which a reader meets them."""
    every = [x for row in results.rows for x in (row.rate, row.corrected, row.alignment, row.coherent, row.shift)]
    return [x for x in every if x is not None] + [contrast.difference for contrast in results.contrasts]


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
