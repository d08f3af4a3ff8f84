"""Labels that stand beside their points and lines, apart from each other."""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

from em_eval.intervals import Interval

GAP = 13.0  # points between two labels at the ends of lines
# Where a label may stand beside its point, best first: (right, up) in points.
PLACES = [(right, up) for reach in range(0, 72, 12) for up in (reach, -reach) for right in (10, -10)]


def label_points(figure: Figure, axes: Axes, points: Sequence[tuple[str, str, float, Interval]]) -> None:
    """Write each label near its point, where it covers the fewest points, bars and other labels.

    Args:
        points: label, colour, x, and y with its interval, in the axes' units.
    """
    figure.draw_without_rendering()
    taken = [_bar_box(axes, x, y) for _, _, x, y in points]
    for text, colour, x, y in points:
        point = (x, y.value)
        label = axes.annotate(text, point, xytext=PLACES[0], textcoords="offset points", va="center")
        place = min(PLACES, key=partial(_covered, axes, label, taken))
        _move(label, place)
        taken.append(label.get_window_extent())
        leader = {"arrowstyle": "-", "color": colour, "linewidth": 0.7}
        axes.annotate("", point, xytext=place, textcoords="offset points", arrowprops=leader)


def label_ends(figure: Figure, axes: Axes, ends: Sequence[tuple[str, str, float, float]]) -> None:
    """Write each label at the right end of its line, apart from the others.

    Args:
        ends: label, colour, x and y of the line's last point.
    """
    figure.draw_without_rendering()
    heights = axes.transData.transform([(x, y) for _, _, x, y in ends])[:, 1] * 72 / figure.dpi
    for (text, colour, x, y), height, free in zip(ends, heights, spread(heights, GAP), strict=True):
        axes.annotate(
            text,
            (x, y),
            xytext=(14, free - height),
            textcoords="offset points",
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.7},
        )


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


def _bar_box(axes: Axes, x: float, y: Interval) -> Bbox:
    """What a point and its error bar cover, in pixels."""
    ends = axes.transData.transform([(x, y.low), (x, y.high)])
    return Bbox.from_extents(ends[0][0] - 6, ends[0][1] - 6, ends[1][0] + 6, ends[1][1] + 6)
