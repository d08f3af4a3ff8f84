"""The report as files: one page of tables and figures, the figures by themselves, and the transcripts of each row.

Answers come from misaligned models: everything is escaped, and the pages forbid themselves to load anything. The
page's sections are one template each, in the order of `templates/report.html.j2`.
"""

import math
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from jinja2 import Environment

from em_core.files import write_bytes, write_text
from em_core.templates import templates
from em_eval.answers import Answer
from em_eval.intervals import Interval
from em_eval.outcomes import OUTCOMES
from em_eval.rates import DEFINITIONS, HEADLINE
from em_study.blocks import NOT_COMPARED
from em_study.comparison import Comparison, compare, extremes_by
from em_study.dose import WORDS, dose_table
from em_study.gaps import MOST
from em_study.names import display_name
from em_study.paired import PAIRED, WIDER
from em_study.report import figures
from em_study.report.cells import gap, interval, number, probability
from em_study.report.examples import anchor, example_groups
from em_study.report.judge import judge_notes, judge_tables
from em_study.report.made import cell_commands, commands, what_was_run
from em_study.report.published import assess
from em_study.report.rows import last, missing
from em_study.report.summary import means_over_seeds
from em_study.report.terminal import is_known, judge_in_words, seed_statement
from em_study.report.viewer import answer_link, write_viewer
from em_study.results import Results, Row
from em_study.splits import SPLITS, changes, differs, order, split_rate

TRANSCRIPTS = "transcripts"
FIGURES = "figures"
TEMPLATES = Path(__file__).with_name("templates")
MOST_LINES = 40  # of the table of checkpoints; with more, those before the last are folded away
LOSSES = {"train_loss": "training loss", "held_out_loss": "held-out loss"}
CONTENTS = {
    "run": "What was run",
    "table": "Checkpoints",
    "rates": "EM rate by optimiser",
    "pairs": "Pairwise contrasts",
    "dose": "Optimiser or dose",
    "extremes": "How far apart",
    "penalty": "Effect of penalties",
    "loss-alignment": "Loss and alignment",
    "variance": "Spread between runs",
    "trajectories": "Along training",
    "spectra": "Spectra",
    "outcome-counts": "Outcomes",
    "splits": "In-domain, format, CODE",
    "published": "Published and measured",
    "examples": "Examples",
    "the-judge": "The judge",
    "words": "What the words mean",
    "commands": "Commands",
}
PAIRING = (
    "Student's t over question families, both sides on the same questions and seeds; of several seeds their spread is "
    "in the error, and the interval is that of t over the seeds' differences where that is wider"
)
METHODS = {
    "family bootstrap": "question families drawn anew 10,000 times, corrected for bias and skewness (BCa)",
    "Clopper-Pearson, effective n": (
        "exact binomial interval on the number of independent answers these are worth; used where families "
        "or events are few, and never of zero width"
    ),
    "clustered t": "Student's t with errors clustered by question family",
    "Rogan-Gladen": "draws of rate, sensitivity and specificity within their own intervals",
    PAIRED: PAIRING,
    WIDER: (
        f"{PAIRING}; or squares of both sides' own intervals added, less what their questions have in common (Newcombe "
        "1998), whichever is wider; used where families or events are few"
    ),
}


@dataclass(frozen=True)
class Line:
    """A row with what the page needs beside it.

    Attributes:
        slug: name of its transcripts, unique among the rows.
        colour: as in the figures.
        end: whether it is the last checkpoint of its run, or a base model.
        why: for each quantity that may be missing, why it would be.
    """

    row: Row
    slug: str
    colour: str
    why: dict[str, str]
    end: bool


def write_reports(
    results: Mapping[str, Results], folder: Path, study_file: Path | None = None, bundle: bool = False
) -> Path:
    """A report for each `em` evaluation by its name, linked to each other: the first as `index.html`, the others in
    folders of their own. Returns the path of the first; arguments and errors as of `write_report`."""
    first = next(iter(results))
    folders = {name: folder if name == first else folder / f"evaluation-{name}" for name in results}
    for name, found in results.items():
        others = {
            other: f"{Path(os.path.relpath(place, folders[name])).as_posix()}/index.html"
            for other, place in folders.items()
            if other != name
        }
        write_report(found, folders[name], study_file, bundle, others, "" if name == first else name)
    return folder / "index.html"


def write_report(
    results: Results,
    folder: Path,
    study_file: Path | None = None,
    bundle: bool = False,
    others: Mapping[str, str] = {},
    further: str = "",
) -> Path:
    """Write `index.html`, `figures/` and `transcripts/<slug>.html` under `folder`; returns the path of the first.

    Args:
        study_file: as the commands on the page name it.
        bundle: write Inspect's viewer with the logs as `viewer/` too, and link answers to it.
        others: addresses of the reports of the study's other evaluations, by name.
        further: name of this one, where it is not the study's first.

    Raises:
        UserError: `bundle` without any log.
    """
    if bundle:
        write_viewer(results.rows, folder)
    slugs = unique_slugs([row.label for row in results.rows])
    colours = figures.palette(results.rows)
    ends = {id(row) for row in last(results.rows)}
    lines = [
        Line(
            row,
            slug,
            figures.PAGE_COLOURS.get(colours[row.label], colours[row.label]),
            reasons(row),
            row.arm == "base" or id(row) in ends,
        )
        for row, slug in zip(results.rows, slugs, strict=True)
    ]
    environment = _environment(lines, bundle)
    transcript = environment.get_template("transcript.html.j2")
    for line in lines:
        if "em" in line.row.not_asked:
            continue
        page = transcript.render(
            line=line,
            study=results.title or results.study,
            answers=worst_first(line.row.answers),
            counts=Counter(answer.outcome for answer in line.row.answers),
            outcomes=OUTCOMES,
        )
        write_text(folder / TRANSCRIPTS / f"{line.slug}.html", page)
    facts = _facts(results, lines, colours) | {
        "commands": commands(results, study_file, bundle, further),
        "others": others,
    }
    _write_figures(_drawings(facts), folder / FIGURES)
    index = folder / "index.html"
    write_text(index, environment.get_template("report.html.j2").render(**facts))
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
    if "em" in row.not_asked:
        no_answers = "the study asks no questions at this checkpoint"
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


def _environment(lines: Sequence[Line], viewer: bool) -> Environment:
    environment = templates(TEMPLATES, html=True)
    slugs = {id(line.row): line.slug for line in lines}
    colours = {id(line.row): line.colour for line in lines}
    environment.filters |= {
        "number": number,
        "interval": interval,
        "gap": gap,
        "probability": probability,
        "display_name": display_name,
        "anchor": anchor,
        "answer_link": answer_link,
        "slug": lambda row: slugs[id(row)],
        "colour": lambda row: colours[id(row)],
    }
    environment.globals["viewer"] = viewer
    return environment


def _facts(results: Results, lines: Sequence[Line], colours: dict[str, str]) -> dict[str, Any]:
    """Everything that the index page's templates name."""
    comparison = compare(results)
    doses = [dose_table(results, outcome) for outcome in WORDS]
    assessment = assess(results)
    apart = [(WORDS[outcome], extremes_by(results, outcome)) for outcome in WORDS]
    absent = {
        "published": not results.reproduces,
        "extremes": not any(found for _, (found, _) in apart),
        "penalty": not comparison.penalties,
    }
    here = {name: title for name, title in CONTENTS.items() if not absent.get(name)}
    return {
        "results": results,
        "lines": lines,
        "contents": list(here.items()),
        "what_was_run": what_was_run(results.rows, results.evaluations),
        "outcomes": OUTCOMES,
        "seed_statement": seed_statement(results.seeds),
        "drawings": _of_rows(results.rows, colours),
        "comparison": comparison,
        "doses": [(table, figures.dose_differences(table)) for table in doses],
        "extremes": [(words, found) for words, (found, _) in apart if found],
        "extremes_missing": sorted({line for _, (_, lost) in apart for line in lost}),
        "most_lines": MOST_LINES,
        "missing": missing(results.rows),
        "most_absent": MOST,
        "means": means_over_seeds(results.rows),
        "straight": any(table.straight for table in doses),
        "regressions": _regressions(comparison, results.rows, colours),
        "splits": SPLITS,
        "split_lines": [(row, [split_rate(one, row) for one in SPLITS]) for row in results.rows if row.answers],
        "split_changes": changes(results.rows),
        "split_same": not any(differs(row) for row in results.rows),
        "ranked": len(order(SPLITS[0], results.rows)) > 1,
        "assessment": assessment,
        "examples": example_groups(results.rows),
        "judge_in_words": judge_in_words(results),
        "judge_notes": judge_notes(results.judge),
        "judge_tables": judge_tables(results.judge.get("figures") or {}),
        "definition": DEFINITIONS[HEADLINE],
        "methods": {x.method: METHODS.get(x.method, "") for x in _intervals(results)},
        "cell_commands": cell_commands(results),
    }


def _of_rows(rows: Sequence[Row], colours: dict[str, str]) -> dict[str, figures.Drawing]:
    """The figures that the rows alone make, by the name that templates give them."""
    return {
        draw.__name__: draw(rows, colours)
        for draw in (
            figures.rate_of_each,
            figures.rate_by_loss,
            figures.probe_shift,
            figures.probe_trajectory,
            figures.rate_trajectory,
            figures.spectra,
            figures.spectra_by_layer,
            figures.flatness_by_layer,
            figures.outcome_bars,
        )
    }


def _regressions(comparison: Comparison, rows: Sequence[Row], colours: dict[str, str]) -> list[tuple[str, Any, Any]]:
    """For each base model and loss its name in words, the regression or None, and the figure."""
    found = {(one.base_model, one.loss): one for one in comparison.loss_alignment}
    bases = sorted({Path(row.manifest.base.id).name for row in rows if row.arm not in NOT_COMPARED}) or [""]
    lines = []
    for base, (loss, words) in product(bases, LOSSES.items()):
        of = base if len(bases) > 1 else ""
        prefix = f"alignment on {loss}, {base}: "
        why = next((line.removeprefix(prefix) for line in comparison.missing if line.startswith(prefix)), "no such run")
        drawing = figures.alignment_by_loss(found.get((base, loss)), rows, colours, loss, why, of)
        lines.append((f"{words}, {of}" if of else words, found.get((base, loss)), drawing))
    return lines


def _drawings(facts: dict[str, Any]) -> list[figures.Drawing]:
    every = [*facts["drawings"].values(), *(x for _, x in facts["doses"]), *(x for *_, x in facts["regressions"])]
    return [drawing for drawing in every if drawing.files]


def _write_figures(drawings: Sequence[figures.Drawing], folder: Path) -> None:
    """As files; those of an earlier report that are not drawn any more go."""
    names = {f"{drawing.slug}.{ending}": data for drawing in drawings for ending, data in drawing.files.items()}
    for name, data in names.items():
        write_bytes(folder / name, data)
    for path in folder.glob("*"):
        if path.name not in names and path.suffix in (".svg", ".png"):
            path.unlink()


def _intervals(results: Results) -> list[Interval]:
    """Every interval of the report, in the order in which a reader meets them."""
    every = [x for row in results.rows for x in (row.rate, row.corrected, row.alignment, row.coherent, row.shift)]
    return [x for x in every if x is not None] + [contrast.difference for contrast in results.contrasts]
