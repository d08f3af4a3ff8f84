"""Mean alignment over log loss, with the regression lines of `em_study.loss_alignment`."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.ticker import MaxNLocator, NullLocator

from em_study.loss_alignment import Line, LossAlignment
from em_study.names import display_name
from em_study.report.figures.style import (
    INK,
    STYLE,
    Drawing,
    by_optimiser,
    finish,
    key,
    new_figure,
    not_drawn,
)
from em_study.results import Row

MARKERS = "osD^vP*X"  # one a dataset


def alignment_by_loss(
    found: LossAlignment | None, rows: Sequence[Row], colours: dict[str, str], loss: str, why: str, of: str = ""
) -> Drawing:
    """Checkpoints, the pooled line and, where there are several optimisers, one line for each.

    Args:
        found: the regression, or None; then `why` says why there is none.
        loss: "train_loss" or "held_out_loss".
        of: the base model, where there are several.
    """
    words = {"train_loss": "training loss", "held_out_loss": "held-out loss"}[loss]
    title = f"Mean alignment by {words}" + (f", {of}" if of else "")
    if found is None:
        return not_drawn(title, why)
    names = by_optimiser(rows, colours)
    datasets = list(dict.fromkeys(point.dataset for point in found.points))
    with matplotlib.rc_context(STYLE):
        figure, (axes,) = new_figure(4.8)
        for point in found.points:
            colour = names.get(display_name(point.optimiser), INK)
            marker = MARKERS[datasets.index(point.dataset) % len(MARKERS)]
            axes.plot([point.loss], [point.alignment], marker, color=colour, markersize=6)
        for name, line in found.lines.items():
            own = [point.loss for point in found.points if point.optimiser == name]
            axes.plot(*_drawn(line, own), color=names.get(display_name(name), INK), linewidth=1.6)
        axes.plot(*_drawn(found.pooled, [point.loss for point in found.points]), "--", color=INK, linewidth=1.3)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter("{x:.4g}")
        axes.set_xlabel(f"{words}, nats a token (logarithmic)")
        axes.set_ylabel("mean alignment")
        key(figure, {name: names[name] for name in names if name in _shown(found)} | {"all (pooled)": INK})
        symbols = {"o": "circles", "s": "squares", "D": "diamonds", "^": "triangles", "v": "triangles downwards"}
        kinds = [f"{dataset}: {symbols.get(MARKERS[i], MARKERS[i])}" for i, dataset in enumerate(datasets[:8])]
        without = f" Left out for want of figures: {', '.join(found.left_out)}." if found.left_out else ""
        return finish(
            figure,
            title,
            f"Each point is one checkpoint on narrow data, no penalty ({'; '.join(kinds)}). Broken line: all points; "
            f"solid lines: each optimiser's own, where it has three points or more.{without}",
        )


def _shown(found: LossAlignment) -> set[str]:
    return {display_name(point.optimiser) for point in found.points}


def _drawn(line: Line, losses: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    x = np.geomspace(min(losses), max(losses), 20)
    return x, line.intercept + line.slope * np.log(x)
