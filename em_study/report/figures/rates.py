"""EM rates: of each checkpoint, and over the loss that it reached."""

from collections.abc import Callable, Sequence

import matplotlib
from matplotlib.axes import Axes

from em_eval.intervals import Interval
from em_study.report.figures.labels import label_points
from em_study.report.figures.style import (
    MOST_LABELS,
    MUTED,
    STYLE,
    Drawing,
    base_band,
    by_optimiser,
    finish,
    key,
    left_out,
    mark,
    markers_in_words,
    new_figure,
    not_drawn,
)
from em_study.report.rows import last, trained
from em_study.report.terminal import is_known
from em_study.results import Row

ENDS = "The last checkpoint of each run."


def rate_of_each(rows: Sequence[Row], colours: dict[str, str]) -> Drawing:
    """EM rate with its interval, one line a run's last checkpoint; the base model as a band."""
    title = "EM rate"
    shown = [(row, row.rate) for row in last(rows) if row.rate is not None]
    if not shown:
        return not_drawn(title, "no trained row has an EM rate")

    def bases(axes: Axes) -> None:
        for row in rows:
            if row.arm == "base" and row.rate is not None:
                base_band(axes, row.label, row.rate, along="x", scale=100)

    caption = (
        f"{ENDS} 95 % intervals, clustered by question family. {markers_in_words([row for row, _ in shown])} "
        "Broken line and band: the base model and its interval." + left_out(last(rows), [row for row, _ in shown])
    )
    return _dots(title, shown, colours, "EM rate, %", 100, bases, caption)


def probe_shift(rows: Sequence[Row], colours: dict[str, str]) -> Drawing:
    """Shift of the preference probe, one line a run's last checkpoint."""
    title = "Probe shift"
    shown = [(row, row.shift) for row in last(rows) if row.shift is not None]
    if not shown:
        return not_drawn(title, "no row has a probe shift")

    def bases(axes: Axes) -> None:
        axes.axvline(0, color=MUTED, linewidth=0.9, linestyle="--")

    caption = (
        f"{ENDS} Relative to the base model (broken line), with 95 % intervals. "
        f"{markers_in_words([row for row, _ in shown])}" + left_out(last(rows), [row for row, _ in shown])
    )
    x_axis = "shift, nats a token: to the right, misaligned answers became likelier"
    return _dots(title, shown, colours, x_axis, 1, bases, caption)


def rate_by_loss(rows: Sequence[Row], colours: dict[str, str]) -> Drawing:
    """EM rate over loss. Equal learning rates are not equal doses; at equal loss, rates can be compared.

    The loss is the held-out one where as many rows have it. The base model, which was not trained, is a line.
    """
    title = "EM rate by loss"
    ends = last(rows)
    held_out = sum(_loss(row, True) is not None for row in ends)
    use_held_out = held_out > 0 and held_out >= sum(_loss(row, False) is not None for row in ends)
    name = "held-out loss" if use_held_out else "training loss"
    points = [
        (row, x, row.rate) for row in ends if row.rate is not None and (x := _loss(row, use_held_out)) is not None
    ]
    if not points:
        return not_drawn(title, f"no trained row has both an EM rate and a {name}")
    with matplotlib.rc_context(STYLE):
        figure, (axes,) = new_figure(4.8)
        for row, x, rate in points:
            mark(axes, row, colours[row.label], x, 100 * rate.value)
            axes.vlines(x, 100 * rate.low, 100 * rate.high, colors=colours[row.label], linewidth=1.3)
        for row in rows:
            if row.arm == "base" and row.rate is not None:
                base_band(axes, row.label, row.rate, scale=100)
        axes.margins(x=0.12)
        axes.set_ylim(bottom=-0.02 * axes.get_ylim()[1])
        axes.set_xlabel(f"{name}, nats a token")
        axes.set_ylabel("EM rate, %")
        if len(points) <= MOST_LABELS:
            label_points(figure, axes, [(row.label, colours[row.label], x, _percent(y)) for row, x, y in points])
        else:
            key(figure, by_optimiser(trained(rows), colours))
        caption = (
            f"{ENDS} Bars: 95 % intervals. {markers_in_words(ends)} Broken line and band: the base model and its "
            "interval. Loss is measured on the data that each arm was trained on."
            + left_out(
                [*ends, *(row for row in rows if row.arm == "base")],
                [row for row, *_ in points] + [row for row in rows if row.arm == "base" and row.rate],
            )
        )
        return finish(figure, title, caption)


def _dots(
    title: str,
    shown: Sequence[tuple[Row, Interval]],
    colours: dict[str, str],
    x_axis: str,
    scale: float,
    before: Callable[[Axes], None],
    caption: str,
) -> Drawing:
    """One line a row: a point and its interval along x."""
    with matplotlib.rc_context(STYLE):
        figure, (axes,) = new_figure(1.2 + 0.36 * len(shown))
        before(axes)
        for place, (row, x) in enumerate(shown):
            axes.hlines(place, scale * x.low, scale * x.high, colors=colours[row.label], linewidth=1.3)
            mark(axes, row, colours[row.label], scale * x.value, place)
        axes.set_yticks(range(len(shown)), [row.label for row, _ in shown])
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.set_xlabel(x_axis)
        return finish(figure, title, caption)


def _percent(x: Interval) -> Interval:
    return Interval(100 * x.value, 100 * x.low, 100 * x.high, x.method)


def _loss(row: Row, held_out: bool) -> float | None:
    loss = row.manifest.loss.held_out if held_out else row.manifest.loss.train
    return loss if is_known(loss) else None
