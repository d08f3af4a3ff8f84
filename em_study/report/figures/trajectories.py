"""How probe and EM rate move along a run's checkpoints."""

from collections.abc import Callable, Sequence

import matplotlib

from em_eval.intervals import Interval
from em_study.report.figures.labels import label_ends
from em_study.report.figures.style import (
    MOST_LABELS,
    MUTED,
    STYLE,
    Drawing,
    by_optimiser,
    finish,
    key,
    line_style,
    lines_in_words,
    new_figure,
    not_drawn,
)
from em_study.report.rows import runs, trained
from em_study.results import Row


def probe_trajectory(rows: Sequence[Row], colours: dict[str, str]) -> Drawing:
    return _trajectory("Probe shift along training", "shift, nats a token", rows, colours, lambda row: row.shift, 1)


def rate_trajectory(rows: Sequence[Row], colours: dict[str, str]) -> Drawing:
    return _trajectory("EM rate along training", "EM rate, %", rows, colours, lambda row: row.rate, 100)


def _trajectory(
    title: str,
    y_axis: str,
    rows: Sequence[Row],
    colours: dict[str, str],
    read: Callable[[Row], Interval | None],
    scale: float,
) -> Drawing:
    """One line a run, from its base model at step 0; bars are 95 % intervals."""
    bases = {row.manifest.base.weights_sha256: x for row in rows if row.arm == "base" and (x := read(row)) is not None}
    lines = {}
    for run_id, found in runs(rows).items():
        points = [(row.manifest.step, x) for row in found if (x := read(row)) is not None]
        if len(points) > 1:
            start = bases.get(found[-1].manifest.base.weights_sha256)
            lines[run_id] = (found[-1], [(0, start), *points] if start is not None else points)
    if not lines:
        return not_drawn(title, "no run has two checkpoints or more, beside step 0, with this figure")
    with matplotlib.rc_context(STYLE):
        figure, (axes,) = new_figure(4.4)
        for row, points in lines.values():
            steps, values = [step for step, _ in points], [scale * x.value for _, x in points]
            axes.plot(steps, values, line_style(row), color=colours[row.label], linewidth=1.6, marker=".")
            if len(lines) <= MOST_LABELS:
                low, high = [scale * x.low for _, x in points], [scale * x.high for _, x in points]
                axes.vlines(steps, low, high, colors=colours[row.label], linewidth=0.8, alpha=0.6)
        axes.axhline(0, color=MUTED, linewidth=0.9, linestyle="--")
        axes.set_xlabel("optimiser step")
        axes.set_ylabel(y_axis)
        if len(lines) <= MOST_LABELS:
            ends = [
                (_without_step(row), colours[row.label], float(points[-1][0]), scale * points[-1][1].value)
                for row, points in lines.values()
            ]
            label_ends(figure, axes, ends)
        else:
            key(figure, by_optimiser(trained(rows), colours))
        single = len(runs(rows)) - len(lines)
        apart = f" Without {single} runs that have one such checkpoint only." if single else ""
        bars = "; bars: 95 % intervals" if len(lines) <= MOST_LABELS else ""
        styles = lines_in_words([row for row, _ in lines.values()])
        return finish(figure, title, f"One line a run, from its base model at step 0{bars}. {styles}{apart}".strip())


def _without_step(row: Row) -> str:
    return row.label.removesuffix(f", step {row.manifest.step}")
