"""`em compare`: is it the optimiser, or the dose? The study's comparisons as tables."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from em_core.errors import UserError

if TYPE_CHECKING:
    from em_eval.intervals import Interval
    from em_study.comparison import Comparison


def add(app: typer.Typer) -> None:
    app.command(
        epilog="Examples: em compare studies/demo.yaml | em compare big.yaml --outcome alignment --level norm_ba=2.5"
    )(compare)


def compare(
    study: Annotated[Path, typer.Argument(help="study file, e.g. studies/demo.yaml", show_default=False)],
    evaluation: Annotated[str | None, typer.Option(help="name of an em evaluation; default: the first")] = None,
    outcome: Annotated[Literal["rate", "alignment", "probe"], typer.Option(help="of matched comparisons")] = "rate",
    level: Annotated[
        list[str] | None,
        typer.Option(help="QUANTITY=VALUE to match at (train_loss, held_out_loss, norm_ba, tokens_seen); repeatable"),
    ] = None,
) -> None:
    """Contrasts of optimisers, variance shares, loss against alignment, and comparisons at equal dose."""
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
    print_comparison(compare_results(results, outcome, levels), outcome, Console())


def _level(text: str) -> tuple[str, float]:
    from em_study.comparison import QUANTITIES

    name, _, value = text.partition("=")
    try:
        number = float(value)
    except ValueError:
        number = float("nan")
    if name not in QUANTITIES or number != number:
        raise UserError(f"--level {text}: write QUANTITY=VALUE, with one of {', '.join(QUANTITIES)}")
    return name, number


def print_comparison(found: "Comparison", outcome: str, console: Console) -> None:
    contrasts = _table("Optimisers: difference of rates, paired by prompt", "pair", "difference, points", "p (Holm)")
    for c in found.contrasts:
        contrasts.add_row(f"{c.a} - {c.b}", _interval(c.difference, 100), f"{c.p:.3f}")
        for block in c.only_one:
            contrasts.add_row("", f"without {block}, which only one of them has", "")
    variance = _table("Variance between runs", "outcome", "axis", "share, %", "p")
    for v in found.variance:
        for axis, share in v.shares.items():
            p = f"{v.p[axis]:.3f}" if axis in v.p else "-"
            variance.add_row(v.outcome, axis, f"{100 * share:.0f}", p)
        if not v.balanced:
            variance.add_row(v.outcome, "the grid is not balanced: shares of type II", "", "")
    fits = _table("Mean alignment on log loss", "loss", "fit", "n", "R2", "adjusted R2", "slope")
    for r in found.loss_alignment:
        for fit in r.fits.values():
            slope = "-" if fit.slope is None else _interval(fit.slope)
            fits.add_row(r.loss, fit.name, str(fit.n), f"{fit.r2:.2f}", f"{fit.adjusted_r2:.2f}", slope)
        for name, offset in r.offsets.items():
            fits.add_row(r.loss, f"{name} - {r.reference} at equal loss", "", "", "", _interval(offset))
        for kind, groups in (("optimiser", r.without_optimiser), ("dataset", r.without_dataset)):
            for left in groups:
                words = f"left out {kind} {left.group}: error {left.rmse:.1f}, bias {left.bias:+.1f}"
                fits.add_row(r.loss, words, str(left.n), "", "", "")
        for warning in r.warnings:
            fits.add_row(r.loss, f"warning: {warning}", "", "", "", "")
    matched = _table(f"At equal dose: {outcome}", "equal", "block", "run or pair", "value", "at step")
    for m in found.matched:
        equal = f"{m.quantity} {m.level:.4g}"
        for run in m.runs:
            value = run.why if run.outcome is None else _interval(run.outcome)
            matched.add_row(equal, m.block, run.run.label, value, "" if run.step is None else f"{run.step:.0f}")
        for pair in m.contrasts:
            matched.add_row(equal, m.block, f"{pair.a} - {pair.b}", _interval(pair.difference), "")
    for table in (contrasts, variance, fits, matched):
        if table.row_count:
            console.print(table)
    for line in found.missing:
        console.print(f"missing: {line}", soft_wrap=True, markup=False, highlight=False)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _interval(found: "Interval", scale: float = 1.0) -> str:
    return f"{scale * found.value:.3g} ({scale * found.low:.3g}, {scale * found.high:.3g})"
