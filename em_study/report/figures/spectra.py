"""Singular values of BA: the mean over modules, by layer, and how flat each layer is."""

import re
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter
from numpy.typing import NDArray

from em_study.names import display_name
from em_study.report.figures.labels import label_ends
from em_study.report.figures.style import (
    MOST_LABELS,
    STYLE,
    Drawing,
    by_optimiser,
    finish,
    key,
    left_out,
    line_style,
    lines_in_words,
    new_figure,
    not_drawn,
)
from em_study.report.rows import last, trained
from em_study.results import Row

FloatArray = NDArray[np.float64]
LAYER = re.compile(r"(?:layers?|blocks?|h)\.(\d+)\.")
COLUMNS = 3  # panels side by side


def spectra(rows: Sequence[Row], colours: dict[str, str]) -> Drawing:
    """Mean over modules of sigma_i / sigma_1: how evenly the update uses its directions."""
    title = "Singular values of the update BA"
    ends = last(rows)
    shown = [(row, mean) for row in ends if (mean := mean_spectrum(row.spectra)) is not None]
    if not shown:
        return not_drawn(title, "no row has singular values other than zero")
    with matplotlib.rc_context(STYLE):
        figure, (axes,) = new_figure(4.8)
        for row, mean in shown:
            _line(axes, mean, colours[row.label], line_style(row), 1.8)
        _log_axis(axes, min(float(mean[mean > 0][-1]) for _, mean in shown))
        axes.set_xlabel("index i")
        axes.set_ylabel("σᵢ / σ₁")
        if len(shown) <= MOST_LABELS:
            ends_of = [(row.label, colours[row.label], len(mean), float(mean[mean > 0][-1])) for row, mean in shown]
            label_ends(figure, axes, ends_of)
        else:
            key(figure, by_optimiser(trained(rows), colours))
        return finish(
            figure,
            title,
            "Mean over modules of the i-th singular value over the largest, on a logarithmic axis, at the last "
            "checkpoint of each run; modules of zeros are skipped. The flatter the line, the more directions are used. "
            + lines_in_words([row for row, _ in shown])
            + left_out(ends, [row for row, _ in shown]),
        )


def spectra_by_layer(rows: Sequence[Row], colours: dict[str, str]) -> Drawing:
    """One panel an optimiser (and penalty), one line a layer, from light (first) to dark (last)."""
    title = "Singular values by optimiser and layer"
    groups = by_layer(rows)
    if not groups:
        return not_drawn(title, _no_layers(rows))
    with matplotlib.rc_context(STYLE):
        columns = 2 if len(groups) == 4 else min(COLUMNS, len(groups))
        lines = -(-len(groups) // columns)
        figure, panels = new_figure(0.8 + 2.9 * lines, (lines, columns), sharex=True, sharey=True)
        lowest = 1.0
        for axes, (name, (layers, row)) in zip(panels, groups.items(), strict=False):
            for place, layer in enumerate(sorted(layers)):
                depth = 0.15 + 0.85 * place / max(1, len(layers) - 1)
                _line(axes, layers[layer], colours[row.label], "-", 0.9, depth)
                lowest = min(lowest, float(layers[layer][layers[layer] > 0][-1]))
            axes.set_title(name)
        for axes in panels[len(groups) :]:
            axes.set_visible(False)
        _log_axis(panels[0], lowest)
        figure.supxlabel("index i", fontsize=11)
        figure.supylabel("σᵢ / σ₁", fontsize=11)
        return finish(
            figure,
            title,
            "One line a layer, from the first (light) to the last (dark): mean over the layer's modules, and over the "
            "last checkpoints of all runs of that optimiser and penalty on narrow data.",
        )


def flatness_by_layer(rows: Sequence[Row], colours: dict[str, str]) -> Drawing:
    """Participation ratio of the mean spectrum of each layer, one line an optimiser (and penalty)."""
    title = "Flatness by layer"
    groups = by_layer(rows)
    if not groups:
        return not_drawn(title, _no_layers(rows))
    with matplotlib.rc_context(STYLE):
        figure, (axes,) = new_figure(4.0)
        ends = []
        for name, (layers, row) in groups.items():
            order = sorted(layers)
            ratios = [participation_ratio(layers[layer]) for layer in order]
            axes.plot(order, ratios, color=colours[row.label], linewidth=1.8)
            ends.append((name, colours[row.label], float(order[-1]), ratios[-1]))
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("layer")
        axes.set_ylabel("directions used")
        label_ends(figure, axes, ends)
        return finish(
            figure,
            title,
            "Participation ratio of each layer's mean spectrum: how many of the adapter's directions the update uses "
            "there, from 1 to its rank.",
        )


def mean_spectrum(modules: Sequence[Sequence[float]]) -> FloatArray | None:
    """Mean over modules of sigma_i / sigma_1, without modules of all zeros; None where none is left."""
    scaled = [np.asarray(sigma, dtype=float) / max(sigma) for sigma in modules if max(sigma, default=0.0) > 0]
    if not scaled:
        return None
    mean: FloatArray = np.mean(scaled, axis=0)
    return mean


def participation_ratio(sigma: FloatArray) -> float:
    """(sum of sigma^2)^2 / sum of sigma^4."""
    squares = sigma**2
    return float(squares.sum() ** 2 / (squares**2).sum())


def layer_of(module: str) -> int | None:
    """The layer that a module's name tells, e.g. 3 of "model.layers.3.mlp.up_proj"."""
    found = LAYER.search(module)
    return None if found is None else int(found.group(1))


def by_layer(rows: Sequence[Row]) -> dict[str, tuple[dict[int, FloatArray], Row]]:
    """For each optimiser and penalty the mean spectrum of each layer, and one of its rows.

    Means are over modules and over the last checkpoints of its runs on narrow data.
    """
    groups: dict[str, dict[int, list[list[float]]]] = {}
    samples: dict[str, Row] = {}
    for row in last(rows):
        if row.arm == "benign":
            continue
        for module, sigma in zip(row.modules, row.spectra, strict=False):
            if (layer := layer_of(module)) is not None:
                groups.setdefault(_group(row), {}).setdefault(layer, []).append(sigma)
                samples.setdefault(_group(row), row)
    means = {
        name: {layer: mean for layer, found in layers.items() if (mean := mean_spectrum(found)) is not None}
        for name, layers in groups.items()
    }
    return {name: (layers, samples[name]) for name, layers in means.items() if layers}


def _group(row: Row) -> str:
    """Optimiser and penalty; ranks apart, since their spectra have different lengths."""
    name = display_name(str(row.manifest.optimiser["name"]))
    if row.manifest.penalty is not None:
        name += f" + {row.manifest.penalty['name']} {row.manifest.penalty['strength']:g}"
    return f"{name}, rank {len(row.spectra[0])}" if row.manifest.lora.get("rank") != len(row.spectra[0]) else name


def _no_layers(rows: Sequence[Row]) -> str:
    known = any(max(sigma, default=0.0) > 0 for row in last(rows) for sigma in row.spectra)
    return "no module's name tells its layer" if known else "no row has singular values other than zero"


def _line(axes: Axes, mean: FloatArray, colour: str, style: str, width: float, alpha: float = 1.0) -> None:
    shown = np.where(mean > 0, mean, np.nan)
    axes.plot(np.arange(1, len(mean) + 1), shown, style, color=colour, linewidth=width, alpha=alpha)


def _log_axis(axes: Axes, lowest: float) -> None:
    """Plain numbers on a logarithmic axis, with steps between the decades where there are few."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if lowest > 1e-3 else (1.0,)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
