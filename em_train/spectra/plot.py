"""A figure of an adapter's spectra."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from em_core.errors import UserError
from em_train.spectra.record import ModuleSpectrum


def save_plot(spectra: Sequence[ModuleSpectrum], path: Path) -> None:
    """sigma_i / sigma_1 over i on a logarithmic axis: a thin line a module, a thick one for each kind's mean.

    The kind of a module is the last part of its name (q_proj, ...). Modules with BA = 0 have no line; zeros end one.

    Raises:
        UserError: every BA is 0, the file's ending is not one that matplotlib writes, or it cannot be written.
    """
    kinds: dict[str, list[np.ndarray]] = {}
    for one in spectra:
        sigma = one.sigma.numpy()
        if sigma.max() > 0:
            ratios = np.where(sigma > 0, sigma / sigma.max(), np.nan)
            kinds.setdefault(one.name.rsplit(".", 1)[-1], []).append(ratios)
    if not kinds:
        raise UserError("B = 0 in every module: there are no singular values to draw")
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for number, (kind, lines) in enumerate(sorted(kinds.items())):
        colour = f"C{number % 10}"
        for line in lines:
            axes.plot(range(1, len(line) + 1), line, color=colour, linewidth=0.5, alpha=0.25)
        longest = max(len(line) for line in lines)
        padded = np.array([np.pad(line, (0, longest - len(line)), constant_values=np.nan) for line in lines])
        known = ~np.isnan(padded).all(axis=0)  # beyond every module's rank there is no mean
        axes.plot(np.arange(1, longest + 1)[known], np.nanmean(padded[:, known], axis=0), color=colour, label=kind)
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("index i")
    axes.set_ylabel("σᵢ / σ₁")
    axes.set_title(f"Singular values of BA, {len(spectra)} modules")
    axes.legend(frameon=False)
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot draw {path}: {error}") from error
