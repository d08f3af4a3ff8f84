"""What all figures of the report share: colours, markers, and their way into the page and into files.

No pyplot: figures are objects of their own, so that drawing leaves no state behind.
"""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import cycle
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from em_eval.intervals import Interval
from em_study.names import display_name
from em_study.report.rows import of_optimisers
from em_study.results import Row

# The page's light colours. Inside the page they become its variables, which differ between light and dark.
INK, MUTED, PAGE = "#1d1f21", "#63676b", "#ffffff"
PAGE_COLOURS = {INK: "var(--ink)", MUTED: "var(--muted)", PAGE: "var(--page)"}
# Okabe & Ito; its yellow is left out (unreadable on white), its black is the page's ink. Then what of Tol's muted set
# is none of those: eleven optimisers have colours of their own, more repeat them and are told apart by their labels.
KNOWN = {"adamw": "#0072B2", "lion": "#D55E00", "muon": "#009E73", "sgd": "#CC79A7", "adam": "#E69F00"}
OTHERS = ("#56B4E9", INK, "#999933", "#AA4499", "#882255", "#117733")
MARKERS = {"bad": "o", "benign": "o", "other data": "s"}
LINES = {"bad": "-", "benign": "--", "other data": "-."}
MOST_LABELS = 12  # of lines or points in one figure; more are told by colour alone, with a key
MOST_NAMES = 6  # in a caption
WIDTH = 10.0
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 11.0,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.facecolor": PAGE,
    "axes.titlesize": 11.0,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "text.parse_math": False,
}


@dataclass(frozen=True)
class Drawing:
    """A figure of the report.

    Attributes:
        svg: to stand inside the page; None where there was nothing to draw, and the caption says so.
        files: the same figure on white, by file ending.
    """

    title: str
    svg: str | None
    caption: str
    files: dict[str, bytes] = field(default_factory=dict)

    @property
    def slug(self) -> str:
        """Its name as a file."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


def not_drawn(title: str, why: str) -> Drawing:
    return Drawing(title, None, f"Not drawn: {why}.")


def palette(rows: Sequence[Row]) -> dict[str, str]:
    """The colour of each label: one an optimiser, the same in every report for the known ones; grey for base models.

    Where all rows are of one optimiser, its colour would tell nothing: then each label has its own.
    """
    trained = [row for row in rows if row.arm != "base"]
    keys = [str(row.manifest.optimiser["name"]) for row in trained]
    if len(set(keys)) < 2:
        keys = [row.label for row in trained]
    free = cycle(colour for colour in (*KNOWN.values(), *OTHERS) if colour not in {KNOWN.get(key) for key in keys})
    chosen = {key: KNOWN.get(key) or next(free) for key in dict.fromkeys(keys)}
    return {row.label: MUTED for row in rows if row.arm == "base"} | {
        row.label: chosen[key] for row, key in zip(trained, keys, strict=True)
    }


def by_optimiser(rows: Sequence[Row], colours: dict[str, str]) -> dict[str, str]:
    """Colours by the name that people give an optimiser, for keys; by label where one optimiser is all there is."""
    if len(of_optimisers(rows)) < 2:
        return {row.label: colours[row.label] for row in rows if row.arm != "base"}
    return {display_name(str(row.manifest.optimiser["name"])): colours[row.label] for row in rows if row.arm != "base"}


def new_figure(height: float, panels: tuple[int, int] = (1, 1), **sharing: Any) -> tuple[Figure, list[Axes]]:
    """A figure `height` inches high with panels in rows and columns; draw within `matplotlib.rc_context(STYLE)`."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(*panels, squeeze=False, **sharing)
    return figure, list(axes.flat)


def key(figure: Figure, colours: dict[str, str]) -> None:
    """Colours and what they mean, under the figure."""
    handles = [Line2D([], [], color=colour, linewidth=2.5, label=name) for name, colour in colours.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 5))


def mark(axes: Axes, row: Row, colour: str, x: float, y: float) -> None:
    """A point of a row: filled for narrow data, open for benign, square for other data."""
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


def markers_in_words(rows: Sequence[Row]) -> str:
    """What the markers mean, for the arms that there are."""
    words = {
        "bad": "Filled circles: bad data.",
        "benign": "Open circles: benign data.",
        "other data": "Squares: other data.",
    }
    arms = {row.arm for row in rows}
    return " ".join(text for arm, text in words.items() if arm in arms)


def line_style(row: Row) -> str:
    """Of a row's line: dotted with a penalty, otherwise by its arm."""
    return ":" if row.manifest.penalty is not None else LINES.get(row.arm, "-")


def lines_in_words(rows: Sequence[Row]) -> str:
    """What the styles of lines mean, as far as they occur."""
    words = {"--": "Benign data: broken lines.", "-.": "Other data: dots and dashes.", ":": "With a penalty: dotted."}
    styles = {line_style(row) for row in rows}
    return " ".join(text for style, text in words.items() if style in styles)


def left_out(rows: Sequence[Row], drawn: Sequence[Row]) -> str:
    """A sentence that names the rows which a figure lacks; of many the first, and how many more."""
    seen = {id(row) for row in drawn}
    names = list(dict.fromkeys(row.label for row in rows if id(row) not in seen))
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return f" Left out for want of figures: {', '.join(names[:MOST_NAMES])}{more}." if names else ""


def base_band(axes: Axes, label: str, rate: Interval, along: str = "y", scale: float = 1.0) -> None:
    """The base model's value as a broken line, its interval as a band; `along` is the axis that shows values."""
    span, line = (axes.axhspan, axes.axhline) if along == "y" else (axes.axvspan, axes.axvline)
    span(scale * rate.low, scale * rate.high, color=MUTED, alpha=0.13, linewidth=0)
    line(scale * rate.value, color=MUTED, linewidth=0.9, linestyle="--")
    place = (1.0, scale * rate.value) if along == "y" else (scale * rate.value, 1.0)
    axes.annotate(
        label,
        place,
        xycoords=("axes fraction", "data") if along == "y" else ("data", "axes fraction"),
        xytext=(4, 0) if along == "y" else (0, 2),
        textcoords="offset points",
        va="center" if along == "y" else "bottom",
        ha="left" if along == "y" else "center",
        annotation_clip=False,
    )


def finish(figure: Figure, title: str, caption: str) -> Drawing:
    """The figure as an `<svg>` element for the page, and as SVG and PNG files."""
    alone = _svg(figure, title)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=150, facecolor=PAGE)
    files = {"svg": alone.encode("utf-8"), "png": _smaller(stream)}
    return Drawing(title, _for_page(alone, title), caption, files)


def _smaller(png: io.BytesIO) -> bytes:
    """With 256 colours of its own, which lines and text on white do not show, at a third of the size."""
    stream = io.BytesIO()
    with Image.open(png) as image:
        image.convert("RGB").quantize(256).save(stream, format="png", optimize=True)
    return stream.getvalue()


def _svg(figure: Figure, title: str) -> str:
    stream = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": title}):
        figure.savefig(
            stream,
            format="svg",
            facecolor=PAGE,
            metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")),
        )
    return stream.getvalue()


def _for_page(text: str, title: str) -> str:
    """Without ids that clash with another figure's, in the colours of the page."""
    text = re.sub(r'<g id="[^"]*"', "<g", text[text.index("<svg") :])
    for light, colour in PAGE_COLOURS.items():
        text = text.replace(light, colour)
    return text.replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1)
