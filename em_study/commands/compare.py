"""`em compare`: is it the optimiser, or the dose? The study's comparisons as tables."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from em_core.errors import UserError
from em_study.gaps import MOST, gathered

if TYPE_CHECKING:
    from em_eval.intervals import Interval
    from em_study.comparison import Comparison

WIDE = 240  # columns where nobody's terminal is the limit


def add(app: typer.Typer) -> None:
    app.command(
        epilog="Examples: em compare studies/demo.yaml | em compare big.yaml --outcome alignment --level norm_ba=2.5"
    )(compare)


def compare(
    study: Annotated[Path, typer.Argument(help="study file, e.g. studies/demo.yaml", show_default=False)],
    evaluation: Annotated[str | None, typer.Option(help="name of an em evaluation; default: the first")] = None,
    outcome: Annotated[
        Literal["rate", "alignment", "probe"], typer.Option(help="of matched comparisons and extremes")
    ] = "rate",
    level: Annotated[
        list[str] | None,
        typer.Option(help="QUANTITY=VALUE to match at (train_loss, held_out_loss, norm_ba, tokens_seen); repeatable"),
    ] = None,
    missing: Annotated[
        bool, typer.Option("--missing", help=f"name all that is missing, also where over {MOST} lack the same")
    ] = False,
) -> None:
    """Contrasts of optimisers, variance shares, loss against alignment, equal dose, extremes and penalties."""
    from em_study.comparison import compare as compare_results
    from em_study.execute import absent, existing
    from em_study.plan import make_plan
    from em_study.results import collect
    from em_study.study import load_study

    loaded = load_study(study)
    names = [asked.name for asked in loaded.evaluations if asked.task == "em"]
    if evaluation is not None and evaluation not in names:
        raise UserError(f"{study} has no em evaluation '{evaluation}': it has {', '.join(names) or 'none'}")
    levels = dict(_level(text) for text in level or [])
    plan = make_plan(loaded)
    results = collect(loaded, existing(plan), evaluation, absent(plan))
    found = compare_results(results, outcome, levels)
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = WIDE
    print_comparison(found, outcome, console)
    for line in found.missing if missing else gathered(found.missing, "--missing"):
        console.print(f"missing: {line}", soft_wrap=True, markup=False, highlight=False)


def _level(text: str) -> tuple[str, float]:
    from em_study.comparison import QUANTITIES

    name, _, value = text.partition("=")
    try:
        number = float(value)
    except ValueError:
        number = float("nan")
    if name not in QUANTITIES or not 0 <= number < float("inf"):
        raise UserError(
            f"--level {text}: write QUANTITY=VALUE, with one of {', '.join(QUANTITIES)} and a number from 0"
        )
    return name, number


def print_comparison(found: "Comparison", outcome: str, console: Console) -> None:
    tables = (
        _contrasts(found),
        _variance(found),
        _fits(found),
        _dose(found, outcome),
        _matched(found, outcome),
        _extremes(found, outcome),
        _penalties(found),
    )
    for table in tables:
        if table.row_count:
            console.print(table)


def _contrasts(found: "Comparison") -> Table:
    table = _table(
        "Optimisers: difference of rates, paired by prompt", "pair", "difference, points", "p (Holm)", "seeds"
    )
    for c in found.contrasts:
        table.add_row(f"{c.a} - {c.b}", _interval(c.difference, 100), f"{c.p:.3f}", str(c.seeds))
        for block in c.only_one:
            table.add_row("", f"without {block}, where only one of them has a rate", "", "")
    return table


def _variance(found: "Comparison") -> Table:
    table = _table("Variance between runs", "outcome", "axis", "share, %", "p")
    for v in found.variance:
        for axis, share in v.shares.items():
            p = f"{v.p[axis]:.3f}" if axis in v.p else "-"
            table.add_row(v.outcome, axis, f"{100 * share:.0f}", p)
        if v.sampling is not None:
            table.add_row(
                v.outcome, f"sampling alone would make, of {v.runs} equal runs", f"{100 * v.sampling:.0f}", ""
            )
        if not v.balanced:
            table.add_row(v.outcome, "the grid is not balanced: shares of type II", "", "")
    return table


def _fits(found: "Comparison") -> Table:
    table = _table("Mean alignment on log loss", "model, loss", "fit", "n", "R2", "adjusted R2", "slope")
    for r in found.loss_alignment:
        on = f"{r.base_model}, {r.loss}"
        for fit in r.fits.values():
            slope = "-" if fit.slope is None else _interval(fit.slope)
            table.add_row(on, fit.name, str(fit.n), f"{fit.r2:.2f}", f"{fit.adjusted_r2:.2f}", slope)
        for words, p in (("intercepts", r.p_optimiser), ("own slopes", r.p_slopes)):
            if p is not None:
                how = "clustered by run" if r.clustered else "one checkpoint a run"
                table.add_row(on, f"Wald test of {words} ({how}): p {p:.3f}", "", "", "", "")
        for name, offset in r.offsets.items():
            table.add_row(on, f"{name} - {r.reference} at equal loss", "", "", "", _interval(offset))
        for kind, groups in (("optimiser", r.without_optimiser), ("dataset", r.without_dataset)):
            for left in groups:
                words = f"left out {kind} {left.group}: error {left.rmse:.1f}, bias {left.bias:+.1f}"
                table.add_row(on, words, str(left.n), "", "", "")
        for warning in r.warnings:
            table.add_row(on, f"warning: {warning}", "", "", "", "")
    return table


def _dose(found: "Comparison", outcome: str) -> Table:
    """Means over blocks; with one block they are the same as the table of blocks, which has their levels."""
    from em_study.dose import COLUMNS, over_blocks

    table = _table(
        f"Optimiser or dose: {outcome}, means over blocks",
        "pair",
        "compared",
        "difference",
        "p (Holm)",
        "blocks",
        "seeds",
    )
    cells = over_blocks(found.matched)
    if max((cell.blocks for cell in cells.values()), default=1) > 1:
        for (pair, quantity), cell in sorted(
            cells.items(), key=lambda item: (item[0][0], list(COLUMNS).index(item[0][1]))
        ):
            table.add_row(
                " - ".join(pair),
                COLUMNS[quantity],
                _interval(cell.difference),
                f"{cell.p:.3f}",
                str(cell.blocks),
                str(cell.seeds),
            )
    return table


def _matched(found: "Comparison", outcome: str) -> Table:
    table = _table(f"At equal dose: {outcome}", "equal", "block", "pair or run", "value", "p (Holm)", "over")
    for m in found.matched:
        for pair in m.contrasts:
            several = f", {pair.settings[0]} and {pair.settings[1]} settings" if max(pair.settings) > 1 else ""
            over = f"{pair.over}{several}"
            level = "at the end" if m.quantity == "end" else f"{m.quantity} {pair.level:.4g}"
            p = "" if pair.p is None else f"{pair.p:.3f}"
            table.add_row(level, m.block, f"{pair.a} - {pair.b}", _known(pair.difference), p, over)
            for run in pair.runs:
                if run.outcome is None:
                    table.add_row("", "", run.run.label, run.why, "", "")
    return table


def _extremes(found: "Comparison", outcome: str) -> Table:
    table = _table(f"How far apart: {outcome}", "data", "at", "lowest", "highest", "difference", "treatments")
    for e in found.extremes:
        where = "the end" if e.level is None else f"held-out loss {e.level:.4g}"
        ends = [f"{end.treatment}: {end.outcome.value:.3g} (n {end.answers})" for end in (e.lowest, e.highest)]
        table.add_row(e.data, where, *ends, _interval(e.difference), str(e.treatments))
        for line in e.short:
            table.add_row("", "", line, "", "", "")
    return table


def _penalties(found: "Comparison") -> Table:
    columns = ("rate, points", "alignment", "held-out loss", "training loss", "pairs (seeds)")
    table = _table("Penalties: with - without", "optimiser", "penalty", *columns)
    for p in found.penalties:
        changes = [_known(p.rate, 100), *(_known(x) for x in (p.alignment, p.held_out_loss, p.train_loss))]
        seeds = f"{p.seeds}, rates {p.rated_seeds}" if p.rate and p.rated_seeds != p.seeds else f"{p.seeds}"
        table.add_row(p.optimiser, p.words, *changes, f"{p.pairs} ({seeds})")
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _known(found: "Interval | None", scale: float = 1.0) -> str:
    if found is None:
        return "-"
    return _interval(found, scale) if found.low == found.low else f"{scale * found.value:.3g}"


def _interval(found: "Interval", scale: float = 1.0) -> str:
    return f"{scale * found.value:.3g} ({scale * found.low:.3g}, {scale * found.high:.3g})"
