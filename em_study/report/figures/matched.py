"""Differences between optimisers at their last checkpoints and at equal dose, one under the other."""

from collections.abc import Sequence

import matplotlib

from em_study.contrasts import SIGNIFICANCE
from em_study.dose import DoseTable
from em_study.names import display_name
from em_study.report.figures.style import INK, MUTED, PAGE, STYLE, Drawing, finish, new_figure, not_drawn

MARKERS = {"end": "o", "train_loss": "s", "held_out_loss": "D", "norm_ba": "^", "tokens_seen": "v"}


def dose_differences(table: DoseTable) -> Drawing:
    """One group of lines a pair: the difference at the end, then at equal loss, norm and tokens."""
    title = f"Differences at equal dose, {table.outcome}"
    if not table.pairs:
        return not_drawn(title, "no two optimisers have this outcome in one block")
    with matplotlib.rc_context(STYLE):
        shown = [
            (pair, quantity) for pair in table.pairs for quantity in table.columns if (pair, quantity) in table.cells
        ]
        figure, (axes,) = new_figure(1.0 + 0.26 * (len(shown) + len(table.pairs)))
        axes.axvline(0, color=MUTED, linewidth=0.9, linestyle="--")
        place, places, names = 0.0, [], []
        for before, (pair, quantity) in zip([None, *(pair for pair, _ in shown)], shown, strict=False):
            place += 1.8 if before is not None and pair != before else 1.0
            cell = table.cells[pair, quantity]
            x, face = cell.difference, INK if cell.p < SIGNIFICANCE else PAGE
            axes.hlines(place, table.scale * x.low, table.scale * x.high, colors=INK, linewidth=1.2)
            axes.plot(
                [table.scale * x.value], [place], MARKERS[quantity], color=INK, markerfacecolor=face, markersize=6
            )
            names.append(f"{_pair(pair)}, {table.columns[quantity]}" if pair != before else table.columns[quantity])
            places.append(place)
        axes.set_yticks(places, names)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_ylim(place + 0.7, 0.3)
        axes.set_xlabel(f"difference of {table.outcome}, {table.unit}")
        return finish(
            figure,
            title,
            "First optimiser minus second, with 95 % intervals (means over blocks that have both); filled where they "
            "differ at 5 % after Holm's correction. What remains of a difference at equal loss or equal norm is not "
            "explained by that dose.",
        )


def _pair(pair: Sequence[str]) -> str:
    return " − ".join(display_name(name) for name in pair)
