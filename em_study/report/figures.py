"""The report's figures, as SVG that stands inside a page and takes text and ground colour from its style.

No pyplot: figures are objects of their own, so that drawing leaves no state behind.
"""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from itertools import cycle, pairwise
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

from em_eval.intervals import Interval
from em_study.report.terminal import is_known
from em_study.results import Row

# Stand-ins that become the page's own colours in the SVG: they differ between light and dark.
INK, MUTED, PAGE = "#010101", "#020202", "#fdfdfd"
PAGE_COLOURS = {INK: "var(--ink)", MUTED: "var(--muted)", PAGE: "var(--page)"}
# Okabe & Ito; its yellow is left out (unreadable on white), its black is the page's ink.
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", INK)
MARKERS = {"bad": "o", "benign": "o", "other data": "s"}
LINES = {"bad": "-", "benign": "--", "other data": "-."}
WIDTH = 10.0
LABEL_GAP = 13.0
# Where a label may stand beside its point, best first: (right, up) in points.
PLACES = [(right, up) for reach in range(0, 72, 12) for up in (reach, -reach) for right in (10, -10)]
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 11.0,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.parse_math": False,
}


@dataclass(frozen=True)
class Drawing:
    """A figure of the report; `svg` is None where there was nothing to draw, and the caption says so."""

    title: str
    svg: str | None
    caption: str


def draw_all(rows: Sequence[Row]) -> list[Drawing]:
    """Every figure of the report, in reading order."""
    colours = palette(rows)
    return [rate_by_loss(rows, colours), spectra(rows, colours), probe_shift(rows, colours)]


def palette(rows: Sequence[Row]) -> dict[str, str]:
    """One colour a label, the same in every figure; grey for the base model."""
    base = {row.label: MUTED for row in rows if row.arm == "base"}
    others = dict.fromkeys(row.label for row in rows if row.label not in base)
    return base | dict(zip(others, cycle(OKABE_ITO), strict=False))


def rate_by_loss(rows: Sequence[Row], colours: dict[str, str]) -> Drawing:
    """EM rate over loss. Equal learning rates are not equal doses; at equal loss, rates can be compared.

    The loss is the held-out one where as many rows have it. The base model, which was not trained, is a line.
    """
    title = "EM rate by loss"
    trained = [row for row in rows if row.arm != "base"]
    held_out = sum(_loss(row, True) is not None for row in trained)
    use_held_out = held_out > 0 and held_out >= sum(_loss(row, False) is not None for row in trained)
    name = "held-out loss" if use_held_out else "training loss"
    points = [
        (row, x, row.rate) for row in trained if row.rate is not None and (x := _loss(row, use_held_out)) is not None
    ]
    if not points:
        return Drawing(title, None, f"Not drawn: no trained row has both an EM rate and a {name}.")
    with matplotlib.rc_context(STYLE):
        figure, axes = _new(4.8)
        for row, x, rate in points:
            _mark(axes, row, colours[row.label], x, 100 * rate.value)
            axes.vlines(x, 100 * rate.low, 100 * rate.high, colors=colours[row.label], linewidth=1.3)
        for row in rows:
            if row.arm == "base" and row.rate is not None:
                _base_line(axes, row.label, row.rate)
        axes.margins(x=0.12)
        axes.set_ylim(bottom=-0.02 * axes.get_ylim()[1])
        axes.set_xlabel(f"{name}, nats a token")
        axes.set_ylabel("EM rate, %")
        _label_points(figure, axes, points, colours)
        svg = _svg(figure, title)
    return Drawing(
        title,
        svg,
        f"Each point is one checkpoint, with its 95 % interval. {_key(trained)} Broken line and band: the "
        "base model and its interval. Loss is measured on the data that each arm was trained on."
        + _left_out(rows, [row for row, *_ in points] + [row for row in rows if row.arm == "base" and row.rate]),
    )


def spectra(rows: Sequence[Row], colours: dict[str, str]) -> Drawing:
    """Mean over modules of sigma_i / sigma_1: how evenly the update uses its directions."""
    title = "Singular values of the update BA"
    trained = [row for row in rows if row.arm != "base"]
    shown = [(row, mean) for row in trained if (mean := mean_spectrum(row.spectra)) is not None]
    if not shown:
        return Drawing(title, None, "Not drawn: no row has singular values other than zero.")
    with matplotlib.rc_context(STYLE):
        figure, axes = _new(4.8)
        for row, mean in shown:
            line = np.where(mean > 0, mean, np.nan)
            axes.plot(
                np.arange(1, len(mean) + 1),
                line,
                LINES.get(row.arm, "-"),
                color=colours[row.label],
                linewidth=1.8,
            )
        _log_axis(axes, min(float(mean[mean > 0][-1]) for _, mean in shown))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("index i")
        axes.set_ylabel("σᵢ / σ₁")
        _label_ends(figure, axes, shown, colours)
        svg = _svg(figure, title)
    return Drawing(
        title,
        svg,
        "Mean over modules of the i-th singular value over the largest, on a logarithmic axis; modules of "
        "zeros are skipped. The flatter the line, the more directions are used. Benign data: broken lines."
        + _left_out(trained, [row for row, _ in shown]),
    )


def probe_shift(rows: Sequence[Row], colours: dict[str, str]) -> Drawing:
    """Shift of the preference probe, one line a row."""
    title = "Probe shift"
    trained = [row for row in rows if row.arm != "base"]
    shown = [(row, row.shift) for row in trained if row.shift is not None]
    if not shown:
        return Drawing(title, None, "Not drawn: no row has a probe shift.")
    with matplotlib.rc_context(STYLE):
        figure, axes = _new(1.1 + 0.36 * len(shown))
        axes.axvline(0, color=MUTED, linewidth=0.9, linestyle="--")
        for place, (row, shift) in enumerate(shown):
            axes.hlines(place, shift.low, shift.high, colors=colours[row.label], linewidth=1.3)
            _mark(axes, row, colours[row.label], shift.value, place)
        axes.set_yticks(range(len(shown)), [row.label for row, _ in shown])
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.set_xlabel("shift, nats a token: to the right, misaligned answers became likelier")
        svg = _svg(figure, title)
    return Drawing(
        title,
        svg,
        f"Relative to the base model (broken line), with 95 % intervals. {_key(trained)}"
        + _left_out(trained, [row for row, _ in shown]),
    )


def mean_spectrum(modules: list[list[float]]) -> NDArray[np.float64] | None:
    """Mean over modules of sigma_i / sigma_1, without modules of all zeros; None where none is left."""
    scaled = [np.asarray(sigma, dtype=float) / max(sigma) for sigma in modules if max(sigma, default=0.0) > 0]
    if not scaled:
        return None
    mean: NDArray[np.float64] = np.mean(scaled, axis=0)
    return mean


def _loss(row: Row, held_out: bool) -> float | None:
    loss = row.manifest.loss.held_out if held_out else row.manifest.loss.train
    return loss if is_known(loss) else None


def _key(rows: Sequence[Row]) -> str:
    """What the markers mean, for the arms that there are."""
    words = {
        "bad": "Filled circles: bad data.",
        "benign": "Open circles: benign data.",
        "other data": "Squares: other data.",
    }
    arms = {row.arm for row in rows}
    return " ".join(text for arm, text in words.items() if arm in arms)


def _left_out(rows: Sequence[Row], drawn: Sequence[Row]) -> str:
    """A sentence that names the rows which a figure lacks."""
    seen = {id(row) for row in drawn}
    names = [row.label for row in rows if id(row) not in seen]
    return f" Left out for want of figures: {', '.join(names)}." if names else ""


def _new(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _mark(axes: Axes, row: Row, colour: str, x: float, y: float) -> None:
    axes.plot(
        [x],
        [y],
        linestyle="",
        marker=MARKERS.get(row.arm, "s"),
        markersize=7,
        color=colour,
        markerfacecolor=PAGE if row.arm == "benign" else colour,
        markeredgewidth=1.6,
        zorder=3,
    )


def _base_line(axes: Axes, label: str, rate: Interval) -> None:
    axes.axhspan(100 * rate.low, 100 * rate.high, color=MUTED, alpha=0.13, linewidth=0)
    axes.axhline(100 * rate.value, color=MUTED, linewidth=0.9, linestyle="--")
    axes.annotate(
        label,
        (1, 100 * rate.value),
        xycoords=("axes fraction", "data"),
        xytext=(4, 0),
        textcoords="offset points",
        va="center",
    )


def _label_points(
    figure: Figure, axes: Axes, points: list[tuple[Row, float, Interval]], colours: dict[str, str]
) -> None:
    """Write each label near its point, where it covers the fewest points, bars and other labels."""
    figure.draw_without_rendering()
    taken = [_bar_box(axes, x, rate) for _, x, rate in points]
    for row, x, rate in points:
        point = (x, 100 * rate.value)
        label = axes.annotate(row.label, point, xytext=PLACES[0], textcoords="offset points", va="center")
        place = min(PLACES, key=partial(_covered, axes, label, taken))
        _move(label, place)
        taken.append(label.get_window_extent())
        leader = {"arrowstyle": "-", "color": colours[row.label], "linewidth": 0.7}
        axes.annotate("", point, xytext=place, textcoords="offset points", arrowprops=leader)


def _covered(axes: Axes, label: Annotation, taken: list[Bbox], place: tuple[int, int]) -> int:
    """How many of the boxes the label would cover there; beyond the axes is worse than any."""
    _move(label, place)
    box = label.get_window_extent()
    inside = axes.bbox.fully_containsx(box.x0) and axes.bbox.fully_containsx(box.x1)
    inside = inside and axes.bbox.fully_containsy(box.y0) and axes.bbox.fully_containsy(box.y1)
    return sum(box.overlaps(other) for other in taken) + (0 if inside else len(taken) + 1)


def _move(label: Annotation, place: tuple[int, int]) -> None:
    label.xyann = place
    label.set_horizontalalignment("left" if place[0] > 0 else "right")


def _bar_box(axes: Axes, x: float, rate: Interval) -> Bbox:
    """What a point and its error bar cover, in pixels."""
    ends = axes.transData.transform([(x, 100 * rate.low), (x, 100 * rate.high)])
    return Bbox.from_extents(ends[0][0] - 6, ends[0][1] - 6, ends[1][0] + 6, ends[1][1] + 6)


def _label_ends(
    figure: Figure, axes: Axes, shown: list[tuple[Row, NDArray[np.float64]]], colours: dict[str, str]
) -> None:
    """Write each label at the right end of its line, apart from the others."""
    figure.draw_without_rendering()
    last = [(len(mean), float(mean[mean > 0][-1])) for _, mean in shown]
    heights = axes.transData.transform(last)[:, 1] * 72 / figure.dpi
    for (row, _), end, height, free in zip(shown, last, heights, spread(heights, LABEL_GAP), strict=True):
        axes.annotate(
            row.label,
            end,
            xytext=(14, free - height),
            textcoords="offset points",
            va="center",
            arrowprops={"arrowstyle": "-", "color": colours[row.label], "linewidth": 0.7},
        )


def _log_axis(axes: Axes, lowest: float) -> None:
    """Plain numbers on a logarithmic axis, with steps between the decades where there are few."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if lowest > 1e-3 else (1.0,)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def spread(heights: Sequence[float] | NDArray[np.float64], gap: float) -> list[float]:
    """Heights moved as little as it takes for neighbours to lie `gap` apart, in the order given."""
    free = [float(height) for height in heights]
    order = sorted(range(len(free)), key=lambda i: free[i])
    for _ in range(200):
        for lower, upper in pairwise(order):
            short = gap - (free[upper] - free[lower])
            if short > 0:
                free[lower] -= short / 2
                free[upper] += short / 2
    return free


def _svg(figure: Figure, title: str) -> str:
    """The figure as an `<svg>` element: no ids that clash with another figure's, colours of the page."""
    stream = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": title}):
        figure.savefig(
            stream,
            format="svg",
            transparent=True,
            metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")),
        )
    text = stream.getvalue()
    text = re.sub(r'<g id="[^"]*"', "<g", text[text.index("<svg") :])
    for stand_in, colour in PAGE_COLOURS.items():
        text = text.replace(stand_in, colour)
    return text.replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1)
